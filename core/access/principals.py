"""Principals: who sends a request, which jobs they see, and what they may do.

The owner of a job or run is the ``owner_id`` that its principal had. Every query for a client is
restricted by a ``Sight``, so that a job of somebody else looks like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, true

READ, SUBMIT, PRIORITY, ADMIN = "read", "submit", "priority", "admin"
SCOPES = (READ, SUBMIT, PRIORITY, ADMIN)
Kind = Literal["local", "nobody", "visitor", "key", "user"]


@dataclass(frozen=True, slots=True)
class Sight:
    """The jobs and runs that a principal sees.

    Attributes:
        owner_id: those of one owner; ``None``: all.
    """

    owner_id: str | None

    def allows(self, owner_id: str) -> bool:
        """Whether the jobs of an owner are seen."""
        return self.owner_id is None or self.owner_id == owner_id

    def condition(self, column: Any) -> ColumnElement[bool]:
        """The condition of a query, for the column that contains the owner."""
        if self.owner_id is None:
            return true()
        found: ColumnElement[bool] = column == self.owner_id
        return found


EVERYTHING = Sight(None)
NOTHING = Sight("")  # no row has an empty owner


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request.

    Attributes:
        kind: ``local`` for everybody on one's own machine, ``nobody``, ``visitor``, ``key``, or
            ``user`` for a person who signed in by single sign-on.
        owner_id: the owner of what this principal submits: the scope of idempotency keys, and the
            unit of the queue's fair share.
        scopes: a subset of ``SCOPES``.
        reads: the jobs that it may read.
        changes: the jobs that it may cancel and delete.
        name: for people; empty for visitors.
        tokens_per_day: a key's own limit; ``None``: that of the mode.
        address_id: a keyed hash of a visitor's address.
    """

    kind: Kind
    owner_id: str
    scopes: frozenset[str]
    reads: Sight
    changes: Sight
    name: str = ""
    tokens_per_day: int | None = None
    address_id: str = ""

    def may(self, scope: str) -> bool:
        """Whether the principal has a scope; ``admin`` includes the others."""
        return scope in self.scopes or ADMIN in self.scopes


NOBODY = Principal("nobody", "", frozenset(), NOTHING, NOTHING)


LOCAL = Principal("local", "local", frozenset(SCOPES), EVERYTHING, EVERYTHING)
"""Code without a request, and the tests."""


def local(client_id: str) -> Principal:
    """Everybody on one's own machine; ``client_id`` only divides the queue fairly."""
    return Principal("local", client_id, frozenset(SCOPES), EVERYTHING, EVERYTHING)


def visitor(visitor_id: str, address_id: str = "") -> Principal:
    """An anonymous visitor of a public page."""
    own = Sight(f"visitor:{visitor_id}")
    return Principal(
        "visitor",
        str(own.owner_id),
        frozenset({READ, SUBMIT}),
        own,
        own,
        address_id=address_id,
    )


def key_holder(
    key_id: str,
    name: str,
    scopes: Iterable[str],
    *,
    sees_all: bool,
    tokens_per_day: int | None = None,
) -> Principal:
    """The holder of an API key; an admin changes what it sees, others only what is theirs."""
    allowed, own = frozenset(scopes), Sight(f"key:{key_id}")
    is_admin = ADMIN in allowed
    return Principal(
        "key",
        str(own.owner_id),
        allowed,
        EVERYTHING if sees_all or is_admin else own,
        EVERYTHING if is_admin else own,
        name,
        tokens_per_day,
    )


def user(user_id: str, name: str, *, is_admin: bool) -> Principal:
    """A person who signed in by single sign-on."""
    own = Sight(f"user:{user_id}")
    return Principal(
        "user",
        str(own.owner_id),
        frozenset({READ, SUBMIT, ADMIN} if is_admin else {READ, SUBMIT}),
        EVERYTHING if is_admin else own,
        EVERYTHING if is_admin else own,
        name,
    )

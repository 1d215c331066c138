"""Links that show one job or run to everybody who has them.

A link contains 128 random bits and no id. It shows the present state of what it names. It ends when
that is deleted, when it is revoked, or at its own end.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Engine, delete, insert, or_, select, update

from textmill.core.access.audit import append
from textmill.core.access.principals import Principal
from textmill.core.database.access_tables import Share
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import Job, Run
from textmill.core.errors import NotFound

Kind = Literal["job", "run"]
TOKEN_BYTES = 16
_IS_CURRENT = or_(Share.expires_at.is_(None), Share.expires_at > now_ms())


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """A link.

    Attributes:
        token: the last part of its address.
        kind: ``job`` or ``run``.
        object_id: of the job or run.
        is_indexed: whether search engines may show it.
        expires_at: in milliseconds; ``None``: never.
    """

    token: str
    kind: str
    object_id: str
    is_indexed: bool
    expires_at: int | None


class ShareStore:
    """The links. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def share(
        self,
        kind: Kind,
        object_id: str,
        principal: Principal,
        *,
        expires_seconds: float | None = None,
        is_indexed: bool = False,
    ) -> ShareRecord:
        """Make the link of a job or run; one that has a link keeps it, with the new end.

        Raises:
            NotFound: there is nothing with this id that the principal may share.
        """
        lifetime = None if expires_seconds is None else int(expires_seconds * 1000)
        with writing(self._engine) as connection:
            _require(connection, kind, object_id, principal)
            is_it = Share.object_id == object_id
            values = {
                "is_indexed": is_indexed,
                "expires_at": None if lifetime is None else now_ms() + lifetime,
            }
            if connection.execute(update(Share).where(is_it).values(**values)).rowcount == 0:
                token = secrets.token_urlsafe(TOKEN_BYTES)
                new = {"token": token, "kind": kind, "object_id": object_id, "created_at": now_ms()}
                connection.execute(insert(Share).values(**new, **values))
                append(connection, "share", object_id, principal)
            return _first(connection, object_id)

    def unshare(self, kind: Kind, object_id: str, principal: Principal) -> None:
        """Revoke the link of a job or run, if it has one.

        Raises:
            NotFound: there is nothing with this id that the principal may share.
        """
        with writing(self._engine) as connection:
            _require(connection, kind, object_id, principal)
            if forget(connection, object_id):
                append(connection, "unshare", object_id, principal)

    def of(self, object_id: str) -> ShareRecord | None:
        """The link of a job or run that the caller may see."""
        query = select(*_COLUMNS).where(Share.object_id == object_id, _IS_CURRENT)
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        return None if row is None else ShareRecord(**row._mapping)

    def find(self, token: str) -> ShareRecord:
        """The link with a token.

        Raises:
            NotFound: there is none, or it has ended.
        """
        query = select(*_COLUMNS).where(Share.token == token, _IS_CURRENT)
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        if row is None:
            raise NotFound("This link leads nowhere; it may have been revoked or have ended.")
        return ShareRecord(**row._mapping)


_COLUMNS = (Share.token, Share.kind, Share.object_id, Share.is_indexed, Share.expires_at)


def forget(connection: Connection, object_id: str) -> bool:
    """Delete the link of a job or run that is deleted; returns whether it had one."""
    return connection.execute(delete(Share).where(Share.object_id == object_id)).rowcount > 0


def _require(connection: Connection, kind: Kind, object_id: str, principal: Principal) -> None:
    table: type[Job] | type[Run] = Job if kind == "job" else Run
    is_theirs = principal.changes.condition(table.owner_id)
    if connection.execute(select(table.id).where(table.id == object_id, is_theirs)).first() is None:
        raise NotFound(f"There is no {kind} with that id; it may have been deleted.")


def _first(connection: Connection, object_id: str) -> ShareRecord:
    row = connection.execute(select(*_COLUMNS).where(Share.object_id == object_id)).one()
    return ShareRecord(**row._mapping)

"""People who signed in by single sign-on: remembered, listed, disabled.

A session names a person and the number of their sessions. Signing out and disabling count that
number up, which ends all sessions of the person with the next request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite

from textmill.core.access.audit import append
from textmill.core.access.identities import Identity
from textmill.core.access.principals import Principal, user
from textmill.core.database.access_tables import User
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.errors import Forbidden, NotFound, Unauthorized


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A person. Instants are in milliseconds.

    Attributes:
        id: the name of the principal, ``user:ID``; from the provider's issuer and subject.
        name, email: as of the latest sign-in; the email is empty unless it was verified.
        is_admin: as of the latest sign-in.
        session_number: of the sessions that are valid.
        disabled_at: since when the person may not sign in; ``None``: they may.
    """

    id: str
    name: str
    email: str
    is_admin: bool
    session_number: int
    created_at: int
    signed_in_at: int
    disabled_at: int | None

    @property
    def owner_id(self) -> str:
        """The owner of the person's jobs."""
        return self.principal.owner_id

    @property
    def principal(self) -> Principal:
        """The person as a principal."""
        return user(self.id, self.email or self.name, is_admin=self.is_admin)


class UserStore:
    """The people. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def sign_in(self, identity: Identity, *, is_admin: bool) -> UserRecord:
        """Remember a person whom the provider has signed in.

        Raises:
            Forbidden: the person is disabled.
        """
        values: dict[str, Any] = {
            "name": identity.name,
            "email": identity.email,
            "is_admin": is_admin,
        }
        with writing(self._engine) as connection:
            known = _find(connection, identity.user_id)
            if known is not None and known.disabled_at is not None:
                raise Forbidden("An operator of this service has disabled your account.")
            insert: Any = _IN_DATABASE[connection.dialect.name]
            new = {"id": identity.user_id, "session_number": 1, "created_at": now_ms()}
            values |= {"signed_in_at": now_ms()}
            row = insert(User).values(**new, **values)
            connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=values))
            return _require(connection, identity.user_id)

    def by_session(self, user_id: str, session_number: int) -> UserRecord:
        """The person of a session.

        Raises:
            Unauthorized: the session has ended, or the person is disabled.
        """
        with reading(self._engine) as connection:
            found = _find(connection, user_id)
        if found is None or found.disabled_at is not None:
            raise Unauthorized("This account may not be used here; ask the operator.")
        if found.session_number != session_number:
            raise Unauthorized("This session has ended; sign in again.")
        return found

    def end_sessions(self, user_id: str) -> None:
        """End all sessions of a person."""
        with writing(self._engine) as connection:
            _change(connection, user_id, {})

    def all(self) -> Sequence[UserRecord]:
        """All people, those first who signed in last."""
        query = select(*_COLUMNS).order_by(User.signed_in_at.desc(), User.id)
        with reading(self._engine) as connection:
            return [UserRecord(**row._mapping) for row in connection.execute(query)]

    def disable(self, user_id: str, principal: Principal) -> None:
        """End the sessions of a person, and refuse them from now on.

        Raises:
            NotFound: nobody has this id.
        """
        with writing(self._engine) as connection:
            _require(connection, user_id)
            _change(connection, user_id, {"disabled_at": now_ms()})
            append(connection, "user_disable", user_id, principal)

    def enable(self, user_id: str, principal: Principal) -> None:
        """Let a person sign in again.

        Raises:
            NotFound: nobody has this id.
        """
        with writing(self._engine) as connection:
            _require(connection, user_id)
            _change(connection, user_id, {"disabled_at": None})
            append(connection, "user_enable", user_id, principal)


_COLUMNS = tuple(User.__table__.c)
_IN_DATABASE = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _find(connection: Connection, user_id: str) -> UserRecord | None:
    row = connection.execute(select(*_COLUMNS).where(User.id == user_id)).first()
    return None if row is None else UserRecord(**row._mapping)


def _require(connection: Connection, user_id: str) -> UserRecord:
    found = _find(connection, user_id)
    if found is None:
        raise NotFound("Nobody with that id has signed in here.")
    return found


def _change(connection: Connection, user_id: str, values: dict[str, Any]) -> None:
    """Change a person, and end all of their sessions."""
    number = {"session_number": User.session_number + 1}
    connection.execute(update(User).where(User.id == user_id).values(**number, **values))

"""API keys in the database: created, listed, revoked, and looked up by the secret."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, Select, insert, or_, select, update

from textmill.core.access.audit import OPERATOR, append
from textmill.core.access.principals import ADMIN, SCOPES, Principal, key_holder
from textmill.core.access.tokens import PREFIX_CHARACTERS, digest, is_well_formed, new_token
from textmill.core.database.access_tables import ApiKey
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.errors import Conflict, NotFound, Unauthorized

USE_MS = 60_000  # how exactly the last use is recorded
_COLUMNS = ApiKey.__table__


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without its secret. Instants are in milliseconds.

    Attributes:
        id: the name of its principal, ``key:ID``.
        prefix: the first characters of the secret, by which people recognise it.
        sees_all: whether it reads the jobs of the whole team.
        tokens_per_day: a limit of its own; ``None``: that of the mode.
        is_valid: neither revoked nor expired, by the database's clock.
    """

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    sees_all: bool
    tokens_per_day: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    is_valid: bool

    @property
    def principal(self) -> Principal:
        """The principal that holds the key."""
        return key_holder(
            self.id,
            self.name,
            self.scopes,
            sees_all=self.sees_all,
            tokens_per_day=self.tokens_per_day,
        )


class KeyStore:
    """The keys. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        expires_seconds: float | None = None,
        tokens_per_day: int | None = None,
        sees_all: bool = False,
    ) -> tuple[KeyRecord, str]:
        """Create a key.

        Args:
            name: for people; names need not be unique among revoked keys.
            scopes: of ``SCOPES``.
            expires_seconds: from now; ``None``: never.
            tokens_per_day: a limit of its own.
            sees_all: whether it reads the jobs of the whole team.

        Returns:
            The record, and the secret, which is not stored.

        Raises:
            Conflict: a key of this name exists and is not revoked.
        """
        token, key_id = new_token(), secrets.token_hex(6)
        allowed = [scope for scope in SCOPES if scope in set(scopes)]
        with writing(self._engine) as connection:
            same = select(ApiKey.id).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
            if connection.execute(same).first() is not None:
                raise Conflict(f"A key named {name!r} exists; revoke it, or choose another name.")
            lifetime = None if expires_seconds is None else int(expires_seconds * 1000)
            connection.execute(
                insert(ApiKey).values(
                    id=key_id,
                    name=name,
                    prefix=token[:PREFIX_CHARACTERS],
                    digest=digest(token),
                    scopes=",".join(allowed),
                    sees_all=sees_all,
                    tokens_per_day=tokens_per_day,
                    created_at=now_ms(),
                    expires_at=None if lifetime is None else now_ms() + lifetime,
                )
            )
            append(connection, "key_create", f"{key_id} {name}")
            row = connection.execute(_query().where(ApiKey.id == key_id)).one()
        return _record(row), token

    def all(self) -> list[KeyRecord]:
        """All keys, oldest first, with those that are revoked or expired."""
        with reading(self._engine) as connection:
            rows = connection.execute(_query().order_by(ApiKey.created_at, ApiKey.id))
            return [_record(row) for row in rows]

    def has_admin(self) -> bool:
        """Whether a valid key has the scope ``admin``."""
        return any(key.is_valid and ADMIN in key.scopes for key in self.all())

    def revoke(self, which: str, principal: Principal | str = OPERATOR) -> KeyRecord:
        """Revoke a key, from now on.

        Args:
            which: its id, its name, or the first characters of its secret.
            principal: who revokes it.

        Raises:
            NotFound: no key matches that is not revoked already.
            Conflict: several match.
        """
        is_it = or_(ApiKey.id == which, ApiKey.name == which, ApiKey.prefix == which)
        with writing(self._engine) as connection:
            query = _query().where(is_it, ApiKey.revoked_at.is_(None))
            rows = connection.execute(query).all()
            if not rows:
                raise NotFound(
                    f"No key in use is named {which!r}; `textmill keys list` lists them."
                )
            if len(rows) > 1:
                raise Conflict(f"Several keys match {which!r}; give the id.")
            is_this = ApiKey.id == rows[0].id
            connection.execute(update(ApiKey).where(is_this).values(revoked_at=now_ms()))
            append(connection, "key_revoke", f"{rows[0].id} {rows[0].name}", principal)
            return _record(connection.execute(_query().where(is_this)).one())

    def authenticate(self, token: str) -> KeyRecord:
        """The key with a secret; records its use.

        Raises:
            Unauthorized: there is no such key, or it is revoked or expired.
        """
        if not is_well_formed(token):
            raise Unauthorized("This is not an API key of this service; check that it is complete.")
        with reading(self._engine) as connection:
            row = connection.execute(_query().where(ApiKey.digest == digest(token))).first()
        return self._used(row)

    def by_id(self, key_id: str) -> KeyRecord:
        """The key with an id, for a browser that has signed in with it.

        Raises:
            Unauthorized: there is no such key, or it is revoked or expired.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_query().where(ApiKey.id == key_id)).first()
        return self._used(row)

    def _used(self, row: Row[Any] | None) -> KeyRecord:
        if row is None:
            raise Unauthorized("This API key is unknown; ask for a new one.")
        key = _record(row)
        if key.revoked_at is not None:
            raise Unauthorized("This API key was revoked; ask for a new one.")
        if not key.is_valid:
            raise Unauthorized("This API key has expired; ask for a new one.")
        if row._mapping["is_use_old"]:
            with writing(self._engine) as connection:
                values = {"last_used_at": now_ms()}
                connection.execute(update(ApiKey).where(ApiKey.id == key.id).values(values))
        return key


def _query() -> Select[Any]:
    is_current = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now_ms())
    is_use_old = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now_ms() - USE_MS)
    return select(*_COLUMNS.c, is_current.label("is_current"), is_use_old.label("is_use_old"))


def _record(row: Row[Any]) -> KeyRecord:
    columns = row._mapping
    return KeyRecord(
        id=columns["id"],
        name=columns["name"],
        prefix=columns["prefix"],
        scopes=tuple(scope for scope in columns["scopes"].split(",") if scope),
        sees_all=columns["sees_all"],
        tokens_per_day=columns["tokens_per_day"],
        created_at=columns["created_at"],
        expires_at=columns["expires_at"],
        revoked_at=columns["revoked_at"],
        last_used_at=columns["last_used_at"],
        is_valid=bool(columns["is_current"]) and columns["revoked_at"] is None,
    )

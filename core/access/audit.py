"""The audit log: who deleted, canceled, shared, revoked, disabled or blocked what, and when.

Rows are only added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Engine, insert, select

from textmill.core.access.principals import Principal
from textmill.core.database.access_tables import Audit
from textmill.core.database.connections import now_ms, reading

Action = Literal[
    "delete",
    "cancel",
    "share",
    "unshare",
    "key_create",
    "key_revoke",
    "user_disable",
    "user_enable",
    "block",
    "unblock",
    "refuse_prompt",
]
OPERATOR = "operator"  # a command on the machine itself


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One row; ``at`` is in milliseconds, ``address_id`` a keyed hash of a visitor's address."""

    number: int
    at: int
    principal: str
    action: str
    object: str
    address_id: str | None
    reason: str | None


def append(
    connection: Connection,
    action: Action,
    object_id: str,
    principal: Principal | str = OPERATOR,
    reason: str = "",
) -> None:
    """Add a row, in the transaction of what it records."""
    name, address_id = principal, ""
    if isinstance(principal, Principal):
        name, address_id = principal.owner_id, principal.address_id
    connection.execute(
        insert(Audit).values(
            at=now_ms(),
            principal=name,
            action=action,
            object=object_id[:100],
            address_id=address_id or None,
            reason=reason[:200] or None,
        )
    )


def latest(engine: Engine, limit: int, before: int | None = None) -> Sequence[AuditRecord]:
    """The latest rows, newest first; ``before`` continues after the number of a row."""
    query = select(*Audit.__table__.c).order_by(Audit.number.desc()).limit(limit)
    if before is not None:
        query = query.where(Audit.number < before)
    with reading(engine) as connection:
        return [AuditRecord(**row._mapping) for row in connection.execute(query)]

"""Clients and addresses that an admin has blocked: they read what is theirs, and submit nothing.

A subject is an owner (``visitor:…``, ``key:…``, ``user:…``) or an address (``address:…``, the keyed
hash that the jobs of visitors carry). ``core.access.holdings`` refuses their submissions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update

from textmill.core.access.audit import append
from textmill.core.access.principals import Principal
from textmill.core.database.access_tables import Block
from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.errors import FieldError, ValidationFailed

KINDS = ("visitor:", "key:", "user:", "address:")
MAX_SUBJECT_CHARACTERS = 80
MAX_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block; ``at`` is in milliseconds."""

    subject: str
    reason: str
    at: int


def block(engine: Engine, subject: str, reason: str, principal: Principal) -> None:
    """Block a subject, or change the reason.

    Raises:
        ValidationFailed: the subject is not one.
    """
    if not subject.startswith(KINDS) or not 8 < len(subject) <= MAX_SUBJECT_CHARACTERS:
        message = "must begin with visitor:, key:, user: or address:, as in the list of owners"
        raise ValidationFailed([FieldError("subject", message)])
    reason = reason[:MAX_REASON_CHARACTERS]
    with writing(engine) as connection:
        is_it = Block.subject == subject
        if connection.execute(update(Block).where(is_it).values(reason=reason)).rowcount == 0:
            new = {"subject": subject, "reason": reason, "at": now_ms()}
            connection.execute(insert(Block).values(**new))
        append(connection, "block", subject, principal, reason)


def unblock(engine: Engine, subject: str, principal: Principal) -> None:
    """End a block, if there is one."""
    with writing(engine) as connection:
        if connection.execute(delete(Block).where(Block.subject == subject)).rowcount:
            append(connection, "unblock", subject, principal)


def blocks(engine: Engine) -> Sequence[BlockRecord]:
    """All blocks, newest first."""
    query = select(Block.subject, Block.reason, Block.at).order_by(Block.at.desc())
    with reading(engine) as connection:
        return [BlockRecord(**row._mapping) for row in connection.execute(query)]

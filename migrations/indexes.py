"""Creates indexes on tables that are in use, without blocking writers.

CREATE INDEX blocks all writers of a table until it has read the table. PostgreSQL's CREATE INDEX
CONCURRENTLY does not; it cannot run inside a transaction, and leaves an invalid index behind when
it is interrupted, which every call here therefore drops first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op


def create_index(name: str, table: str, columns: Sequence[str], where: str | None = None) -> None:
    """Create an index from a migration; may be repeated after an interruption.

    Args:
        name: of the index.
        table: of the index.
        columns: in their order.
        where: the condition of a partial index.
    """
    condition = sa.text(where) if where else None
    options: dict[str, Any] = {"sqlite_where": condition, "postgresql_where": condition}
    if op.get_bind().dialect.name == "sqlite" or not _may_commit():
        op.create_index(name, table, list(columns), **options)
        return
    with op.get_context().autocommit_block():
        # It waits for older transactions but blocks none, so it needs no time limit.
        op.execute("SET lock_timeout = 0")
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)
        op.execute("RESET lock_timeout")


def _may_commit() -> bool:
    """Whether the transaction is Alembic's own; a caller's must not be committed here."""
    context = op.get_context()
    return not context._in_external_transaction

"""Indexes on tables that are in use: made beside those who write to them.

CREATE INDEX keeps all writers of a table waiting until it has read the table. CREATE INDEX
CONCURRENTLY does not, on PostgreSQL; it cannot run inside a transaction, and leaves an index behind
that is not valid when it is cut off, so that every call here begins by taking such a one away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op


def create_index(name: str, table: str, columns: Sequence[str], where: str | None = None) -> None:
    """Make an index from within a migration; may be repeated after it was cut off.

    Args:
        name: of the index.
        table: whose it is.
        columns: in their order.
        where: the condition of a partial index.
    """
    condition = sa.text(where) if where else None
    options: dict[str, Any] = {"sqlite_where": condition, "postgresql_where": condition}
    if op.get_bind().dialect.name == "sqlite" or not _may_commit():
        op.create_index(name, table, list(columns), **options)
        return
    with op.get_context().autocommit_block():
        # It waits for older transactions, and nobody waits for it: there is no hurry.
        op.execute("SET lock_timeout = 0")
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)
        op.execute("RESET lock_timeout")


def _may_commit() -> bool:
    """Whether the transaction is Alembic's own; a caller's must be left alone."""
    context = op.get_context()
    return not context._in_external_transaction

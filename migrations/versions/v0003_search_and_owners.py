"""Search within scripts without spaces, and an index of each owner's queued and running jobs.

The previous release writes rows without the new columns; ``core.database.maintenance`` indexes
these rows again when their jobs have ended.

On PostgreSQL, the indexes of a table with rows are created without blocking its writers. Such a
statement runs outside a transaction, so this migration may be interrupted halfway; every step can
be repeated. If the caller has a transaction open, the indexes are created in it.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ACTIVE = sa.text("status = 'queued' OR status = 'running'")
_STALE_SEARCH = sa.text("search_rules IS NULL AND finished_at IS NOT NULL")
_INDEXES = {
    "ix_jobs_active_owner_id": (["owner_id", "share_rank"], _ACTIVE),
    "ix_jobs_stale_search": (["number"], _STALE_SEARCH),
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.add_column(
            "jobs", sa.Column("search_runs", sa.Text(), nullable=False, server_default="")
        )
        op.add_column("jobs", sa.Column("search_rules", sa.Integer(), nullable=True))
        _create_indexes()
        op.execute("PRAGMA analysis_limit = 1000")  # otherwise it reads every index completely
        op.execute("ANALYZE")
    else:
        add = "ALTER TABLE jobs ADD COLUMN IF NOT EXISTS"
        op.execute(f"{add} search_runs TEXT NOT NULL DEFAULT ''")
        op.execute(f"{add} search_rules INTEGER")
        _create_indexes_on_postgresql()
        op.execute("ANALYZE jobs, job_events, job_traces, runs, workers, model_cards")


def _create_indexes(*, is_concurrent: bool = False) -> None:
    for name, (columns, where) in _INDEXES.items():
        op.drop_index(name, "jobs", if_exists=True)
        op.create_index(
            name,
            "jobs",
            columns,
            sqlite_where=where,
            postgresql_where=where,
            postgresql_concurrently=is_concurrent,
        )


def _create_indexes_on_postgresql() -> None:
    has_rows = op.get_bind().execute(sa.text("SELECT EXISTS (SELECT 1 FROM jobs)")).scalar_one()
    if has_rows and _commits_by_itself():
        with op.get_context().autocommit_block():
            _create_indexes(is_concurrent=True)
    else:
        _create_indexes()


def _commits_by_itself() -> bool:
    """Whether the transaction is Alembic's own, so that it can be ended and begun again."""
    return op.get_context()._transaction is not None or not op.get_bind().in_transaction()


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    for column in ("search_rules", "search_runs"):
        op.drop_column("jobs", column)

"""Stars: jobs that are kept.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_STARRED = sa.text("is_starred")


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column("is_starred", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index(
        "ix_jobs_starred_owner_id",
        "jobs",
        ["owner_id", "number"],
        sqlite_where=_STARRED,
        postgresql_where=_STARRED,
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_starred_owner_id", table_name="jobs")
    op.drop_column("jobs", "is_starred")

"""Counters of ordered tokens, and the address from which a visitor sent a job.

The previous release writes no address: its jobs count for none.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("window", sa.String(length=8), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "window", name="pk_usage"),
    )
    op.add_column("jobs", sa.Column("address_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "address_id")
    op.drop_table("usage")

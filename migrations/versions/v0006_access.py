"""API keys, and an index of each owner's history.

Jobs keep their owners. Those of earlier releases belong to browsers and addresses (``cookie:…``,
``ip:…``), which no principal of the modes ``demo`` and ``team`` has: only ``local`` and admins see
them.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from textmill.migrations.indexes import create_index

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=64), nullable=False),
        sa.Column("sees_all", sa.Boolean(), nullable=False),
        sa.Column("tokens_per_day", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    create_index("ix_jobs_owner_id_number", "jobs", ["owner_id", "number"])


def downgrade() -> None:
    op.drop_index("ix_jobs_owner_id_number", "jobs")
    op.drop_table("api_keys")

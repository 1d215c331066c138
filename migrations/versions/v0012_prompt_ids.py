"""Prompts as token ids, and the chat templates of models.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("prompt_ids", sa.JSON(), nullable=True))
    op.add_column("model_cards", sa.Column("tokenizer_config", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("model_cards", "tokenizer_config")
    op.drop_column("jobs", "prompt_ids")

"""The fine-tuning record, loss curve and card of a model.

The columns are nullable, because workers of the previous release write rows without them.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_cards", sa.Column("finetuning", sa.JSON(), nullable=True))
    op.add_column("model_cards", sa.Column("curve_svg", sa.Text(), nullable=True))
    op.add_column("model_cards", sa.Column("card_markdown", sa.Text(), nullable=True))


def downgrade() -> None:
    for column in ("card_markdown", "curve_svg", "finetuning"):
        op.drop_column("model_cards", column)

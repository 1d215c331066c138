"""What computes a loaded model: the instruction set of the compiled kernels, and a note.

Both are nullable: the previous release writes neither.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_cards", sa.Column("instruction_set", sa.String(length=16), nullable=True))
    op.add_column("model_cards", sa.Column("kernels_note", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("model_cards", "kernels_note")
    op.drop_column("model_cards", "instruction_set")

"""Add budget reservations of running turns, and limits of keys"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0010"
down_revision = "gateway_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_holds",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("step_tokens", sa.BigInteger(), nullable=False),
        sa.Column("step_usd", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id"),
    )
    op.create_index("ix_budget_holds_owner", "budget_holds", ["owner"])
    op.add_column("api_keys", sa.Column("limits", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "limits")
    op.drop_table("budget_holds")

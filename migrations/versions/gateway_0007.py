"""Add credentials of turns, indexes for usage, and the response cache"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0007"
down_revision = "gateway_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("key", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("cached", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ix_turns_completed", "turns", ["completed_at"])
    op.create_index("ix_turns_owner_completed", "turns", ["owner", "completed_at"])
    op.create_table(
        "cached_responses",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "key"),
    )
    op.create_index("ix_cached_responses_turn", "cached_responses", ["turn_id"])
    op.create_index("ix_cached_responses_kept", "cached_responses", ["kept_at"])
    op.create_index("ix_cached_responses_expires", "cached_responses", ["expires_at"])


def downgrade() -> None:
    op.drop_table("cached_responses")
    op.drop_index("ix_turns_owner_completed", "turns")
    op.drop_index("ix_turns_completed", "turns")
    op.drop_column("turns", "cached")
    op.drop_column("turns", "key")

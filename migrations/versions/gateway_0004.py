"""Add parent turns, turn requests, and one active turn per conversation"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0004"
down_revision = "gateway_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("parent_id", sa.Uuid(), nullable=True))
    op.add_column("turns", sa.Column("busy_conversation_id", sa.Uuid(), nullable=True))
    op.add_column("turns", sa.Column("sent_messages", sa.Integer(), server_default="0", nullable=False))
    op.execute(
        """
        UPDATE turns SET parent_id = earlier.parent_id FROM (
            SELECT id, lag(id) OVER (PARTITION BY conversation_id ORDER BY id) AS parent_id
            FROM turns WHERE conversation_id IS NOT NULL
        ) AS earlier WHERE turns.id = earlier.id AND earlier.parent_id IS NOT NULL
        """
    )
    op.create_index("ix_turns_parent", "turns", ["parent_id"])
    op.create_index("ux_turns_busy", "turns", ["busy_conversation_id"], unique=True)


def downgrade() -> None:
    op.drop_index("ux_turns_busy", "turns")
    op.drop_index("ix_turns_parent", "turns")
    op.drop_column("turns", "sent_messages")
    op.drop_column("turns", "busy_conversation_id")
    op.drop_column("turns", "parent_id")

"""Store all figures of ended turns in turn_usage, for reports"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0009"
down_revision = "gateway_0008"
branch_labels = None
depends_on = None

TOKENS = ("cached_tokens", "reasoning_tokens")
TIMES = ("queue_time", "model_time", "generation_time")


def upgrade() -> None:
    for name in TOKENS:
        op.add_column("turn_usage", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    for name in TIMES:
        op.add_column("turn_usage", sa.Column(name, sa.Float(), server_default="0", nullable=False))
    op.add_column("turn_usage", sa.Column("steps", sa.Integer(), server_default="0", nullable=False))
    op.add_column("turn_usage", sa.Column("conversation_id", sa.Uuid(), nullable=True))
    op.add_column("turn_usage", sa.Column("cached", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(
        """
        UPDATE turn_usage
        SET steps = turns.steps, conversation_id = turns.conversation_id, cached = turns.cached,
            key = coalesce(turn_usage.key, turns.key),
            cached_tokens = coalesce((usage->>'cached_tokens')::bigint, 0),
            reasoning_tokens = coalesce((usage->>'reasoning_tokens')::bigint, 0),
            queue_time = coalesce((usage->>'queue_time')::float8, 0),
            model_time = coalesce((usage->>'model_time')::float8, 0),
            generation_time = coalesce((usage->>'generation_time')::float8, 0)
        FROM turns WHERE turns.id = turn_usage.turn_id
        """
    )
    op.drop_index("ix_turns_owner_completed", "turns")
    op.drop_index("ix_turns_completed", "turns")
    op.drop_column("turns", "key")


def downgrade() -> None:
    op.add_column("turns", sa.Column("key", sa.Text(), nullable=True))
    op.create_index("ix_turns_completed", "turns", ["completed_at"])
    op.create_index("ix_turns_owner_completed", "turns", ["owner", "completed_at"])
    for name in ("cached", "conversation_id", "steps", *TIMES, *TOKENS):
        op.drop_column("turn_usage", name)

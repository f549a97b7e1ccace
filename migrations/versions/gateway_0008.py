"""Add API keys, the caller of a turn, and usage of turns"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0008"
down_revision = "gateway_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.JSONB(), nullable=True),
        sa.Column("models", postgresql.JSONB(), nullable=True),
        sa.Column("servers", postgresql.JSONB(), nullable=True),
        sa.Column("tools", postgresql.JSONB(), nullable=True),
        sa.Column("budget", postgresql.JSONB(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ux_api_keys_hash", "api_keys", ["hash"], unique=True)
    op.create_index("ux_api_keys_prefix", "api_keys", ["prefix"], unique=True)
    op.create_index("ix_api_keys_owner", "api_keys", ["owner", sa.literal_column("id DESC")])
    op.add_column("turns", sa.Column("caller", postgresql.JSONB(), nullable=True))
    op.create_table(
        "turn_usage",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("turn_id"),
    )
    figures = ["total_tokens", "cost_usd"]
    op.create_index("ix_turn_usage_owner", "turn_usage", ["owner", "at"], postgresql_include=figures)
    op.create_index(
        "ix_turn_usage_key", "turn_usage", ["key", "at"], postgresql_include=figures,
        postgresql_where=sa.text("key IS NOT NULL"),
    )
    op.create_index("ix_turn_usage_at", "turn_usage", ["at"])
    op.execute(
        """
        INSERT INTO turn_usage (turn_id, owner, model_name, status, prompt_tokens, completion_tokens, total_tokens,
                                cost_usd, error_code, at)
        SELECT id, owner, model_name, status, coalesce((usage->>'prompt_tokens')::bigint, 0),
               coalesce((usage->>'completion_tokens')::bigint, 0), coalesce((usage->>'total_tokens')::bigint, 0),
               cost_usd, error->>'code', completed_at
        FROM turns WHERE completed_at IS NOT NULL
        """
    )
    op.create_table(
        "turn_feedback",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("rating", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id"),
    )
    op.create_index("ix_turn_feedback_owner", "turn_feedback", ["owner", "at"])
    op.create_index("ix_turn_feedback_at", "turn_feedback", ["at"])
    op.create_index("ix_tool_calls_started", "tool_calls", ["started_at"])
    op.create_index("ix_audit_log_actor", "audit_log", ["actor", sa.literal_column("id DESC")])
    op.create_index("ix_audit_log_action", "audit_log", ["action", sa.literal_column("id DESC")])


def downgrade() -> None:
    op.drop_index("ix_audit_log_action", "audit_log")
    op.drop_index("ix_audit_log_actor", "audit_log")
    op.drop_index("ix_tool_calls_started", "tool_calls")
    op.drop_table("turn_feedback")
    op.drop_table("turn_usage")
    op.drop_column("turns", "caller")
    op.drop_table("api_keys")

"""Add the tasks of MCP servers that turns wait for"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0033"
down_revision = "gateway_0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tool_tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("task", postgresql.JSONB(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_tool_tasks_turn", "tool_tasks", ["turn_id"])
    op.create_index("ix_tool_tasks_due", "tool_tasks", ["due_at"], postgresql_where=sa.text("settled_at IS NULL"))
    op.add_column("turns", sa.Column("waits_for_task", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    op.drop_column("turns", "waits_for_task")
    op.drop_table("tool_tasks")

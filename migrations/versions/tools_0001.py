"""Create the tool server's tasks"""

import sqlalchemy as sa
from alembic import op

revision = "tools_0001"
down_revision = None
branch_labels = ("tools",)
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS tools")
    op.create_table(
        "tasks",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'completed')", name="ck_tasks_status"),
        sa.PrimaryKeyConstraint("user_id", "id"),
        schema="tools",
    )
    op.create_table(
        "task_counters",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("last_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
        schema="tools",
    )


def downgrade() -> None:
    op.drop_table("task_counters", schema="tools")
    op.drop_table("tasks", schema="tools")
    op.execute("DROP SCHEMA tools")

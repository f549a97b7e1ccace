"""Remember the results of calls with an idempotency key"""

import sqlalchemy as sa
from alembic import op

revision = "tools_0002"
down_revision = "tools_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_calls",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key"),
        schema="tools",
    )
    op.create_index("ix_task_calls_created_at", "task_calls", ["created_at"], schema="tools")


def downgrade() -> None:
    op.drop_table("task_calls", schema="tools")

"""Add tools that people define, and their secrets"""

import sqlalchemy as sa
from alembic import op

revision = "tools_0003"
down_revision = "tools_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.text("now()")
    op.create_table(
        "http_tools",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("draft", sa.JSON(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("published", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("published_origin", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("published_revision", sa.Integer(), nullable=True),
        sa.Column("source", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("name"),
        schema="tools",
    )
    op.create_table(
        "http_tool_secrets",
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("origin", "name"),
        schema="tools",
    )


def downgrade() -> None:
    op.drop_table("http_tool_secrets", schema="tools")
    op.drop_table("http_tools", schema="tools")

"""Add toolsets, and keys that are bound to one"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0032"
down_revision = "gateway_0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "toolsets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", JSONB(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.add_column("api_keys", sa.Column("toolset", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "toolset")
    op.drop_table("toolsets")

"""Add OAuth grants of MCP servers, and pending sign-ins"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0006"
down_revision = "gateway_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "oauth_grants",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("server", "owner", "url"),
    )
    op.create_table(
        "oauth_logins",
        sa.Column("ticket", sa.Text(), nullable=False),
        sa.Column("login", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("callback", sa.LargeBinary(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("ticket"),
    )


def downgrade() -> None:
    op.drop_table("oauth_logins")
    op.drop_table("oauth_grants")

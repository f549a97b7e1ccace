"""Order MCP servers by their creation, and keep requested scopes"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0019"
down_revision = "gateway_0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Existing servers get one time, so that they stay ordered by name.
    created_at = sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
    op.add_column("mcp_servers", created_at)
    op.add_column("oauth_grants", sa.Column("challenge", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("oauth_grants", "challenge")
    op.drop_column("mcp_servers", "created_at")

"""Compare the output schemas of tools"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0014"
down_revision = "gateway_0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mcp_tools", sa.Column("details", postgresql.JSONB(), nullable=True))
    op.add_column("mcp_tools", sa.Column("details_changed_to", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("mcp_tools", "details_changed_to")
    op.drop_column("mcp_tools", "details")

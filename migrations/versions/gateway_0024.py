"""Add the gateway tools of a key's requests"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0024"
down_revision = "gateway_0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("gateway_tools", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "gateway_tools")

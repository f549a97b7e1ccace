"""Add the time until which a worker refreshes an OAuth grant"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0013"
down_revision = "gateway_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("oauth_grants", sa.Column("refreshing_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("oauth_grants", "refreshing_until")

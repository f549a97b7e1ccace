"""Add the hash of a turn's request, by which retries find it"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0025"
down_revision = "gateway_0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("request_hash", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("turns", "request_hash")

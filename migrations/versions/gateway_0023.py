"""Add the summary of earlier turns that a turn made"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0023"
down_revision = "gateway_0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("history_summary", JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("turns", "history_summary")

"""Add the notes of conversations"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0022"
down_revision = "gateway_0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversations", sa.Column("notes", JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("conversations", "notes")

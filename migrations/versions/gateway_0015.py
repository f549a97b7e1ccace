"""Add the makers of keys"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0015"
down_revision = "gateway_0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("made_with", sa.Text(), nullable=True))
    op.create_index("ix_api_keys_made_with", "api_keys", ["made_with"])


def downgrade() -> None:
    op.drop_index("ix_api_keys_made_with", "api_keys")
    op.drop_column("api_keys", "made_with")

"""Add the mode of programs of a key's requests"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0031"
down_revision = "gateway_0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("code", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "code")

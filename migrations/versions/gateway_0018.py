"""Add the client's own id of a conversation"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0018"
down_revision = "gateway_0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversations", sa.Column("external_id", sa.Text(), nullable=True))
    op.create_index("ux_conversations_external_id", "conversations", ["owner", "external_id"], unique=True)


def downgrade() -> None:
    op.drop_index("ux_conversations_external_id", "conversations")
    op.drop_column("conversations", "external_id")

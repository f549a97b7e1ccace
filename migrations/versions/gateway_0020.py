"""Add the origin of turns and the source of results"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0020"
down_revision = "gateway_0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("origin_id", sa.Uuid(), nullable=True))
    op.add_column("turns", sa.Column("is_replay", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.add_column("tool_calls", sa.Column("source", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("tool_calls", "source")
    op.drop_column("turns", "is_replay")
    op.drop_column("turns", "origin_id")

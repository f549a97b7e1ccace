"""The name of the credential that began a turn, and indexes for usage over time"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0007"
down_revision = "gateway_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("key", sa.Text(), nullable=True))
    op.create_index("ix_turns_completed", "turns", ["completed_at"])
    op.create_index("ix_turns_owner_completed", "turns", ["owner", "completed_at"])


def downgrade() -> None:
    op.drop_index("ix_turns_owner_completed", "turns")
    op.drop_index("ix_turns_completed", "turns")
    op.drop_column("turns", "key")

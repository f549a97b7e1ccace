"""Add idempotency keys and stored cancellations to turns"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0002"
down_revision = "gateway_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("idempotency_key", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ux_turns_idempotency", "turns", ["owner", "idempotency_key"], unique=True)


def downgrade() -> None:
    op.drop_index("ux_turns_idempotency", table_name="turns")
    op.drop_column("turns", "cancel_requested")
    op.drop_column("turns", "idempotency_key")

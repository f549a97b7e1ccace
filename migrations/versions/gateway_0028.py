"""Store the trace context of turns"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0028"
down_revision = "gateway_0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("trace_context", JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("turns", "trace_context")

"""Add leases of workers and ownership epochs of turns

Also the error of a stale write.
"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0011"
down_revision = "gateway_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("epoch", sa.Integer(), server_default="0", nullable=False))
    op.add_column("turns", sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("workers", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_turn_usage_error", "turn_usage", ["error_code", "at"], postgresql_where=sa.text("error_code IS NOT NULL")
    )
    # GW001: the journal maps this SQLSTATE to TurnTakenOver.
    op.execute(
        """
        CREATE FUNCTION refuse_stale_write(turn_id uuid) RETURNS uuid LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'another worker owns this turn' USING ERRCODE = 'GW001', DETAIL = turn_id::text;
        END $$
        """
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION refuse_stale_write(uuid)")
    op.drop_index("ix_turn_usage_error", "turn_usage")
    op.drop_column("workers", "lease_until")
    op.drop_column("turns", "attempts")
    op.drop_column("turns", "epoch")

"""Add positions of turns, and tickets of waiting requests

The requests wait for a conversation.
"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0012"
down_revision = "gateway_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SEQUENCE turn_positions")
    # Release 0.1.0 inserts turns with a role that docs/application_role.sql has not granted this sequence yet.
    op.execute("GRANT USAGE ON SEQUENCE turn_positions TO PUBLIC")
    # Two steps: a column that is added with a volatile default rewrites the table.
    op.add_column("turns", sa.Column("position", sa.BigInteger(), nullable=True))
    op.execute("ALTER TABLE turns ALTER COLUMN position SET DEFAULT nextval('turn_positions')")
    op.execute("ALTER SEQUENCE turn_positions OWNED BY turns.position")
    op.create_index("ix_turns_position", "turns", ["conversation_id", sa.text("position NULLS FIRST"), "id"])
    op.create_table(
        "conversation_waiters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_conversation_waiters", "conversation_waiters", ["conversation_id", "id"])


def downgrade() -> None:
    op.drop_table("conversation_waiters")
    op.drop_index("ix_turns_position", "turns")
    op.drop_column("turns", "position")

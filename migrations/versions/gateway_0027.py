"""Add usage of passed-on requests, and owners of files"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0027"
down_revision = "gateway_0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turn_usage", sa.Column("endpoint", sa.Text(), nullable=True))
    op.create_table(
        "request_holds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_request_holds_owner", "request_holds", ["owner"])
    op.create_table(
        "upstream_objects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("estimate", postgresql.JSONB(), nullable=True),
        sa.Column("hold_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_upstream_objects_owner",
        "upstream_objects",
        ["owner", "kind", sa.text("created_at DESC"), sa.text("id DESC")],
    )
    op.create_index(
        "ix_upstream_objects_open",
        "upstream_objects",
        ["checked_at"],
        postgresql_where=sa.text("kind = 'batch' AND settled_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("upstream_objects")
    op.drop_table("request_holds")
    op.drop_column("turn_usage", "endpoint")

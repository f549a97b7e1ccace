"""Add the terms of turns that the application finds, for searches

Terms of older turns are added by `SearchIndexer`, in batches, because they take minutes for a large table.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0017"
down_revision = "gateway_0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("search_terms", postgresql.TSVECTOR(), nullable=True))
    op.create_index("ix_turns_search_terms", "turns", ["search_terms"], postgresql_using="gin")
    op.create_index(
        "ix_turns_without_terms",
        "turns",
        ["owner", sa.text("id DESC")],
        postgresql_where=sa.text("search_terms IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_turns_without_terms", "turns")
    op.drop_index("ix_turns_search_terms", "turns")
    op.drop_column("turns", "search_terms")

"""Index the words of turns together with their owners and periods

A large table stays readable and writable while PostgreSQL builds the index, outside of a transaction. A build that was
interrupted leaves an index that is not valid, so it begins anew.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "gateway_0034"
down_revision = "gateway_0033"
branch_labels = None
depends_on = None

OWNER = sa.text("(ARRAY[owner])")
PERIOD = sa.text("(ARRAY[owner || left(id::text, 4)])")


def upgrade() -> None:
    replace_index("ix_turns_search", "ix_turns_period_search", [OWNER, PERIOD, "search"])


def downgrade() -> None:
    replace_index("ix_turns_period_search", "ix_turns_search", ["search"])


def replace_index(old: str, new: str, columns: list[str | sa.TextClause]) -> None:
    if context.is_offline_mode():  # the script of an empty database, which is one transaction
        op.create_index(new, "turns", columns, postgresql_using="gin")
        op.drop_index(old, "turns")
        return
    with op.get_context().autocommit_block():
        op.drop_index(new, "turns", if_exists=True, postgresql_concurrently=True)
        op.create_index(new, "turns", columns, postgresql_using="gin", postgresql_concurrently=True)
        op.drop_index(old, "turns", if_exists=True, postgresql_concurrently=True)

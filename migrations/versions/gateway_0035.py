"""Index the words of turns together with their owners and periods

As in gateway_0034, a large table stays readable and writable while PostgreSQL builds the index. A build that was
interrupted begins anew.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "gateway_0035"
down_revision = "gateway_0034"
branch_labels = None
depends_on = None

OWNER = sa.text("(ARRAY[owner])")
PERIOD = sa.text("(ARRAY[owner || left(id::text, 4)])")


def upgrade() -> None:
    replace_index("ix_turns_owner_search", "ix_turns_period_search", [OWNER, PERIOD, "search"])


def downgrade() -> None:
    replace_index("ix_turns_period_search", "ix_turns_owner_search", [OWNER, "search"])


def replace_index(old: str, new: str, columns: list[str | sa.TextClause]) -> None:
    if context.is_offline_mode():  # the script of an empty database, which is one transaction
        op.create_index(new, "turns", columns, postgresql_using="gin")
        op.drop_index(old, "turns")
        return
    with op.get_context().autocommit_block():
        op.drop_index(new, "turns", if_exists=True, postgresql_concurrently=True)
        op.create_index(new, "turns", columns, postgresql_using="gin", postgresql_concurrently=True)
        op.drop_index(old, "turns", if_exists=True, postgresql_concurrently=True)

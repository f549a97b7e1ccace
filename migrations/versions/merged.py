"""Merge the branches, so that `alembic upgrade head` is one target

It runs no SQL. `migrations/env.py` keeps it out of the version table, which lists the last revision of each branch, so a
new revision of a branch needs no change here. It continues its branch, for example `gateway_0002` continues
`gateway_0001`, and never this revision.
"""

from gateway.store.migrations import list_heads

revision = "merged"
down_revision = tuple(sorted(list_heads()))
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass

"""Store one search vector a turn instead of two

Release 0.1.0 finds turns with `search`, which the application fills now. A trigger fills it for turns whose words are
those of PostgreSQL's parser: those that run, those of release 0.1.0, and long ones until `SearchIndexer` reaches them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "gateway_0021"
down_revision = "gateway_0020"
branch_labels = None
depends_on = None

_WORDS = "to_tsvector('simple'::regconfig, \"left\"({0}prompt, 50000) || ' ' || \"left\"({0}response, 50000))"


def upgrade() -> None:
    op.execute("ALTER TABLE turns ALTER COLUMN search DROP EXPRESSION")
    op.add_column("turns", sa.Column("has_terms", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.drop_index("ix_turns_without_terms", "turns")
    op.drop_index("ix_turns_search_terms", "turns")
    op.drop_column("turns", "search_terms")
    op.create_index(
        "ix_turns_without_terms", "turns", ["owner", sa.text("id DESC")], postgresql_where=sa.text("NOT has_terms")
    )
    op.execute(
        f"""CREATE FUNCTION set_search_words() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.search = {_WORDS.format("NEW.")};
            RETURN NEW;
        END $$"""
    )
    op.execute(
        "CREATE TRIGGER turns_search_words BEFORE INSERT OR UPDATE OF prompt, response ON turns"
        " FOR EACH ROW WHEN (NOT NEW.has_terms) EXECUTE FUNCTION set_search_words()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER turns_search_words ON turns")
    op.execute("DROP FUNCTION set_search_words")
    op.drop_index("ix_turns_without_terms", "turns")
    op.drop_column("turns", "has_terms")
    op.drop_column("turns", "search")
    words = sa.Computed(_WORDS.format(""), persisted=True)
    op.add_column("turns", sa.Column("search", postgresql.TSVECTOR(), words, nullable=True))
    op.create_index("ix_turns_search", "turns", ["search"], postgresql_using="gin")
    op.add_column("turns", sa.Column("search_terms", postgresql.TSVECTOR(), nullable=True))
    op.create_index("ix_turns_search_terms", "turns", ["search_terms"], postgresql_using="gin")
    op.create_index(
        "ix_turns_without_terms",
        "turns",
        ["owner", sa.text("id DESC")],
        postgresql_where=sa.text("search_terms IS NULL"),
    )

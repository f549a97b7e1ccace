"""Chain the entries of the audit log by hash"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0016"
down_revision = "gateway_0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit_log", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.add_column("audit_log", sa.Column("hash", sa.Text(), nullable=True))
    op.execute(
        """
        CREATE FUNCTION audit_log_entry(entry audit_log) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT jsonb_build_object(
            'seq', entry.seq, 'id', entry.id, 'actor', entry.actor, 'action', entry.action, 'subject', entry.subject,
            'detail', entry.detail, 'at', to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        )::text $$
        """
    )
    op.execute(
        """
        CREATE FUNCTION audit_log_hash(previous text, entry audit_log) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT encode(sha256(convert_to(coalesce(previous, repeat('0', 64)) || audit_log_entry(entry), 'UTF8')), 'hex')
        $$
        """
    )
    op.execute("ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only")
    op.execute(
        """
        DO $$
        DECLARE entry audit_log; previous text; number bigint = 0;
        BEGIN
            FOR entry IN SELECT * FROM audit_log ORDER BY id LOOP
                number = number + 1;
                entry.seq = number;
                previous = audit_log_hash(previous, entry);
                UPDATE audit_log SET seq = number, hash = previous WHERE id = entry.id;
            END LOOP;
        END $$
        """
    )
    op.execute("ALTER TABLE audit_log ENABLE TRIGGER audit_log_append_only")
    op.create_index("ux_audit_log_seq", "audit_log", ["seq"], unique=True)
    op.execute(
        """
        CREATE FUNCTION audit_log_chain() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE last record;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('audit_log chain', 0));
            SELECT seq, hash INTO last FROM audit_log WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1;
            NEW.seq = coalesce(last.seq, 0) + 1;
            NEW.hash = audit_log_hash(last.hash, NEW);
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER audit_log_chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_chain()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER audit_log_chain ON audit_log")
    op.execute("DROP FUNCTION audit_log_chain()")
    op.execute("DROP FUNCTION audit_log_hash(text, audit_log)")
    op.execute("DROP FUNCTION audit_log_entry(audit_log)")
    op.drop_index("ux_audit_log_seq", "audit_log")
    op.drop_column("audit_log", "hash")
    op.drop_column("audit_log", "seq")

-- The role that `agent-gateway serve` and `tools-server` run as, where `agent-gateway db upgrade` runs as the tables' owner.
-- It may read and write, but neither change the schema nor, in the audit log, anything that stands there. Run this as the
-- owner after each upgrade; then let the role in: ALTER ROLE gateway_app LOGIN PASSWORD '…'.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'gateway_app') THEN
        CREATE ROLE gateway_app NOLOGIN;
    END IF;
END $$;
GRANT USAGE ON SCHEMA public, tools TO gateway_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, tools TO gateway_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public, tools TO gateway_app;
REVOKE UPDATE, DELETE ON audit_log FROM gateway_app;
REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM gateway_app;

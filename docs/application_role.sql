-- Creates a restricted role for `agent-gateway serve` and `tools-server`. It can read and write data, but it can neither change
-- the schema nor change or delete rows of the audit log. `agent-gateway db upgrade` runs as the owner of the tables.
-- Run this file as the owner after each upgrade. Then permit logins: ALTER ROLE gateway_app LOGIN PASSWORD '…'.
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

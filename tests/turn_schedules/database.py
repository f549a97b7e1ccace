"""The database of a schedule, with a controlled clock and refusals."""

from dataclasses import dataclass
from pathlib import Path

import asyncpg

from gateway_runtime.postgres.url import list_hosts, plain_dsn

INSTALL = """
CREATE SCHEMA clock;
CREATE TABLE clock.clock (at timestamptz NOT NULL);
INSERT INTO clock.clock VALUES (pg_catalog.now());
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM clock.clock';
CREATE TABLE clock.refusal (sqlstate text NOT NULL, part text NOT NULL);
CREATE FUNCTION clock.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE refusal clock.refusal;
BEGIN
    SELECT * INTO refusal FROM clock.refusal WHERE position(part IN to_jsonb(NEW)::text) > 0 LIMIT 1;
    IF FOUND THEN RAISE EXCEPTION 'refused' USING ERRCODE = refusal.sqlstate; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON turns FOR EACH ROW EXECUTE FUNCTION clock.refuse();
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON turn_events FOR EACH ROW EXECUTE FUNCTION clock.refuse();
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tool_calls FOR EACH ROW EXECUTE FUNCTION clock.refuse();
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION clock.refuse();
"""
"""The clock of the database, and a trigger that refuses writes."""


@dataclass(frozen=True)
class ScheduleDatabase:
    """A migrated database with `INSTALL`, and the directory of its server's socket."""

    url: str
    sockets: Path

    @property
    def name(self) -> str:
        return plain_dsn(self.url).split("?")[0].rpartition("/")[2]

    @classmethod
    async def prepare(cls, url: str) -> "ScheduleDatabase":
        [(sockets, _)] = list_hosts(url)
        database = cls(url, Path(sockets))
        connection = await asyncpg.connect(plain_dsn(url))
        try:
            await connection.execute(INSTALL)
            await connection.execute(f"ALTER DATABASE {database.name} SET search_path = clock, public, pg_catalog")
        finally:
            await connection.close()
        return database

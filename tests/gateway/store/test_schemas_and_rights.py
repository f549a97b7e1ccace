"""Tests of databases with another schema or encoding, or too few rights."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import uuid4

import asyncpg
import pytest

from gateway.config import ConfigError, load_settings
from gateway.server.services import prepare_schema
from gateway.simulator import Simulator
from gateway.store import migrations
from gateway.store.database import raise_database_error
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from tests.conftest import TEMPLATE
from tests.postgres_faults import execute
from tests.stack import serve_gateway
from tools_server import migrations as tools_migrations

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
async def owned_url(postgres: EmbeddedPostgres) -> AsyncGenerator[str]:
    """The address of an empty database, as its owner without other rights."""
    name = f"owned_{uuid4().hex}"
    admin = postgres.build_url("postgres")
    await execute(admin, f"CREATE ROLE {name} LOGIN", f"CREATE DATABASE {name} OWNER {name}")
    yield postgres.build_url(name).replace("//postgres@", f"//{name}@")
    await execute(admin, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}")


async def list_tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    rows = await connection.fetch("SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^pg_|^information'")
    await connection.close()
    return {row["schemaname"] for row in rows}


@pytest.mark.parametrize(
    ("parameter", "schema"),
    [
        ("schema=agents", "agents"),
        ("options=-csearch_path%3DMy%5C%20Agents", None),
        ('schema=My Agents"2', 'My Agents"2'),
        ("currentSchema=agents,public", "agents"),
        ("options=-c%20search_path%3Dagents", "agents"),
    ],
)
async def test_gateway_runs_in_another_schema(
    owned_url: str, simulator: Simulator, tools_url: str, parameter: str, schema: str | None
) -> None:
    settings = load_settings(_env_file=None, database_url=f"{owned_url}&{parameter}", migrate_on_start=True)
    url = settings.postgres_url
    assert url is not None
    if schema is None:  # not a valid list of names
        with pytest.raises(ConfigError, match=r"^DATABASE_URL: .* invalid value for parameter \"search_path\""):
            await prepare_schema(settings, url)
        return
    await execute(owned_url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "DROP SCHEMA public")
    await prepare_schema(settings, url)
    assert await list_tables(owned_url) == {schema, "tools"}
    assert await migrations.list_missing_migrations(url) == []
    await tools_migrations.upgrade_when_available(url)
    async with serve_gateway(url, simulator, tools_url) as gateway:
        reply = await gateway.chat_stream("What is 17 * 23?")
        assert reply.is_done
        found = await gateway.get("/search?query=17&limit=10")
        assert found.status == 200
        assert len(found.body["items"]) == 1
        assert (await gateway.get("/ready")).status == 200


async def test_schema_of_the_role_is_used(owned_url: str, postgres: EmbeddedPostgres) -> None:
    name = owned_url.partition("//")[2].partition("@")[0]
    await execute(postgres.build_url("postgres"), f"ALTER ROLE {name} SET search_path = agents")
    await asyncio.to_thread(migrations.upgrade_schema, owned_url)
    assert await list_tables(owned_url) == {"agents", "tools"}
    assert await migrations.list_missing_migrations(owned_url) == []


async def test_latin1_database_is_one_line_at_the_start(postgres: EmbeddedPostgres) -> None:
    admin = postgres.build_url("postgres")
    await execute(admin, "CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        settings = load_settings(_env_file=None, database_url=postgres.build_url("latin1"), migrate_on_start=True)
        with pytest.raises(
            ConfigError, match=r"^DATABASE_URL: \S+/latin1 has the encoding LATIN1, .* UTF8: CREATE"
        ) as error:
            await prepare_schema(settings, settings.postgres_url or "")
        assert "\n" not in str(error.value)
    finally:
        await execute(admin, "DROP DATABASE latin1 WITH (FORCE)")


@pytest.mark.parametrize(
    ("rights", "reason"),
    [
        ([], "permission denied for schema public"),
        (["GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"], "permission denied for table"),
        (["GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"], "permission denied for table"),
        (["REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"], "permission denied for database"),
        (["REVOKE USAGE ON SCHEMA public FROM PUBLIC"], "permission denied|not up to date"),
    ],
)
async def test_role_without_rights_is_one_line_at_the_start(
    postgres: EmbeddedPostgres, rights: list[str], reason: str
) -> None:
    role = f"weak_{uuid4().hex}"
    admin = postgres.build_url("postgres")
    source = "template1" if not rights else TEMPLATE
    await execute(admin, f"CREATE ROLE {role} LOGIN", f"CREATE DATABASE {role} TEMPLATE {source}")
    try:
        await execute(postgres.build_url(role), *(right.format(role=role, database=role) for right in rights))
        url = postgres.build_url(role).replace("//postgres@", f"//{role}@")
        settings = load_settings(_env_file=None, database_url=url, migrate_on_start=not rights)
        with pytest.raises(ConfigError, match=rf"^DATABASE_URL: .*({reason})") as error:
            await prepare_schema(settings, settings.postgres_url or "")
        assert "\n" not in str(error.value)
    finally:
        await execute(admin, f"DROP DATABASE {role} WITH (FORCE)", f"DROP ROLE {role}")


async def test_migration_without_rights_is_one_line(postgres: EmbeddedPostgres, owned_url: str) -> None:
    await execute(owned_url, "CREATE SCHEMA agents")
    name = owned_url.partition("//")[2].partition("@")[0]
    other = f"other_{uuid4().hex}"
    admin = postgres.build_url("postgres")
    await execute(admin, f"CREATE ROLE {other} LOGIN")
    try:
        url = f"{owned_url.replace(f'//{name}@', f'//{other}@')}&schema=agents"
        refusal = r"permission denied|no schema has been selected"
        with pytest.raises(ConfigError, match=refusal), raise_database_error(url):
            await asyncio.to_thread(migrations.upgrade_schema, url)
    finally:
        await execute(admin, f"DROP ROLE {other}")

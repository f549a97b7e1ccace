"""Tests of addresses of Postgres as people write them, with TLS."""

import asyncio
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from gateway.config import ConfigError, load_settings
from gateway.store.database import Database, wait_until_ready
from gateway_runtime.postgres.url import plain_dsn
from tests.tcp_postgres import PASSWORD, TcpPostgres, serve_tcp_postgres

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ESCAPED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def postgres_tls() -> Generator[TcpPostgres]:
    with serve_tcp_postgres() as server:
        asyncio.run(_create_databases(server))
        yield server


async def _create_databases(server: TcpPostgres) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    literal = PASSWORD.replace("'", "''")
    for statement in (
        f"CREATE ROLE gw LOGIN PASSWORD '{literal}'",
        "CREATE DATABASE plain OWNER gw",
        'CREATE DATABASE "gw-db" OWNER gw',
        "CREATE DATABASE latin OWNER gw ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        "CREATE DATABASE gw OWNER gw",
    ):
        await connection.execute(statement)
    await connection.close()


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL", "POSTGRES_HOST", "POSTGRES_PASSWORD", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


async def fetch_session(url: str, expression: str = "current_database()") -> Any:
    """Evaluate an expression over SQLAlchemy and over asyncpg, which must agree."""
    await wait_until_ready(url, 5)
    database = Database(url, pool_size=1)
    try:
        [[over_sqlalchemy]] = await database.fetch_rows(f"SELECT {expression}")
        connection = await database.connector.connect()
        over_asyncpg = await connection.fetchval(f"SELECT {expression}")
        await connection.close()
    finally:
        await database.close()
    assert over_sqlalchemy == over_asyncpg
    return over_sqlalchemy


IS_ENCRYPTED = "encrypted"
"""Not SQL: whether the connections use TLS."""
AT = "gw:{password}@127.0.0.1:{port}"
TLS = "gw:{password}@127.0.0.1:{tls_port}"
ADDRESSES: dict[str, tuple[str, str, object]] = {
    "no parameter": (f"postgresql://{AT}/plain", "current_database()", "plain"),
    "scheme postgres": (f"postgres://{AT}/plain", "current_database()", "plain"),
    "scheme with psycopg": (f"postgresql+psycopg://{AT}/plain", "current_database()", "plain"),
    "scheme with psycopg2": (f"postgresql+psycopg2://{AT}/plain", "current_database()", "plain"),
    "scheme in capitals": (f"PostgreSQL://{AT}/plain", "current_database()", "plain"),
    "jdbc": ("jdbc:postgresql://127.0.0.1:{port}/plain?user=gw&password={password}", "current_user", "gw"),
    "psql and quotes": (f"psql 'postgresql://{AT}/plain'", "current_user", "gw"),
    "double quotes and a line end": (f'"postgresql://{AT}/plain"\n', "current_user", "gw"),
    "unescaped password": ("postgresql://gw:{raw}@127.0.0.1:{port}/plain", "current_user", "gw"),
    "name with a dash": (f"postgresql://{AT}/gw-db", "current_database()", "gw-db"),
    "no database": (f"postgresql://{AT}/", "current_database()", "gw"),
    "no database, no slash": (f"postgresql://{AT}", "current_database()", "gw"),
    "disable": (f"postgresql://{AT}/plain?sslmode=disable", IS_ENCRYPTED, False),
    "allow": (f"postgresql://{AT}/plain?sslmode=allow", "current_user", "gw"),
    "prefer": (f"postgresql://{AT}/plain?sslmode=prefer", IS_ENCRYPTED, True),
    "require": (f"postgresql://{TLS}/plain?sslmode=require", IS_ENCRYPTED, True),
    "require in capitals": (f"postgresql://{AT}/plain?sslmode=REQUIRE", IS_ENCRYPTED, True),
    "ssl=require": (f"postgresql://{TLS}/plain?ssl=require", IS_ENCRYPTED, True),
    "ssl=true": (f"postgresql://{TLS}/plain?ssl=true", IS_ENCRYPTED, True),
    "ssl=false": (f"postgresql://{AT}/plain?ssl=false", IS_ENCRYPTED, False),
    "no-verify": (f"postgresql://{TLS}/plain?sslmode=no-verify", IS_ENCRYPTED, True),
    "verify-ca": (f"postgresql://{TLS}/plain?sslmode=verify-ca&sslrootcert={{cert}}", IS_ENCRYPTED, True),
    "verify-full": (f"postgresql://{TLS}/plain?sslmode=verify-full&sslrootcert={{cert}}", IS_ENCRYPTED, True),
    "verify_full": (f"postgresql://{TLS}/plain?sslmode=verify_full&sslrootcert={{cert}}", IS_ENCRYPTED, True),
    "require and a root": (f"postgresql://{TLS}/plain?sslmode=require&sslrootcert={{cert}}", IS_ENCRYPTED, True),
    "neon": (f"postgresql://{TLS}/plain?sslmode=require&channel_binding=require", IS_ENCRYPTED, True),
    "channel_binding alone": (f"postgresql://{TLS}/plain?channel_binding=require", IS_ENCRYPTED, True),
    "application_name": (
        f"postgresql://{AT}/plain?application_name=mine",
        "current_setting('application_name')",
        "mine",
    ),
    "ApplicationName": (f"postgresql://{AT}/plain?ApplicationName=mine", "current_setting('application_name')", "mine"),
    "connect_timeout": (f"postgresql://{AT}/plain?connect_timeout=10", "current_user", "gw"),
    "options": (
        f"postgresql://{AT}/plain?options=-csearch_path%3Dpg_catalog%20-c%20work_mem%3D1MB",
        "current_setting('search_path') || current_setting('work_mem')",
        "pg_catalog1MB",
    ),
    "long options": (f"postgresql://{AT}/plain?options=--work-mem%3D2MB", "current_setting('work_mem')", "2MB"),
    "options with an escaped space": (
        f"postgresql://{AT}/plain?options=-c%20search_path%3Da,%5C%20b",
        "current_setting('search_path')",
        "a, b",
    ),
    "search_path": (f"postgresql://{AT}/plain?search_path=a,b", "current_setting('search_path')", "a,b"),
    "prisma": (
        f"postgresql://{AT}/plain?schema=My-Schema&connection_limit=3",
        "current_setting('search_path')",
        '"My-Schema"',
    ),
    "currentSchema": (f"postgresql://{AT}/plain?currentSchema=a", "current_setting('search_path')", "a"),
    "statement_timeout": (
        f"postgresql://{AT}/plain?statement_timeout=1234",
        "current_setting('statement_timeout')",
        "1234ms",
    ),
    "target_session_attrs": (f"postgresql://{AT}/plain?target_session_attrs=read-write", "current_user", "gw"),
    "targetServerType": (f"postgresql://{AT}/plain?targetServerType=primary", "current_user", "gw"),
    "several hosts": ("postgresql://gw:{password}@127.0.0.1:{closed},127.0.0.1:{port}/plain", "current_user", "gw"),
    "several hosts as parameters": (
        "postgresql:///plain?host=127.0.0.1,127.0.0.1&port={closed},{port}&user=gw&password={password}",
        "current_user",
        "gw",
    ),
    "hostaddr": ("postgresql://gw:{password}@/plain?hostaddr=127.0.0.1&port={port}", "current_user", "gw"),
    "directory as a parameter": ("postgresql://postgres@/plain?host={sockets}&port=5432", "current_user", "postgres"),
    "directory as the host": ("postgresql://postgres@{quoted_sockets}:5432/plain", "current_user", "postgres"),
    "directory with TLS": ("postgresql://postgres@/plain?host={sockets}&sslmode=require", "current_user", "postgres"),
    "IPv6": ("postgresql://gw:{password}@[::1]:{port}/plain", "current_user", "gw"),
    "IPv6 as a parameter": (
        "postgresql:///plain?host=::1&port={port}&user=gw&password={password}",
        "current_user",
        "gw",
    ),
    "localhost": ("postgresql://gw:{password}@localhost:{port}/plain", "current_user", "gw"),
    "options of drivers": (
        f"postgresql://{AT}/plain?prepared_statement_cache_size=0&keepalives=1&client_encoding=UTF8&gssencmode=disable",
        "current_user",
        "gw",
    ),
    "empty parameters": (f"postgresql://{AT}/plain?sslmode=&options=&", "current_user", "gw"),
}


def fill(text: str, server: TcpPostgres, **more: object) -> str:
    values = {
        "password": ESCAPED,
        "raw": PASSWORD,
        "port": server.port,
        "tls_port": server.tls_port,
        "closed": 9,
        "cert": server.certificate.cert,
        "sockets": server.paths.sockets,
        "quoted_sockets": quote(str(server.paths.sockets), safe=""),
        **more,
    }
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text)


@pytest.mark.parametrize("name", ADDRESSES)
async def test_address_leads_to_the_database(postgres_tls: TcpPostgres, name: str) -> None:
    text, expression, expected = ADDRESSES[name]
    url = load_settings(_env_file=None, database_url=fill(text, postgres_tls)).postgres_url
    assert url is not None
    postgres_tls.uses_tls.clear()
    result = await fetch_session(url, "1" if expression == IS_ENCRYPTED else expression)
    if expression == IS_ENCRYPTED:
        assert set(postgres_tls.uses_tls) == {expected}
    else:
        assert result == expected
    connection = await asyncpg.connect(plain_dsn(url))  # without the connector
    await connection.close()


@pytest.mark.parametrize(
    ("host", "user", "password"),
    [
        ("127.0.0.1", "gw", PASSWORD),
        ("::1", "gw", PASSWORD),
        ("[::1]", "gw", PASSWORD),
        ("127.0.0.1:{closed}, ::1", "gw", PASSWORD),
        ("127.0.0.1:{port}", "gw", PASSWORD),
        ("{sockets}", "postgres", None),
    ],
)
async def test_single_settings_lead_to_the_database(
    postgres_tls: TcpPostgres, host: str, user: str, password: str | None
) -> None:
    settings = load_settings(
        _env_file=None,
        postgres_host=fill(host, postgres_tls),
        postgres_port=5432 if "sockets" in host else postgres_tls.port,
        postgres_user=user,
        postgres_password=password,
        postgres_db="gw-db",
    )
    assert settings.postgres_url is not None
    assert await fetch_session(settings.postgres_url) == "gw-db"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"postgresql://{AT}/plain?sslmode=verify-full", "certificate verify failed"),
        (f"postgresql://{AT}/plain?sslmode=verify-full&sslrootcert=system", "certificate verify failed"),
        ("postgresql://gw:{password}@127.0.0.2:{port}/plain?sslmode=require", "cannot be reached: [Errno 111]"),
        (f"postgresql://{TLS}/plain?sslmode=disable", "cannot be reached: "),
        (f"postgresql://{AT}/missing", 'database "missing" does not exist'),
        ("postgresql://gw:{password}x@127.0.0.1:{port}/plain", "password authentication failed"),
        (f"postgresql://{AT}/plain?options=-cno_such_setting%3D1", 'parameter "no_such_setting"'),
        (f"postgresql://{AT}/plain?work_mem=much", 'invalid value for parameter "work_mem"'),
        (f"postgresql://{AT}/latin", "has the encoding LATIN1, and the gateway needs UTF8"),
    ],
)
async def test_unusable_database_is_one_line_without_the_password(
    postgres_tls: TcpPostgres, text: str, reason: str
) -> None:
    url = load_settings(_env_file=None, database_url=fill(text, postgres_tls)).postgres_url
    assert url is not None
    with pytest.raises(ConfigError) as refused:
        await wait_until_ready(url, 0.1)
    message = str(refused.value)
    assert message.startswith("DATABASE_URL: postgresql://gw:***@127.0.0.")
    assert reason in message
    assert "\n" not in message
    assert not any(part in message for part in (PASSWORD, ESCAPED, "p@ss", "w:o"))


async def test_certificate_for_another_name_is_refused_only_by_verify_full(postgres_tls: TcpPostgres) -> None:
    other = f"postgresql://gw:{ESCAPED}@[::1]:{postgres_tls.tls_port}/plain?sslrootcert={postgres_tls.certificate.cert}"
    assert await fetch_session(f"{other}&sslmode=verify-ca") == "plain"
    with pytest.raises(ConfigError, match="certificate verify failed"):
        await wait_until_ready(f"{other}&sslmode=verify-full", 0.1)

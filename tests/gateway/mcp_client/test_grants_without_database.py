"""Tests of MCP servers without the database of their sign-ins.

The database refuses, stalls or is stopped.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyUrl
from sqlalchemy import make_url

from gateway.config import Settings
from gateway.domain.errors import StorageUnavailable
from gateway.domain.grants import Grant
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox
from gateway.store import migrations
from gateway.store.database import Database
from gateway.store.encryption import Cipher
from gateway.store.mcp_servers import ServerStore
from gateway.store.oauth_grants import PostgresGrantStore
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.connections import ConnectionTimeouts
from gateway_runtime.postgres.url import plain_dsn
from tests.conftest import FAST_POSTGRES_SETTINGS
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.gateway.mcp_client.test_toolbox import ERAS, call_tool, call_until_answered, get_text
from tests.stack import find_free_port, serve_asgi

CIPHER = Cipher("a secret of the tests")
OPEN_TRANSACTIONS_QUERY = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND state LIKE 'idle in transaction%'"
)


class CountingGrantStore(PostgresGrantStore):
    """Counts the look-ups."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, CIPHER)
        self.lookups = 0

    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        self.lookups += 1
        return await super().get_grant(server, owner, url)

    def begin_transaction(self, server: str, owner: str, url: str) -> Any:
        self.lookups += 1
        return super().begin_transaction(server, owner, url)


@asynccontextmanager
async def connect_toolbox(
    database_url: str, *servers: ServerConfig, limits: ConnectionTimeouts | None = None, **options: float
) -> AsyncGenerator[tuple[McpToolbox, Any]]:
    """Connect a toolbox whose sign-ins are in this database."""
    database = Database(database_url, limits=limits)
    grants = CountingGrantStore(database)
    definitions = ServerStore(database, CIPHER)
    toolbox = McpToolbox(list(servers), Settings(_env_file=None), definitions, grants, **options)  # type: ignore[call-arg]
    await toolbox.connect_servers()
    await toolbox.wait_until_connected(30.0)
    try:
        yield toolbox, grants
    finally:
        await toolbox.disconnect_servers()
        await database.close()


@asynccontextmanager
async def refuse_connections(postgres: embedded_postgres.EmbeddedPostgres, database_url: str) -> AsyncGenerator[None]:
    """Cut all connections to a database, and refuse new ones.

    New connections are possible again at the end of the block.
    """
    name = str(make_url(database_url).database)
    await set_connections(postgres, name, allowed=False)
    try:
        yield
    finally:
        await set_connections(postgres, name, allowed=True)


async def set_connections(postgres: embedded_postgres.EmbeddedPostgres, name: str, *, allowed: bool) -> None:
    connection = await asyncpg.connect(plain_dsn(postgres.build_url("postgres")))
    try:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
        if not allowed:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            await connection.execute(query, name)
    finally:
        await connection.close()


@pytest.fixture(params=ERAS, ids=list(ERAS))
async def trial(request: pytest.FixtureRequest) -> AsyncGenerator[ServerConfig]:
    """A server without authentication."""
    async with serve_asgi(TrialServer().create_app(modern=ERAS[request.param])) as address:
        yield ServerConfig(name="trial", url=f"{address}/mcp", prefix="")


@pytest.fixture
async def vault() -> AsyncGenerator[OAuthMcpServer]:
    port = find_free_port()
    server = OAuthMcpServer(port)
    async with serve_asgi(server.create_app(), port):
        yield server


async def store_grant(database_url: str, vault: OAuthMcpServer) -> OAuthToken:
    """Store a sign-in of all users at the protected server."""
    client = OAuthClientInformationFull(
        client_id="gateway", token_endpoint_auth_method="none", redirect_uris=[AnyUrl("http://127.0.0.1/callback")]
    )
    await vault.register_client(client)
    token = vault._issue_tokens("gateway", ["read"], vault.url)
    database = Database(database_url)
    async with PostgresGrantStore(database, CIPHER).begin_transaction("vault", "", vault.url) as transaction:
        transaction.grant = Grant(
            client=client.model_dump(mode="json", exclude_none=True),
            access_token=token.access_token,
            refresh_token=token.refresh_token,
            expires_at=time.time() + (token.expires_in or 0),
            scope="read",
            token_endpoint=f"{vault.url.removesuffix('/mcp')}/token",
            resource=vault.url,
        )
    await database.close()
    return token


async def read_grant(database_url: str, vault: OAuthMcpServer) -> Grant | None:
    database = Database(database_url)
    try:
        return await PostgresGrantStore(database, CIPHER).get_grant("vault", "", vault.url)
    except StorageUnavailable:
        return None
    finally:
        await database.close()


async def test_calls_read_no_grants(database_url: str, trial: ServerConfig) -> None:
    async with connect_toolbox(database_url, trial) as (toolbox, grants):
        await asyncio.gather(*(call_tool(toolbox, "echo", text="hi") for _ in range(50)))
        assert grants.lookups == 1


async def test_signed_in_calls_read_no_grants(database_url: str, vault: OAuthMcpServer) -> None:
    await store_grant(database_url, vault)
    async with connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url)) as (toolbox, grants):
        await asyncio.gather(*(call_tool(toolbox, "vault_whose_vault") for _ in range(50)))
        assert grants.lookups == 1


async def test_server_stays_up_while_postgres_is_stopped(
    trial: ServerConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("stopped")
    for path in (directory, *list(directory.parents)[:2]):
        path.chmod(0o755)  # Postgres may run as a user of its own
    server = await asyncio.to_thread(embedded_postgres.find_cluster, Path(directory), FAST_POSTGRES_SETTINGS)
    await asyncio.to_thread(server.ensure_running)
    try:
        await asyncio.to_thread(migrations.upgrade_schema, server.build_url())
        async with connect_toolbox(server.build_url(), trial) as (toolbox, _):
            (before,) = toolbox.list_server_statuses()
            await asyncio.to_thread(server.stop_if_started_here)
            toolbox.on_grants_changed()  # all grants must be read again, and cannot be
            for _ in range(3):
                assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
            (after,) = toolbox.list_server_statuses()
            assert (before.state, after.state, after.since) == ("up", "up", before.since)
            async with connect_toolbox(server.build_url(), trial) as (started_meanwhile, _):
                await call_until_answered(started_meanwhile, "echo", "hi")
    finally:
        server.stop_if_started_here()


async def test_server_stays_up_while_the_table_of_grants_is_locked(
    database_url: str, db: asyncpg.Connection, trial: ServerConfig
) -> None:
    async with connect_toolbox(database_url, trial) as (toolbox, _), db.transaction():
        await db.execute("LOCK TABLE oauth_grants IN ACCESS EXCLUSIVE MODE")
        toolbox.on_grants_changed()
        async with asyncio.timeout(30):
            results = await asyncio.gather(*(call_tool(toolbox, "echo", text="hi") for _ in range(20)))
        assert {result.outcome for result in results} == {"ok"}
        assert toolbox.list_server_statuses()[0].state == "up"


async def test_cached_token_serves_while_the_database_refuses(
    postgres: embedded_postgres.EmbeddedPostgres, database_url: str, vault: OAuthMcpServer
) -> None:
    await store_grant(database_url, vault)
    async with (
        connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url)) as (toolbox, _),
        refuse_connections(postgres, database_url),
    ):
        toolbox.on_grants_changed()
        for _ in range(5):
            assert get_text(await call_tool(toolbox, "vault_whose_vault")) == "the vault of gateway"
        assert toolbox.list_server_statuses()[0].state == "up"


async def test_token_that_cannot_be_refreshed_is_reported_as_the_databases_fault(
    postgres: embedded_postgres.EmbeddedPostgres, database_url: str, vault: OAuthMcpServer
) -> None:
    await store_grant(database_url, vault)
    async with connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url)) as (toolbox, _):
        (before,) = toolbox.list_server_statuses()
        async with refuse_connections(postgres, database_url):
            vault.revoke_access()
            for _ in range(3):
                result = await call_tool(toolbox, "vault_whose_vault")
                assert result.outcome == "error"
                assert "the gateway's database is unavailable" in get_text(result)
            (during,) = toolbox.list_server_statuses()
            assert (during.state, during.since) == ("up", before.since)

        async def works_again() -> bool:
            return (await call_tool(toolbox, "vault_whose_vault")).outcome == "ok"

        await eventually(works_again)
        assert vault.refreshed == 1
        assert toolbox.list_server_statuses()[0].since == before.since


async def test_sign_in_is_used_once_the_database_is_back(
    postgres: embedded_postgres.EmbeddedPostgres, database_url: str, vault: OAuthMcpServer
) -> None:
    await store_grant(database_url, vault)
    async with refuse_connections(postgres, database_url):
        connected = connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url))
        toolbox, _ = await connected.__aenter__()
        status = toolbox.list_server_statuses()[0]
        assert (status.state, status.reason) == (
            "down",
            "the sign-in to it cannot be read: the gateway's database is unavailable",
        )
    try:
        await eventually(lambda: toolbox.list_server_statuses()[0].state == "up")
    finally:
        await connected.__aexit__(None, None, None)


async def test_refreshed_token_that_cannot_be_stored_is_used_and_stored_later(
    postgres: embedded_postgres.EmbeddedPostgres,
    database_url: str,
    vault: OAuthMcpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await store_grant(database_url, vault)
    name = str(make_url(database_url).database)
    exchange = vault.exchange_refresh_token

    async def exchange_while_the_database_fails(*arguments: Any) -> OAuthToken:
        """Make the database refuse the new token."""
        await set_connections(postgres, name, allowed=False)
        return await exchange(*arguments)

    monkeypatch.setattr(vault, "exchange_refresh_token", exchange_while_the_database_fails)
    async with connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url)) as (toolbox, _):
        try:
            vault.revoke_access()
            for _ in range(3):
                assert get_text(await call_tool(toolbox, "vault_whose_vault")) == "the vault of gateway"
        finally:
            await set_connections(postgres, name, allowed=True)

        async def is_stored() -> bool:
            await call_tool(toolbox, "vault_whose_vault")
            grant = await read_grant(database_url, vault)
            return grant is not None and grant.refresh_token in vault.refresh

        assert (stored := await read_grant(database_url, vault)) is not None
        assert stored.refresh_token == first.refresh_token
        await eventually(is_stored)
        assert vault.refreshed == 1


async def test_slow_authorization_server_refreshes_once_for_all_workers(
    database_url: str, db: asyncpg.Connection, vault: OAuthMcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refresh a token until the other worker has waited for a while.

    Neither holds a session meanwhile.
    """
    await store_grant(database_url, vault)
    exchange, stores = vault.exchange_refresh_token, list[CountingGrantStore]()

    async def has_no_open_transaction() -> bool:
        return await db.fetchval(OPEN_TRANSACTIONS_QUERY) == 0

    async def exchange_slowly(*arguments: Any) -> OAuthToken:
        lookups = [store.lookups for store in stores]
        await eventually(lambda: any(store.lookups > before + 5 for store, before in zip(stores, lookups, strict=True)))
        await eventually(has_no_open_transaction)
        return await exchange(*arguments)

    monkeypatch.setattr(vault, "exchange_refresh_token", exchange_slowly)
    server = ServerConfig(name="vault", url=vault.url)
    limits = ConnectionTimeouts(statement=9.0, lock=5.0, silence=10.0)
    async with (
        connect_toolbox(database_url, server, limits=limits) as (first, first_store),
        connect_toolbox(database_url, server, limits=limits) as (second, second_store),
    ):
        stores += [first_store, second_store]
        vault.revoke_access()
        calls = (call_tool(toolbox, "vault_whose_vault") for toolbox in (first, second) for _ in range(3))
        assert {get_text(result) for result in await asyncio.gather(*calls)} == {"the vault of gateway"}
    assert vault.refreshed == 1
    grant = await read_grant(database_url, vault)
    assert grant is not None
    assert grant.refresh_token in vault.refresh


async def test_refresh_ends_although_its_call_is_cancelled(
    database_url: str, vault: OAuthMcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store_grant(database_url, vault)
    exchange, started, call_ended = vault.exchange_refresh_token, asyncio.Event(), asyncio.Event()

    async def exchange_slowly(*arguments: Any) -> OAuthToken:
        token = await exchange(*arguments)  # from here on, the old refresh token is used up
        started.set()
        await call_ended.wait()
        return token

    monkeypatch.setattr(vault, "exchange_refresh_token", exchange_slowly)
    async with connect_toolbox(database_url, ServerConfig(name="vault", url=vault.url)) as (toolbox, _):
        vault.revoke_access()
        cancelled_call = asyncio.create_task(call_tool(toolbox, "vault_whose_vault"))
        async with asyncio.timeout(30):
            await started.wait()
            cancelled_call.cancel()
            await asyncio.wait({cancelled_call})
        call_ended.set()
        assert get_text(await call_tool(toolbox, "vault_whose_vault")) == "the vault of gateway"
    assert vault.refreshed == 1


async def test_change_whose_message_was_lost_is_noticed_later(database_url: str, vault: OAuthMcpServer) -> None:
    await store_grant(database_url, vault)
    server = ServerConfig(name="vault", url=vault.url)
    async with connect_toolbox(database_url, server, grant_max_age_seconds=0.1) as (toolbox, grants):
        assert (await call_tool(toolbox, "vault_whose_vault")).outcome == "ok"
        await grants.delete_grant("vault", "", vault.url, by="ada")

        async def is_signed_out() -> bool:
            if toolbox.find_tool("vault_whose_vault") is None:
                return True
            return (await call_tool(toolbox, "vault_whose_vault")).outcome == "error"

        await eventually(is_signed_out)


async def test_held_tools_stay_on_offer_while_new_ones_cannot_be_compared(
    postgres: embedded_postgres.EmbeddedPostgres, database_url: str
) -> None:
    trial = TrialServer()
    async with serve_asgi(trial.create_app()) as address:
        server = ServerConfig(name="trial", url=f"{address}/mcp", prefix="", on_change="hold")
        async with connect_toolbox(database_url, server) as (toolbox, _):
            await eventually(lambda: toolbox.find_tool("echo"))
            tools_before = toolbox.list_server_statuses()[0].tools
            async with refuse_connections(postgres, database_url):
                await trial.add_tool("newcomer")
                await eventually(lambda: toolbox.list_server_statuses()[0].tools > tools_before)
                assert toolbox.find_tool("newcomer") is None
                assert get_text(await call_tool(toolbox, "echo", text="hi")) == "hi"
            await eventually(lambda: ("trial", "newcomer") in toolbox.list_changed_tools())
            assert toolbox.find_tool("newcomer") is None

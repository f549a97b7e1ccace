"""Tests of a gateway whose Postgres refuses its statements."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.config import load_settings
from gateway.domain.errors import StorageUnavailable
from gateway.server.services import prepare_schema
from gateway.simulator import Simulator
from gateway.store.database import DatabaseError, wait_until_ready
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from gateway_runtime.postgres.url import plain_dsn
from tests.eventually import eventually
from tests.postgres_faults import (
    build_url_of_hosts,
    execute,
    keep_starting_up,
    serve_proxy,
    set_read_only,
    start_cluster,
)
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

pytestmark = pytest.mark.database
ROLE_SQL = Path(__file__).parents[3] / "docs" / "application_role.sql"
TIMEOUTS_OF_TURNS = replace(TIMEOUTS, journal=1.0)
Fault = Callable[[EmbeddedPostgres], AbstractAsyncContextManager[None]]


@pytest.fixture(scope="module")
def cluster() -> Generator[EmbeddedPostgres]:
    """A cluster with few connections, for the tests of this file."""
    with start_cluster(max_connections="25") as server:
        yield server


@pytest.fixture
async def restricted_url(cluster: EmbeddedPostgres) -> str:
    """The cluster's URL for the application's role, which is no superuser."""
    await execute(cluster.build_url(), ROLE_SQL.read_text(), "ALTER ROLE gateway_app LOGIN")
    return cluster.build_url().replace("postgres@", "gateway_app@")


@asynccontextmanager
async def make_read_only(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    await set_read_only(cluster, value=True)
    try:
        yield
    finally:
        await set_read_only(cluster, value=False)


@asynccontextmanager
async def revoke_privileges(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    await execute(cluster.build_url(), "REVOKE INSERT ON turns FROM gateway_app")
    try:
        yield
    finally:
        await execute(cluster.build_url(), "GRANT INSERT ON turns TO gateway_app")


@asynccontextmanager
async def revoke_schema(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    """Hide the schema, so that PostgreSQL reports undefined tables."""
    await execute(cluster.build_url(), "REVOKE USAGE ON SCHEMA public FROM PUBLIC, gateway_app")
    try:
        yield
    finally:
        await execute(cluster.build_url(), "GRANT USAGE ON SCHEMA public TO PUBLIC, gateway_app")


@asynccontextmanager
async def fill_disk(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    """Let a trigger raise the error of a full disk."""
    await execute(
        cluster.build_url(),
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''53100''; END'",
        "CREATE TRIGGER full_disk BEFORE INSERT ON turns EXECUTE FUNCTION refuse()",
    )
    try:
        yield
    finally:
        await execute(cluster.build_url(), "DROP FUNCTION refuse CASCADE")


@asynccontextmanager
async def refuse_rows_for_lack_of_space(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    """Let a trigger refuse each row with a full disk."""
    await execute(
        cluster.build_url(),
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''53100''; END'",
        "CREATE TRIGGER full_disk BEFORE INSERT ON turns FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    try:
        yield
    finally:
        await execute(cluster.build_url(), "DROP FUNCTION refuse CASCADE")


@asynccontextmanager
async def revoke_privileges_of_rows(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    """Revoke a privilege that only writes of rows need.

    The default of a column needs it.
    """
    await execute(cluster.build_url(), "REVOKE USAGE ON SEQUENCE turn_positions FROM PUBLIC, gateway_app")
    try:
        yield
    finally:
        await execute(cluster.build_url(), "GRANT USAGE ON SEQUENCE turn_positions TO PUBLIC, gateway_app")


@asynccontextmanager
async def revoke_function(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    await execute(cluster.build_url(), "REVOKE EXECUTE ON FUNCTION refuse_stale_write FROM PUBLIC")
    try:
        yield
    finally:
        await execute(cluster.build_url(), "GRANT EXECUTE ON FUNCTION refuse_stale_write TO PUBLIC")


@asynccontextmanager
async def use_up_connections(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    """Occupy all connections, those of the gateway included."""
    async with AsyncExitStack() as stack:
        admin = await asyncpg.connect(plain_dsn(cluster.build_url()))
        stack.push_async_callback(admin.close)
        used = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'gateway_app'"
        while await admin.fetchval(used) or await open_connection(stack, cluster):
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway_app'")
            while await open_connection(stack, cluster):
                pass
        yield


async def open_connection(stack: AsyncExitStack, cluster: EmbeddedPostgres) -> bool:
    try:
        connection = await asyncpg.connect(plain_dsn(cluster.build_url()))
    except asyncpg.TooManyConnectionsError:
        return False
    stack.push_async_callback(connection.close)
    return True


@asynccontextmanager
async def start_up_slowly(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    with keep_starting_up(cluster):
        await eventually(lambda: is_starting_up(cluster))
        yield


async def is_starting_up(cluster: EmbeddedPostgres) -> bool:
    try:
        await asyncpg.connect(plain_dsn(cluster.build_url()))
    except asyncpg.CannotConnectNowError:
        return True
    except OSError:
        return False
    raise AssertionError("Postgres accepts connections")


@asynccontextmanager
async def stop_postgres(cluster: EmbeddedPostgres) -> AsyncGenerator[None]:
    cluster.stop_if_started_here()
    try:
        yield
    finally:
        cluster.ensure_running()


async def is_ready(gateway: Gateway) -> bool:
    return (await gateway.get("/ready")).status == 200


async def is_unready(gateway: Gateway) -> bool:
    return not await is_ready(gateway)


def assert_unavailable(reply: Reply) -> None:
    assert (reply.status, reply.body["error"]["code"]) == (503, StorageUnavailable.code)
    assert int(reply.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("make_fault", "reason"),
    [
        (make_read_only, "SQLSTATE 25006"),
        (revoke_privileges, "SQLSTATE 42501"),
        (revoke_schema, "SQLSTATE 42P01"),
        (fill_disk, "SQLSTATE 53100"),
        (use_up_connections, "SQLSTATE 53300"),
        (start_up_slowly, "SQLSTATE 57P03"),
        (stop_postgres, "does not answer"),
    ],
    ids=["read-only", "revoked", "schema revoked", "full", "too many connections", "starting up", "stopped"],
)
async def test_unusable_database_fails_readiness_and_new_turns_until_it_recovers(
    cluster: EmbeddedPostgres, restricted_url: str, simulator: Simulator, make_fault: Fault, reason: str
) -> None:
    async with serve_gateway(restricted_url, simulator, None, timeouts=TIMEOUTS_OF_TURNS) as gateway:
        await eventually(lambda: is_ready(gateway))
        assert (await gateway.chat("Hello")).status == 200
        async with make_fault(cluster):
            await eventually(lambda: is_unready(gateway))  # open sessions notice a reload later
            ready = await gateway.get("/ready")
            assert (ready.status, ready.body["status"]) == (503, "unavailable")
            assert reason in ready.body["database"]["reason"]
            for body in ({}, {"conversation_id": "new"}):
                assert_unavailable(await gateway.chat("Hello", **body))
                assert_unavailable(await gateway.chat_stream("Hello", **body))
            message = {"role": "user", "content": "Hello"}
            openai = await gateway.post("/v1/chat/completions", {"model": "openai/gpt-oss-120b", "messages": [message]})
            assert (openai.status, openai.body["error"]["code"]) == (503, StorageUnavailable.code)
            assert (await gateway.get("/health")).status == 200
        await eventually(lambda: is_ready(gateway))
        assert (await gateway.chat("Hello", conversation_id="new")).status == 200


@pytest.mark.parametrize(
    ("make_fault", "sqlstate"),
    [
        (refuse_rows_for_lack_of_space, "53100"),
        (revoke_privileges_of_rows, "42501"),
        (revoke_function, "42501"),
    ],
    ids=["full", "sequence", "function"],
)
async def test_worker_whose_write_was_refused_is_not_ready_until_it_recovers(
    cluster: EmbeddedPostgres, restricted_url: str, simulator: Simulator, make_fault: Fault, sqlstate: str
) -> None:
    async with serve_gateway(
        restricted_url, simulator, None, timeouts=TIMEOUTS_OF_TURNS, storage_retry_seconds=3
    ) as gateway:
        await eventually(lambda: is_ready(gateway))
        async with make_fault(cluster):
            assert_unavailable(await gateway.chat("Hello"))
            ready = await gateway.get("/ready")
            assert (ready.status, ready.body["status"]) == (503, "unavailable")
            assert f"SQLSTATE {sqlstate}" in ready.body["database"]["reason"]
            assert (await gateway.get("/health")).status == 200
        await eventually(lambda: is_ready(gateway))
        assert (await gateway.chat("Hello")).status == 200


async def test_write_that_succeeds_again_makes_the_worker_ready_at_once(
    cluster: EmbeddedPostgres, restricted_url: str, simulator: Simulator
) -> None:
    async with serve_gateway(
        restricted_url, simulator, None, timeouts=TIMEOUTS_OF_TURNS, storage_retry_seconds=600
    ) as gateway:
        await eventually(lambda: is_ready(gateway))
        async with refuse_rows_for_lack_of_space(cluster):
            assert_unavailable(await gateway.chat("Hello"))
            assert not await is_ready(gateway)
        assert not await is_ready(gateway)
        assert (await gateway.chat("Hello")).status == 200
        assert await is_ready(gateway)


@pytest.mark.parametrize(
    "make_fault", [use_up_connections, start_up_slowly], ids=["too many connections", "starting up"]
)
async def test_start_reports_a_database_that_accepts_no_login(
    cluster: EmbeddedPostgres, restricted_url: str, make_fault: Fault
) -> None:
    async with make_fault(cluster):
        with pytest.raises(DatabaseError, match=r"^DATABASE_URL: .* cannot be reached: "):
            await wait_until_ready(restricted_url, seconds=0.2)
    await wait_until_ready(restricted_url, seconds=30)


async def test_start_reports_a_missing_privilege(cluster: EmbeddedPostgres, restricted_url: str) -> None:
    settings = load_settings(_env_file=None, database_url=restricted_url)
    await prepare_schema(settings, restricted_url)
    await execute(cluster.build_url(), "REVOKE SELECT ON alembic_version FROM gateway_app")
    try:
        with pytest.raises(DatabaseError, match="cannot be used: permission denied for table alembic_version"):
            await prepare_schema(settings, restricted_url)
    finally:
        await execute(cluster.build_url(), "GRANT SELECT ON alembic_version TO gateway_app")


async def test_finished_turns_can_be_read_from_a_read_only_database(
    cluster: EmbeddedPostgres, restricted_url: str, simulator: Simulator
) -> None:
    async with serve_gateway(restricted_url, simulator, None) as gateway:
        turn_id = (await gateway.chat("Hello")).body["turn_id"]
        async with make_read_only(cluster):
            await eventually(lambda: is_unready(gateway))  # open sessions notice the reload later
            turn = await gateway.get(f"/api/v1/turns/{turn_id}")
            assert (turn.status, turn.body["status"]) == (200, "completed")


async def test_gateway_with_a_silent_database_refuses_turns_and_recovers(
    database_url: str, simulator: Simulator
) -> None:
    limits: dict[str, Any] = {
        "database_statement_timeout_seconds": 1.0,
        "database_lock_timeout_seconds": 1.0,
        "database_silence_timeout_seconds": 2.0,
    }
    async with (
        serve_proxy(database_url) as (proxy, url),
        serve_gateway(url, simulator, None, timeouts=TIMEOUTS_OF_TURNS, **limits) as gateway,
    ):
        await eventually(lambda: is_ready(gateway))
        proxy.become_silent()
        ready = await gateway.get("/ready")
        assert ready.body["database"] == {"ok": False, "reason": "the database does not answer"}
        for body in ({}, {"conversation_id": "new"}):
            assert_unavailable(await gateway.chat("Hello", **body))
        proxy.heal()
        await eventually(lambda: is_ready(gateway))
        assert (await gateway.chat("Hello", conversation_id="new")).status == 200


async def test_turns_are_stored_on_the_new_primary_after_a_failover(simulator: Simulator) -> None:
    with start_cluster() as old, start_cluster() as new:
        await set_read_only(new, value=True)
        url = build_url_of_hosts([old, new])
        async with serve_gateway(url, simulator, None, timeouts=TIMEOUTS_OF_TURNS) as gateway:
            before = (await gateway.chat("Hello")).body["turn_id"]
            await set_read_only(old, value=True)
            await set_read_only(new, value=False)
            await eventually(lambda: is_ready(gateway))
            after = (await gateway.chat("Hello")).body["turn_id"]
        assert await list_turns(old) == [before]
        assert await list_turns(new) == [after]


async def list_turns(server: EmbeddedPostgres) -> list[str]:
    connection = await asyncpg.connect(plain_dsn(server.build_url()))
    try:
        return [str(row["id"]) for row in await connection.fetch("SELECT id FROM turns")]
    finally:
        await connection.close()


async def test_cancel_stops_the_model_call_of_this_worker_although_it_cannot_be_stored(
    cluster: EmbeddedPostgres, slow_simulator: Simulator, tools_url: str
) -> None:
    async with (
        serve_gateway(cluster.build_url(), slow_simulator, tools_url) as gateway,
        gateway.stream("count to 5000", on_disconnect="continue") as stream,
    ):
        await stream.read_until("text.delta")
        turn_id = stream.response.headers["x-turn-id"]
        async with make_read_only(cluster):
            reply = await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
            assert (reply.status, reply.body["error"]["code"]) == (503, "storage_unavailable")
            await slow_simulator.wait_until(lambda s: s.cancelled_streams == 1)

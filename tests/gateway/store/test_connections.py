"""Tests of connections to a silent, slow, locked or demoted Postgres."""

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import asyncpg
import pytest

from gateway.config import load_settings
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import StorageUnavailable
from gateway.store.bus import PostgresBus
from gateway.store.database import Database
from gateway.store.errors import get_sqlstate
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway_runtime.postgres.connections import CLOSE_SECONDS, ConnectionTimeouts, PostgresConnector
from tests.eventually import eventually
from tests.postgres_faults import build_url_of_hosts, execute, serve_proxy, set_read_only, start_cluster

SHORT = ConnectionTimeouts(connect=5, statement=0.5, lock=0.1, silence=1.0)
LIMITED = ("statement", "transaction")
STALLED_SECONDS = 30.0
"""Bound of a test that would otherwise wait for ever."""


@asynccontextmanager
async def open_database(url: str, limits: ConnectionTimeouts = SHORT, pool_size: int = 5) -> AsyncGenerator[Database]:
    database = Database(url, limits=limits, pool_size=pool_size)
    try:
        yield database
    finally:
        async with asyncio.timeout(STALLED_SECONDS):
            await database.close()


async def find_pid(database: Database) -> int:
    [(pid,)] = await database.fetch_rows("SELECT pg_backend_pid()")
    return pid


async def find_four_pids(database: Database) -> set[int] | None:
    """Return the processes of four connections.

    None means that a connection took too long.
    """
    queries = [database.fetch_rows("SELECT pg_backend_pid() FROM pg_sleep(0.1)") for _ in range(4)]
    try:
        return {row[0][0] for row in await asyncio.gather(*queries)}
    except StorageUnavailable:
        return None


async def find_pid_eventually(database: Database) -> int:
    """Return the connection's process.

    On a loaded machine, opening a connection may take longer than a test's short limit.
    """

    async def find() -> int | None:
        with suppress(StorageUnavailable):
            return await find_pid(database)

    pid = await eventually(find)
    assert pid is not None
    return pid


async def test_statement_that_takes_too_long_is_ended_by_the_server(database_url: str, db: asyncpg.Connection) -> None:
    async with open_database(database_url, ConnectionTimeouts(statement=0.2), pool_size=1) as database:
        pid = await find_pid_eventually(database)
        with pytest.raises(StorageUnavailable):
            await database.fetch_rows("SELECT pg_sleep(3600)")
        assert await find_pid_eventually(database) == pid
        assert await db.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"


async def test_wait_for_a_lock_ends(database_url: str, db: asyncpg.Connection) -> None:
    async with open_database(database_url, ConnectionTimeouts(lock=0.1)) as database, db.transaction():
        await db.execute("LOCK TABLE conversations")
        with pytest.raises(StorageUnavailable) as raised:
            await database.fetch_rows("SELECT * FROM conversations")
    assert get_sqlstate(raised.value.__cause__) == "55P03"


async def test_session_ends_although_each_of_its_statements_is_fast(database_url: str) -> None:
    async with open_database(database_url, ConnectionTimeouts(statement=0.2, silence=0.5), pool_size=1) as database:
        with pytest.raises(StorageUnavailable):
            await sleep_in_a_session(database)
        assert await find_pid_eventually(database)  # the pool has replaced the connection


async def sleep_in_a_session(database: Database) -> None:
    async with database.session() as session:
        connection = await session.connection()
        while True:
            await connection.exec_driver_sql("SELECT pg_sleep(0.01)")


async def test_long_session_may_take_longer_than_the_usual_limit(database_url: str) -> None:
    async with (
        open_database(database_url, ConnectionTimeouts(statement=0.1, silence=0.2)) as database,
        database.session(seconds=60) as session,
    ):
        connection = await session.connection()
        await connection.exec_driver_sql("SELECT pg_sleep(0.4)")
        values = [(await connection.exec_driver_sql(f"SHOW {name}_timeout")).scalar() for name in LIMITED]
    assert values == ["1min", "65s"]


async def send_statements(connection: asyncpg.Connection) -> None:
    while True:
        await connection.execute("SELECT pg_sleep(0.01)")


async def test_transaction_that_takes_too_long_is_ended_by_the_server_with_its_locks(
    database_url: str, db: asyncpg.Connection
) -> None:
    """The client sends one statement after another, so it is not idle."""
    connection = await PostgresConnector(database_url, SHORT).connect()
    await connection.execute("BEGIN; LOCK TABLE turns")
    waiting = asyncio.create_task(db.execute("BEGIN; LOCK TABLE turns; COMMIT"))
    async with asyncio.timeout(STALLED_SECONDS):
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
            await send_statements(connection)
        await waiting


async def test_commit_that_is_cut_off_midway_holds_its_locks_no_longer_than_an_attempt(
    database_url: str, db: asyncpg.Connection
) -> None:
    limits = ConnectionTimeouts(statement=50.0, lock=50.0, silence=60.0)  # would hold the lock for a minute
    async with serve_proxy(database_url) as (proxy, url):
        journal = PostgresJournal(PostgresConnector(url, limits), uuid4(), retry_seconds=3.0)
        connection = await journal._connect()
        await connection.execute("BEGIN; LOCK TABLE turns")
        proxy.become_silent()
        async with asyncio.timeout(STALLED_SECONDS):
            await db.execute("BEGIN; LOCK TABLE turns; COMMIT")
        connection.terminate()


async def test_silent_connection_is_found_and_replaced(database_url: str) -> None:
    async with serve_proxy(database_url) as (proxy, url), open_database(url, pool_size=1) as database:
        pid = await find_pid_eventually(database)
        proxy.become_silent()
        async with asyncio.timeout(STALLED_SECONDS):
            with pytest.raises(StorageUnavailable):
                await database.fetch_rows("SELECT 1")
            with pytest.raises(StorageUnavailable):  # a new connection is silent, too
                await database.fetch_rows("SELECT 1")
            assert proxy.silent_bytes > 0
            proxy.heal()
            assert await find_pid_eventually(database) != pid


async def test_silence_of_one_connection_replaces_all_of_the_pool(database_url: str) -> None:
    async with serve_proxy(database_url) as (proxy, url), open_database(url) as database:
        pids = await eventually(lambda: find_four_pids(database))
        assert pids is not None
        assert len(pids) == 4
        proxy.become_silent()
        with pytest.raises(StorageUnavailable):
            await database.fetch_rows("SELECT 1")
        proxy.heal()
        replaced = await eventually(lambda: find_four_pids(database))
        assert replaced is not None
        assert pids.isdisjoint(replaced)
        assert proxy.silent_connections == 1


def test_silence_is_found_within_ten_seconds_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_SILENCE_TIMEOUT_SECONDS", raising=False)
    assert ConnectionTimeouts().silence == load_settings(_env_file=None).database_silence_timeout_seconds
    assert ConnectionTimeouts().silence + CLOSE_SECONDS < 10


async def test_bus_finds_a_silent_connection_and_delivers_again(database_url: str) -> None:
    received = asyncio.Event()
    async with serve_proxy(database_url) as (proxy, url):
        listening = PostgresBus(PostgresConnector(url, SHORT))
        sending = PostgresBus(PostgresConnector(database_url))
        listening.subscribe(BusKind.KEYS_CHANGED, lambda _: received.set())
        message = BusMessage(BusKind.KEYS_CHANGED, BusMessage.NO_TURN)

        async def send_and_receive() -> bool:
            sending.publish(message)
            await asyncio.sleep(0.01)
            return received.is_set()

        for bus in (listening, sending):
            bus.task.start()
        await eventually(send_and_receive)
        proxy.become_silent()
        await eventually(lambda: proxy.silent_bytes > 0)
        received.clear()
        proxy.heal()
        await eventually(send_and_receive)
        assert listening.task.restarts == 0
        for bus in (listening, sending):
            await bus.task.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the names of the options are Linux's")
async def test_tcp_connection_is_ended_by_the_kernel_without_acknowledgements(database_url: str) -> None:
    limits = ConnectionTimeouts(silence=9.0)
    async with serve_proxy(database_url) as (_, url):
        connection = await PostgresConnector(url, limits).connect()
        tcp: socket.socket = connection._transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        values = [tcp.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert values == [3, 3, 2, 9000]
        await connection.close()


async def test_server_knows_the_limits_of_a_session(database_url: str) -> None:
    async with open_database(database_url, ConnectionTimeouts(statement=6, lock=3, silence=8)) as database:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
        values = [(await database.fetch_rows(f"SHOW {name}"))[0][0] for name in names]
    assert values == ["6s", "3s", "8s", "8s"]


async def test_limit_in_the_address_has_precedence(database_url: str) -> None:
    async with open_database(f"{database_url}&statement_timeout=1234", ConnectionTimeouts()) as database:
        assert await database.fetch_rows("SHOW statement_timeout") == [("1234ms",)]


async def test_parameters_of_libpq_are_accepted(database_url: str) -> None:
    async with open_database(f"{database_url}&sslmode=disable&application_name=me", ConnectionTimeouts()) as database:
        assert await database.fetch_rows("SHOW application_name") == [("me",)]


async def test_connection_that_the_server_closed_is_replaced_without_an_error(
    database_url: str, db: asyncpg.Connection
) -> None:
    closed = asyncio.Event()
    async with open_database(database_url, ConnectionTimeouts(), pool_size=1) as database:
        async with database.engine.connect() as pooled:
            connection = (await pooled.get_raw_connection()).driver_connection
            assert connection is not None
            connection.add_termination_listener(lambda _connection: closed.set())
        pid = connection.get_server_pid()
        await db.execute("SELECT pg_terminate_backend($1)", pid)
        async with asyncio.timeout(STALLED_SECONDS):
            await closed.wait()  # the server lists the process no longer before it closes the socket
        assert await find_pid(database) != pid


@pytest.mark.database
async def test_demoted_primary_is_left_for_the_new_one() -> None:
    with start_cluster() as old, start_cluster() as new:
        await set_read_only(new, value=True)
        url = build_url_of_hosts([old, new])
        await execute(old.build_url(), "CREATE TABLE written (host text)")
        async with open_database(url, ConnectionTimeouts()) as database:
            write = "INSERT INTO written VALUES ('here')"
            for _ in range(3):
                await database.fetch_rows(f"{write} RETURNING host")
            await execute(f"{new.build_url()}&default_transaction_read_only=off", "CREATE TABLE written (host text)")
            await set_read_only(old, value=True)
            await set_read_only(new, value=False)
            with pytest.raises(StorageUnavailable):
                await database.fetch_rows(f"{write} RETURNING host")
            for _ in range(3):
                await database.fetch_rows(f"{write} RETURNING host")
        connection = await PostgresConnector(new.build_url()).connect()
        assert await connection.fetchval("SELECT count(*) FROM written") == 3
        await connection.close()


async def test_silent_first_host_does_not_hide_the_second(database_url: str) -> None:
    async with serve_proxy(database_url) as (proxy, url):
        proxy.become_silent()
        host = url.partition("@")[2].partition("/")[0]
        good = database_url.partition("host=")[2]
        both = database_url.replace(f"host={good}", f"host={host},{good}")
        async with open_database(both, ConnectionTimeouts(connect=1.0)) as database:
            assert await find_pid(database)
            assert proxy.silent_bytes > 0

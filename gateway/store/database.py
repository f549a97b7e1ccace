"""The PostgreSQL engine, its sessions and its health check."""

import asyncio
import re
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import CursorResult
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.sql.dml import UpdateBase
from sqlmodel import text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.logging import get_logger
from gateway.config import ConfigError, Settings
from gateway.domain.errors import GatewayError, StorageInternalError, StorageUnavailable
from gateway.store.errors import get_driver_error, is_database_error, raise_gateway_errors
from gateway.store.start.checks import find_problem, is_temporary
from gateway_runtime.postgres.connections import ConnectionTimeouts, PostgresConnector
from gateway_runtime.postgres.hidden_tables import is_table_hidden
from gateway_runtime.postgres.url import mask_password

log = get_logger(__name__)

_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
# Random reads cost nearly the same as sequential ones in memory and on SSDs. See docs/adr/0009.
_CUSTOM_PLAN_SETTINGS = text(
    "SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('random_page_cost', '1.1', true)"
)
# A transaction_timeout that runs is replaced only if it is switched off first. It exists from PostgreSQL 17 on.
_SET_TIME_LIMITS = text("""
    SELECT set_config('statement_timeout', :statement, true),
           CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL THEN
               set_config('transaction_timeout', '0', true) || set_config('transaction_timeout', :transaction, true)
           END
""")
_parsed = lru_cache(256)(text)
DatabaseRow = Sequence[Any]


class DatabaseError(ConfigError):
    """Error of a database that cannot be used.

    `str()` is one line for the terminal, without the password.
    """


class Database:
    """The engine and its short sessions.

    A session must not stay open while a response streams. Each use of the database ends after `limits.silence` seconds,
    including the wait for a connection. `direct` opens the connections that last: those of the bus, the journal and the
    lease. They bypass a pooler, which shares its connections by transactions.
    """

    def __init__(
        self, url: str, *, direct_url: str | None = None, pool_size: int = 5, limits: ConnectionTimeouts | None = None
    ) -> None:
        self.connector = PostgresConnector(url, limits or ConnectionTimeouts())
        self.direct = PostgresConnector(direct_url, self.connector.limits) if direct_url else self.connector
        self.engine: AsyncEngine = self.connector.create_engine(
            pool_size=pool_size, max_overflow=pool_size, pool_timeout=5, json_serializer=encode_jsonb
        )
        self.max_connections = 2 * pool_size
        self._sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def session(self, *, seconds: float | None = None) -> AsyncGenerator[AsyncSession]:
        """A session that commits at the end of the block.

        `seconds`: time limit of the block, its transaction and each statement, if they may take longer than usual.

        Raises:
            GatewayError: see `raise_gateway_errors`.
        """
        async with self._raise_gateway_errors(), self._limit_time(seconds), self._sessions() as session:
            if seconds is not None:
                connection = await session.connection()
                # The statement's limit must be shorter, because that of the transaction ends the connection.
                statement, margin = max(1, int(seconds * 1000)), 1000 * max(1, int(self.connector.limits.connect))
                limits = {"statement": str(statement), "transaction": str(statement + margin)}
                await connection.execute(_SET_TIME_LIMITS, limits)
            yield session
            await session.commit()

    async def fetch_rows(self, statement: str, *, custom_plan: bool = False, **values: object) -> Sequence[DatabaseRow]:
        """Run one SQL query with named parameters, in a single round trip.

        The query runs in autocommit mode. With `custom_plan`, PostgreSQL plans it for these values, at two more round
        trips. See docs/adr/0009.

        Raises:
            GatewayError: see `raise_gateway_errors`.
        """
        async with self._raise_gateway_errors():
            needs_transaction = custom_plan or self.connector.address.is_pooled
            async with (
                self._limit_time(),
                self.engine.begin() if needs_transaction else self._autocommit.connect() as connection,
            ):
                if custom_plan:
                    await connection.execute(_CUSTOM_PLAN_SETTINGS)
                return (await connection.execute(_parsed(statement), values)).all()

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def _raise_gateway_errors(self) -> AsyncGenerator[None]:
        try:
            with raise_gateway_errors():
                yield
        except StorageInternalError as error:
            if error.__cause__ is not None and await is_table_hidden("turns", error.__cause__, self.direct.connect):
                raise StorageUnavailable from error.__cause__
            raise

    @asynccontextmanager
    async def _limit_time(self, seconds: float | None = None) -> AsyncGenerator[None]:
        limits = self.connector.limits
        timeout = asyncio.timeout(limits.silence or None if seconds is None else seconds + limits.connect)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if timeout.expired():
                self.connector.distrust_open_connections()
            raise


async def count_changed_rows(session: AsyncSession, statement: UpdateBase) -> int:
    """Run an UPDATE or DELETE and return the number of changed rows."""
    result = await session.exec(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount


def decode_json(value: object) -> object:
    """Decode a JSON column of a plain SQL query.

    SQLAlchemy returns such a column as text.
    """
    return msgspec.json.decode(value) if isinstance(value, str) else value


def encode_jsonb(value: object) -> str:
    """Encode a value as JSON, without NUL characters, which PostgreSQL cannot store."""
    encoded = msgspec.json.encode(value).decode()
    return _NUL_ESCAPE.sub(r"\1\\ufffd", encoded) if "\\u0000" in encoded else encoded


@contextmanager
def raise_database_error(url: str, *, setting: str = "DATABASE_URL") -> Generator[None]:
    """Raise errors of the database at `url` as errors for the terminal.

    Raises:
        DatabaseError: the database refuses a statement or cannot be reached.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, GatewayError) and not is_database_error(error):
            raise
        cause = get_driver_error(error.__cause__ if isinstance(error, GatewayError) and error.__cause__ else error)
        raise DatabaseError(f"{setting}: {mask_password(url)} cannot be used: {_describe(cause)}") from None


def _describe(error: BaseException) -> str:
    """Return the first line of an error, or its name."""
    name = type(error).__name__
    return name if isinstance(error, TimeoutError) else str(error).partition("\n")[0] or name


async def wait_for_addresses(url: str, settings: Settings) -> str:
    """Wait for all configured addresses; return the one without a pooler.

    Raises:
        DatabaseError: see `wait_until_ready`.
    """
    await wait_until_ready(url, settings.database_wait_seconds)
    if settings.database_direct_url is None:
        return url
    await wait_until_ready(settings.database_direct_url, settings.database_wait_seconds, setting="DATABASE_DIRECT_URL")
    return settings.database_direct_url


async def wait_until_ready(url: str, seconds: float, *, setting: str = "DATABASE_URL") -> None:
    """Wait until the database accepts a login, and check it.

    Raises:
        DatabaseError: the database refuses the login (password, unknown database), cannot be reached in `seconds`, has
            another encoding than UTF8, or a pooler in transaction mode answers that the settings do not name.
    """
    connector = PostgresConnector(url)
    may_be_created = connector.address.hosts[0][0].startswith("/")  # the embedded Postgres, at its first start
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            connection = await connector.connect(seconds=max(1.0, min(5.0, seconds)))
            break
        except Exception as error:
            if not is_database_error(error):
                raise
            is_late = asyncio.get_running_loop().time() >= deadline
            if isinstance(error, asyncpg.PostgresError) and not is_temporary(error) and (is_late or not may_be_created):
                raise DatabaseError(f"{setting}: {mask_password(url)} refuses the login: {_describe(error)}") from None
            if is_late:
                raise DatabaseError(f"{setting}: {mask_password(url)} cannot be reached: {_describe(error)}") from None
        await asyncio.sleep(0.05)
    try:
        with raise_database_error(url, setting=setting):
            problem = await find_problem(connector, connection)
    finally:
        connection.terminate()
    if problem is not None:
        raise DatabaseError(f"{setting}: {mask_password(url)} {problem}")

"""Postgres for the rest of the package: the engine, its sessions, and whether it is there at all."""

import asyncio
import re
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import CursorResult, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.sql.dml import UpdateBase
from sqlmodel import text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.logging import get_logger
from gateway.config import ConfigError
from gateway.domain.errors import StorageUnavailable

log = get_logger(__name__)

_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
# That a page of an index is read as fast as the next one of a table holds of memory and of SSDs.
_CUSTOM_PLAN_SETTINGS = text(
    "SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('random_page_cost', '1.1', true)"
)
_parsed = lru_cache(256)(text)
UNREACHABLE = (OSError, asyncio.TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


class DatabaseError(ConfigError):
    """The database cannot be used. `str()` is one line for the terminal, without the password."""


class Database:
    """The engine and its short sessions. No session may be held while a stream runs."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = url
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            connect_args={"timeout": 5},
            json_serializer=encode_jsonb,
            hide_parameters=True,
        )
        self._sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)
        self._lone = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def dsn(self) -> str:
        return plain_dsn(self.url)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """A session that commits at the end of the block.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        with _raise_unavailable():
            async with self._sessions() as session:
                yield session
                await session.commit()

    async def fetch_rows(self, statement: str, *, custom_plan: bool = False, **values: object) -> Sequence[Any]:
        """The rows of one plain SQL query, its `:name`s filled in: a single round trip, as it is its own transaction.

        With `custom_plan`, Postgres plans it for these values, which takes two more round trips.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        with _raise_unavailable():
            async with self.engine.begin() if custom_plan else self._lone.connect() as connection:
                if custom_plan:
                    await connection.execute(_CUSTOM_PLAN_SETTINGS)
                return (await connection.execute(_parsed(statement), values)).all()

    async def check_health(self) -> str | None:
        """None when the database answers within two seconds, else what is wrong, fit for the public."""
        try:
            async with asyncio.timeout(2), self._lone.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (*UNREACHABLE, SQLAlchemyError):
            return "the database does not answer"
        return None

    async def close(self) -> None:
        await self.engine.dispose()


async def count_changed_rows(session: AsyncSession, statement: UpdateBase) -> int:
    """Run an UPDATE or DELETE; how many rows it changed."""
    result = await session.exec(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount


def decode_json(value: object) -> Any:
    """A JSON column of plain SQL, which SQLAlchemy returns as text."""
    return msgspec.json.decode(value) if isinstance(value, str) else value


def encode_jsonb(value: object) -> str:
    """As JSON. Postgres keeps no NUL character, in no form."""
    encoded = msgspec.json.encode(value).decode()
    return _NUL_ESCAPE.sub(r"\1\\ufffd", encoded) if "\\u0000" in encoded else encoded


def plain_dsn(url: str) -> str:
    """The same address for asyncpg without SQLAlchemy."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def is_unreachable(error: BaseException) -> bool:
    """Whether the database was away, rather than at odds with what was asked of it."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error.orig and error.orig.__cause__, UNREACHABLE)
    return isinstance(error, UNREACHABLE)


@contextmanager
def _raise_unavailable() -> Generator[None]:
    try:
        yield
    except (*UNREACHABLE, SQLAlchemyError) as error:
        if is_unreachable(error):
            log.warning("database_unreachable", error=type(error).__name__)
            raise StorageUnavailable from error
        raise


async def wait_until_ready(url: str, seconds: float) -> None:
    """Return once the database takes a login.

    Raises:
        DatabaseError: it still refuses after `seconds`, or refuses for good (password, no such database).
    """
    target = make_url(url)
    dsn = plain_dsn(url)
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            connection = await asyncpg.connect(dsn, timeout=max(1.0, min(5.0, seconds)))
            await connection.close()
            return
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            if asyncio.get_running_loop().time() >= deadline or not target.query.get("host"):
                raise DatabaseError(f"DATABASE_URL: {_mask_password(url)} refuses the login: {error}") from None
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
            if asyncio.get_running_loop().time() >= deadline:
                reason = type(error).__name__ if isinstance(error, TimeoutError) else str(error)
                raise DatabaseError(f"DATABASE_URL: {_mask_password(url)} cannot be reached: {reason}") from None
        await asyncio.sleep(0.05)


def _mask_password(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)

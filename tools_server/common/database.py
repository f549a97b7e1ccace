"""The tool server's connections to Postgres."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway_runtime.postgres.connections import ConnectionTimeouts, PostgresConnector
from gateway_runtime.postgres.errors import StorageFailure, classify_error, is_database_error

log = structlog.stdlib.get_logger(__name__)


class DatabaseUnavailable(Exception):
    """Error of an unavailable database.

    `in_doubt`: the connection failed during a commit.
    """

    def __init__(self, *, in_doubt: bool) -> None:
        super().__init__("in doubt" if in_doubt else "unavailable")
        self.in_doubt = in_doubt


class ToolsDatabase:
    """A pool of connections. Each transaction ends after `timeout_seconds`.

    Of them, it waits at most half for a connection of the pool.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self.url = url
        self._timeout_seconds = timeout_seconds
        limits = ConnectionTimeouts(
            connect=min(3.0, timeout_seconds), statement=timeout_seconds, lock=timeout_seconds, silence=timeout_seconds
        )
        self._engine = PostgresConnector(url, limits).create_engine(
            pool_size=4,
            max_overflow=8,
            pool_timeout=timeout_seconds / 2,
            # Hides a restart of Postgres between two calls; a retry instead could add a task twice.
            pool_pre_ping=True,
        )
        self._sessions = async_sessionmaker(self._engine, class_=AsyncSession, expire_on_commit=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def session(self, *, timeout: float | None = None, changes: bool = True) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that commits at the end of the block.

        `changes`: whether the block changes rows.

        Raises:
            DatabaseUnavailable: the database is unavailable, or block and commit took longer than `timeout` seconds.
        """
        committing = False
        try:
            async with asyncio.timeout(timeout or self._timeout_seconds), self._sessions() as session:
                yield session
                committing = changes
                await session.commit()
        except Exception as error:
            if not is_database_error(error) or classify_error(error) is not StorageFailure.UNAVAILABLE:
                raise
            log.warning("database_unavailable", error=type(error).__name__)
            raise DatabaseUnavailable(in_doubt=committing) from error

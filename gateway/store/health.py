"""Check whether turns can be stored."""

import asyncio
from collections.abc import Callable, Iterator

from sqlmodel import text

from gateway.domain.errors import GatewayError, StorageInternalError
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database, raise_database_error
from gateway.store.errors import get_sqlstate
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.tables.server_tasks import ToolTaskRow
from gateway_runtime.cached_value import CachedValue
from gateway_runtime.postgres.connections import ConnectionTimeouts

CHECK_SECONDS = 2.0
COUNT_SECONDS = 1.0
_WRITTEN_TABLES = (
    "conversations",
    "conversation_waiters",
    "turns",
    "turn_events",
    "turn_inputs",
    "tool_tasks",
    "tool_calls",
    "turn_usage",
    "budget_holds",
    "workers",
)
_SPILLED_ROWS = 30_000


def _list_zero_row_writes() -> Iterator[str]:
    """List the writes of turns and of the heartbeat, without rows.

    PostgreSQL refuses each like a real one if the server is read-only, a table, a column or a privilege is missing, or
    a table is locked.
    """
    for name in _WRITTEN_TABLES:
        table = ToolTaskRow.metadata.tables[name]
        columns = [column.name for column in table.columns if column.computed is None and column.identity is None]
        names = ", ".join(columns)
        yield f"new_{name} AS (INSERT INTO {name} ({names}) SELECT {names} FROM {name} WHERE false)"  # noqa: S608
        yield f"changed_{name} AS (UPDATE {name} SET {columns[0]} = {columns[0]} WHERE false)"  # noqa: S608
    yield "dead_worker AS (DELETE FROM workers WHERE false)"


# A write for no row needs no space. The rows of a function that exceed work_mem do: they go to a temporary file.
_LIMIT_MEMORY = text("SELECT set_config('work_mem', '64kB', true)")
_PROBE = text(
    f"WITH {', '.join(_list_zero_row_writes())} SELECT count(*) FROM generate_series(1, {_SPILLED_ROWS})"  # noqa: S608
)


async def check_writes(url: str) -> None:
    """Check that this role may write what turns need.

    Raises:
        DatabaseError: it may not, or a table or column is missing.
    """
    database = Database(url, pool_size=1)
    try:
        with raise_database_error(url):
            await _write_no_rows(database)
    finally:
        await database.close()


async def _write_no_rows(database: Database) -> None:
    async with database.session() as session:
        connection = await session.connection()
        await connection.execute(_LIMIT_MEMORY)
        await connection.execute(_PROBE)


class StorageHealth:
    """Health of the database, the journal and the worker's lease.

    `has_lease` returns whether this worker may run stored turns. The database is asked at most once per
    `max_age_seconds`, over a connection of its own: requests for the state can hold up nothing else, nor be held up.
    """

    def __init__(
        self,
        url: str,
        journal: PostgresJournal,
        has_lease: Callable[[], bool],
        *,
        limits: ConnectionTimeouts,
        max_age_seconds: float,
    ) -> None:
        self._database = Database(url, pool_size=1, limits=limits)
        self._conversations = ConversationStore(self._database)
        self._journal = journal
        self._has_lease = has_lease
        self._problem = CachedValue(self._probe_database, max_age_seconds)
        self._conversation_count = CachedValue(self._count_conversations, max_age_seconds)

    async def close(self) -> None:
        await self._database.close()

    async def find_problem(self) -> str | None:
        """Return the reason why turns cannot be stored.

        None means that they can. Takes at most a few seconds.
        """
        problem = await self._problem.get()
        if problem is not None:
            return problem
        if (sqlstate := self._journal.recent_refusal) is not None:
            return f"the database has refused a write (SQLSTATE {sqlstate})"
        if self._journal.is_unavailable:
            return "the journal cannot be written"
        return None if self._has_lease() else "the worker could not renew its lease"

    async def count_conversations(self) -> int | None:
        """Return the number of stored conversations.

        None: the database does not answer within a second.
        """
        return await self._conversation_count.get()

    async def _probe_database(self) -> str | None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await _write_no_rows(self._database)
        except TimeoutError:
            return "the database does not answer"
        except StorageInternalError as error:
            return f"the database does not fit this release (SQLSTATE {get_sqlstate(error.__cause__)})"
        except GatewayError as error:
            sqlstate = get_sqlstate(error.__cause__)
            return f"the database refuses writes (SQLSTATE {sqlstate})" if sqlstate else "the database does not answer"
        return None

    async def _count_conversations(self) -> int | None:
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                return await self._conversations.count_conversations()
        except (GatewayError, TimeoutError):
            return None

"""Check whether turns can be stored."""

import asyncio
from collections.abc import Callable

from gateway.common.cached_value import CachedValue
from gateway.domain.errors import GatewayError
from gateway.ports.journal import Journal
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.errors import get_sqlstate
from gateway_runtime.postgres_connections import ConnectionLimits

CHECK_SECONDS = 2.0
COUNT_SECONDS = 1.0
# The writes of every turn and of the heartbeat, for no row. PostgreSQL refuses each like a real one if the server is
# read-only, a privilege is missing or a table is locked.
_PROBE = """
WITH
new_conversation AS (INSERT INTO conversations (id) SELECT id FROM conversations WHERE false),
new_turn AS (INSERT INTO turns (id) SELECT id FROM turns WHERE false),
changed_turn AS (UPDATE turns SET status = status WHERE false),
new_events AS (INSERT INTO turn_events (payload) SELECT payload FROM turn_events WHERE false),
new_call AS (INSERT INTO tool_calls (outcome) SELECT outcome FROM tool_calls WHERE false),
changed_call AS (UPDATE tool_calls SET outcome = outcome WHERE false),
new_usage AS (INSERT INTO turn_usage (turn_id) SELECT turn_id FROM turn_usage WHERE false),
new_worker AS (INSERT INTO workers (id) SELECT id FROM workers WHERE false),
changed_worker AS (UPDATE workers SET seen_at = seen_at WHERE false),
dead_worker AS (DELETE FROM workers WHERE false)
SELECT 1"""


class StorageHealth:
    """Health of the database, the journal and the worker's lease.

    `has_lease` returns whether this worker may run stored turns. The database is asked at most once per
    `max_age_seconds`, over a connection of its own: requests for the state can hold up nothing else, nor be held up.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        has_lease: Callable[[], bool],
        *,
        limits: ConnectionLimits,
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
                await self._database.fetch_rows(_PROBE)
        except TimeoutError:
            return "the database does not answer"
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

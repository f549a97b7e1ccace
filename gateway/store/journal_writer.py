"""Commits of the journal's writes, over a connection of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import asyncpg

from gateway.common.concurrency import Backoff, Deadline, SupervisedTask
from gateway.common.logging import get_logger
from gateway.ports.store import EventSource
from gateway.store import journal_statements as statements
from gateway.store.errors import StorageFailure, classify_error, get_sqlstate
from gateway.store.journal_queue import JournalQueue, PendingWrite
from gateway.store.journal_statements import Fence

log = get_logger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MAX_BATCH_BYTES = 1024 * 1024
_MIN_BATCH_BYTES = 16 * 1024
_SHRINK_FACTOR = 4
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_ABORT_SECONDS = 1.0
_TIMEOUT_SQLSTATES = ("57014", "55P03")
"""Cancelled, for example by statement_timeout, and lock_timeout."""
_ENDS_OF_CONNECTION = ("08", "57")
"""Classes of SQLSTATE codes that leave the result of a commit unknown."""


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """How the writers commit.

    A commit attempt ends after `attempt_seconds`. A turn whose write could not be stored for `retry_seconds` is given
    up: `give_up` is called with its log. `refuse` is called with the log of a turn whose write can never be stored.
    """

    worker_id: UUID
    connect: Callable[[], Awaitable[Connection]]
    attempt_seconds: float
    retry_seconds: float
    give_up: Callable[[EventSource], None]
    refuse: Callable[[EventSource, Exception], None]


class JournalWriter:
    """Commits the writes of all turns together.

    A batch that cannot be written in time is made smaller. A batch that the database refuses is split, so that only the
    refused turn fails.
    """

    def __init__(self, name: str, queue: JournalQueue, policy: CommitPolicy, *, vital: bool = True) -> None:
        self.task = SupervisedTask(name, self._write_forever, vital=vital)
        self.max_bytes = MAX_BATCH_BYTES
        self.unavailable_since: float | None = None
        """Start of the first failed attempt; None after a commit."""
        self._queue = queue
        self._policy = policy
        self._connection: Connection | None = None
        self._has_changed = asyncio.Event()
        self._backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        queue.call_on_change(self._has_changed.set)

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _take_batch(self) -> list[PendingWrite]:
        return self._queue.take_batch(self.max_bytes)

    async def _write_forever(self) -> None:
        while True:
            self._has_changed.clear()
            batch = self._take_batch()
            if batch or self._must_probe():
                await self._write_batch(batch)
            else:
                await self._has_changed.wait()

    def _must_probe(self) -> bool:
        """Return whether to test without a write if the database is available."""
        return self.unavailable_since is not None

    async def _write_batch(self, batch: list[PendingWrite]) -> None:
        started_at = asyncio.get_running_loop().time()
        try:
            await self._commit_split(batch)
        except Exception as error:  # noqa: BLE001 - an unexpected error would stop the only writer
            self._queue.finish(batch)
            if self.unavailable_since is None:
                self.unavailable_since = started_at
            await self._wait_after_failure(error, batch)
        else:
            self._queue.finish(batch)
            self.unavailable_since = None
            self._backoff.reset()
            self.max_bytes = min(2 * self.max_bytes, MAX_BATCH_BYTES)

    async def _wait_after_failure(self, error: Exception, batch: list[PendingWrite]) -> None:
        log.warning(
            "journal_commit_failed",
            task=self.task.name,
            error=type(error).__name__,
            sqlstate=get_sqlstate(error),
            writes=len(batch),
        )
        self.disconnect()
        if isinstance(error, TimeoutError) or get_sqlstate(error) in _TIMEOUT_SQLSTATES:
            self.max_bytes = max(self.max_bytes // _SHRINK_FACTOR, _MIN_BATCH_BYTES)
        seconds = self._give_up_overdue(batch)
        self._has_changed.clear()
        await asyncio.sleep(min(seconds, self._backoff.next_delay()))

    def _list_retried(self, batch: list[PendingWrite]) -> list[PendingWrite]:
        """List the writes that the failure of `batch` delays: here all."""
        del batch
        return self._queue.list_idle()

    def _give_up_overdue(self, batch: list[PendingWrite]) -> float:
        """Give up overdue turns, and return the seconds until the next one."""
        now = asyncio.get_running_loop().time()
        since = now if self.unavailable_since is None else self.unavailable_since
        remaining = self._policy.retry_seconds
        overdue: dict[EventSource, None] = {}
        for write in self._list_retried(batch):
            if write.expires and write.source not in overdue:
                seconds = max(since, write.submitted_at) + self._policy.retry_seconds - now
                if seconds <= 0:
                    overdue[write.source] = None
                else:
                    remaining = min(remaining, seconds)
        for source in overdue:
            self._policy.give_up(source)
        return remaining

    # --- committing

    async def _commit_split(self, batch: list[PendingWrite]) -> None:
        """Commit a batch, and find a refused turn by halves."""
        try:
            await self._commit(batch)
        except Exception as error:
            if classify_error(error) is StorageFailure.UNAVAILABLE:
                raise
            sources = list(dict.fromkeys(write.source for write in batch))
            if not sources:
                raise
            if len(sources) == 1:
                self._queue.finish(batch)
                self._policy.refuse(sources[0], error)
                return
            first_half = set(sources[: len(sources) // 2])
            await self._commit_split([write for write in batch if write.source in first_half])
            await self._commit_split([write for write in batch if write.source not in first_half])
        else:
            for write in batch:
                write.advance()

    async def _commit(self, batch: list[PendingWrite]) -> None:
        """Commit a batch.

        An empty one only tests if the database is available.

        Raises:
            TimeoutError: the database did not answer in time. The connection is aborted, because a cancellation would
                wait for the server.
        """
        by_statement = self._group_by_statement(batch)
        if not by_statement and self.unavailable_since is None:
            return
        deadline = Deadline.after(self._policy.attempt_seconds)
        async with deadline.limit():
            connection = await self._connect()
        abort = asyncio.get_running_loop().call_later(deadline.remaining(), connection.terminate)
        try:
            async with asyncio.timeout(self._policy.attempt_seconds + _ABORT_SECONDS):
                await _execute(connection, by_statement)
        except Exception as error:
            if not _is_rolled_back(error):
                for write in batch:
                    write.may_be_stored = True
            if deadline.is_over:
                raise TimeoutError from error
            raise
        finally:
            abort.cancel()

    def _group_by_statement(self, batch: list[PendingWrite]) -> dict[str, list[statements.Values]]:
        by_source: dict[EventSource, list[PendingWrite]] = {}
        for write in batch:
            by_source.setdefault(write.source, []).append(write)
        by_statement: dict[str, list[statements.Values]] = {}
        for source, writes in by_source.items():
            rows = [write.row for write in writes if write.row is not None and write.takes_row]
            entries = [entry for write in writes for entry in write.taken_entries]
            fence = Fence(source.turn_id, self._policy.worker_id, source.epoch)
            for statement, row in statements.build_commit_rows(fence, rows, entries, attempts=source.attempts):
                by_statement.setdefault(statement, []).append(row)
        return by_statement

    async def _connect(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._policy.connect()
        return self._connection


class LargeWriter(JournalWriter):
    """Commits the writes that are too large for other batches.

    A batch has writes of one turn. The writer is connected only while there are any.
    """

    def __init__(self, name: str, queue: JournalQueue, policy: CommitPolicy, regular: JournalWriter) -> None:
        super().__init__(name, queue, policy)
        self._regular = regular

    def _take_batch(self) -> list[PendingWrite]:
        batch = self._queue.take_large(self._regular.max_bytes, self.max_bytes)
        if not batch:
            self.disconnect()
        return batch

    def _must_probe(self) -> bool:
        return False

    def _list_retried(self, batch: list[PendingWrite]) -> list[PendingWrite]:
        sources = {write.source for write in batch}
        return [write for write in self._queue.list_writes() if write.source in sources]


def _is_rolled_back(error: Exception) -> bool:
    """Return whether a failed transaction has certainly had no effect."""
    sqlstate = get_sqlstate(error)
    return sqlstate is not None and sqlstate[:2] not in _ENDS_OF_CONNECTION


async def _execute(connection: Connection, by_statement: dict[str, list[statements.Values]]) -> None:
    if not by_statement:
        await connection.execute(statements.PROBE)
    elif len(by_statement) == 1:
        await connection.executemany(*by_statement.popitem())  # is a transaction of its own
    else:
        async with connection.transaction():
            for statement in statements.EXECUTION_ORDER:
                if rows := by_statement.get(statement):
                    await connection.executemany(statement, rows)

"""Commits of the journal's writes, over a connection of their own."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from uuid import UUID

from gateway.common.concurrency import Backoff, SupervisedTask
from gateway.common.logging import get_logger
from gateway.domain.errors import StorageRefused
from gateway.ports.journal import EventSource
from gateway.store.errors import StorageFailure, classify_error, get_sqlstate
from gateway.store.journal import batch as batches
from gateway.store.journal import statements
from gateway.store.journal.batch import DISCARD_PLANS, Connection, execute_rows
from gateway.store.journal.queue import JournalQueue, PendingWrite
from gateway.store.journal.statements import Fence, Row
from gateway_runtime.postgres.hidden_tables import is_table_hidden

log = get_logger(__name__)

MAX_BATCH_BYTES = 1024 * 1024
_MIN_BATCH_BYTES = 16 * 1024
_SHRINK_FACTOR = 4
_GROWTH_DIVISOR = 8
_MAX_BUFFERED_BYTES = 16 * 1024
_ABORT_SECONDS = 0.1
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_TIMEOUT_SQLSTATES = ("57014", "55P03")
"""Cancelled, for example by statement_timeout, and lock_timeout."""
_INSUFFICIENT_RESOURCES = "53"
"""Class of SQLSTATE codes, for example 53100 (disk full).

Only some writes meet them; an empty commit does not.
"""
_INSUFFICIENT_PRIVILEGE = "42501"
"""SQLSTATE code of a missing privilege.

Only some writes meet it as well: the default of a column may need it.
"""
_TOO_MANY_CONNECTIONS = "53300"
"""The exception: a new connection meets it as well."""
_ENDS_OF_CONNECTION = ("08", "57")
"""Classes of SQLSTATE codes that leave the result of a commit unknown."""
_get_size = attrgetter("size")


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """How the writers commit.

    A commit attempt ends after `attempt_seconds`. A turn whose write could not be stored for `retry_seconds` is given
    up: `give_up` is called with its log. `refuse` is called with the log of a turn whose write can never be stored.
    `on_commit` is told of each attempt: its writes, its seconds, and whether it succeeded.
    """

    worker_id: UUID
    connect: Callable[[], Awaitable[Connection]]
    attempt_seconds: float
    retry_seconds: float
    give_up: Callable[[EventSource], None]
    refuse: Callable[[EventSource, Exception], None]
    on_commit: Callable[[int, float, bool], None] | None = None


class JournalWriter:
    """Commits the writes of all turns together.

    A batch that cannot be written in time is made smaller. A batch that the database refuses is split, so that only the
    refused turn fails.
    """

    def __init__(self, name: str, queue: JournalQueue, policy: CommitPolicy, *, vital: bool = True) -> None:
        self.task = SupervisedTask(name, self._write_forever, vital=vital)
        self.max_bytes = MAX_BATCH_BYTES
        self.succeeded_at = -math.inf
        """Start of the last successful attempt."""
        self.unavailable_since: float | None = None
        """Start of the first failed attempt; None after a commit."""
        self._refusal: tuple[str, float] | None = None
        self._queue = queue
        self._policy = policy
        self._connection: Connection | None = None
        self._planned_at = -math.inf
        self._has_changed = asyncio.Event()
        self._is_probe_requested = False
        self._backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        self._subscribe()

    def _subscribe(self) -> None:
        self._queue.subscribe(self._has_changed.set)

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

    @property
    def recent_refusal(self) -> str | None:
        """SQLSTATE code of the last write, if resources or privileges were insufficient.

        None after `retry_seconds`.
        """
        if self._refusal is None:
            return None
        sqlstate, refused_at = self._refusal
        is_recent = asyncio.get_running_loop().time() - refused_at < self._policy.retry_seconds
        return sqlstate if is_recent else None

    def request_probe(self) -> None:
        """Test soon, also without a write, if the database is available."""
        self._is_probe_requested = True
        self._has_changed.set()

    def _must_probe(self) -> bool:
        return self.unavailable_since is not None or self._is_probe_requested

    async def _write_batch(self, batch: list[PendingWrite]) -> None:
        started_at = asyncio.get_running_loop().time()
        try:
            await self._commit_split(batch)
        except Exception as error:  # noqa: BLE001 - an unexpected error would stop the only writer
            self._queue.finish(batch)
            self._report_commit(batch, started_at, succeeded=False)
            self._handle_failure(error, batch, started_at)
            await asyncio.sleep(min(self._stop_overdue(batch), self._backoff.next_delay()))
        else:
            self._queue.finish(batch)
            self._report_commit(batch, started_at, succeeded=True)
            self._handle_success(batch, started_at)

    def _report_commit(self, batch: list[PendingWrite], started_at: float, *, succeeded: bool) -> None:
        if batch and self._policy.on_commit is not None:
            self._policy.on_commit(len(batch), asyncio.get_running_loop().time() - started_at, succeeded)

    def _handle_success(self, batch: list[PendingWrite], started_at: float) -> None:
        if batch:
            self._refusal = None
        self.succeeded_at = started_at
        self.unavailable_since = None
        self._is_probe_requested = False
        self._backoff.reset()
        self.max_bytes = min(self.max_bytes + self.max_bytes // _GROWTH_DIVISOR, MAX_BATCH_BYTES)

    def _handle_failure(self, error: Exception, batch: list[PendingWrite], started_at: float) -> None:
        """Prepare the next attempt: smaller, over a new connection."""
        log.warning(
            "journal_commit_failed",
            task=self.task.name,
            error=type(error).__name__,
            sqlstate=get_sqlstate(error),
            writes=len(batch),
        )
        self.disconnect()
        sqlstate = get_sqlstate(error) or ""
        if batch and _is_met_by_some_writes(sqlstate):
            self._refusal = sqlstate, asyncio.get_running_loop().time()
        for write in batch:
            write.attempted_at = started_at
            if write.refused_at is None:
                write.refused_at = started_at
        self._mark_suspects(error, batch)
        if _is_timeout(error):
            self.max_bytes = max(self.max_bytes // _SHRINK_FACTOR, _MIN_BATCH_BYTES)
        if self.unavailable_since is None:
            self.unavailable_since = started_at

    def _mark_suspects(self, error: Exception, batch: list[PendingWrite]) -> None:
        """Suspect the turns of the first batch that takes too long.

        If the next attempt without them succeeds, the cause is one of them, and not the database.
        """
        if _is_timeout(error) and self.unavailable_since is None:
            self._queue.mark_suspects(batch)
        else:
            self._queue.clear_suspects()

    def _stop_overdue(self, batch: list[PendingWrite]) -> float:
        """Give up overdue turns, and return the seconds until the next one."""
        del batch
        overdue, seconds = self._find_overdue(write for write in self._queue.list_idle() if write.expires)
        for source in overdue:
            self._policy.give_up(source)
        return seconds

    def _find_overdue(self, writes: Iterable[PendingWrite]) -> tuple[list[EventSource], float]:
        """Return the overdue turns, and the seconds until the next one."""
        now = asyncio.get_running_loop().time()
        since = now if self.unavailable_since is None else self.unavailable_since
        remaining = self._policy.retry_seconds
        overdue: dict[EventSource, None] = {}
        for write in writes:
            started_at = max(since, write.submitted_at) if write.refused_at is None else write.refused_at
            seconds = started_at + self._policy.retry_seconds - now
            if seconds <= 0:
                overdue[write.source] = None
            else:
                remaining = min(remaining, seconds)
        return list(overdue), remaining

    # --- committing

    async def _commit_split(self, batch: list[PendingWrite]) -> None:
        """Commit a batch, and find a refused turn by halves."""
        try:
            await self._commit(batch)
        except Exception as error:
            failure = classify_error(error)
            if failure is StorageFailure.UNAVAILABLE or await is_table_hidden("turns", error, self._policy.connect):
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
            TimeoutError: the database did not answer in time.
        """
        rows = self._build_rows(batch)
        if not rows and not self._must_probe():
            return
        connection = self._connection
        if connection is None or connection.is_closed():
            async with asyncio.timeout(self._policy.attempt_seconds):
                connection = self._connection = await self._policy.connect()
        is_aborted = False

        def abort_connection() -> None:
            nonlocal is_aborted
            is_aborted = True
            connection.terminate()

        # A cancellation would wait for the server's answer to it, and an aborted connection does not.
        abort = asyncio.get_running_loop().call_later(self._policy.attempt_seconds, abort_connection)
        try:
            await self._renew_plans(connection)
            if sum(map(_get_size, batch)) <= _MAX_BUFFERED_BYTES:
                await _execute(connection, rows)
            else:  # a write that waits for the socket does not notice the end of the connection
                async with asyncio.timeout(self._policy.attempt_seconds + _ABORT_SECONDS):
                    await _execute(connection, rows)
        except Exception as error:
            if not _is_rolled_back(error):
                for write in batch:
                    write.may_be_stored = True
            if is_aborted:
                raise TimeoutError from error
            raise
        finally:
            abort.cancel()

    async def _renew_plans(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._planned_at >= batches.PLAN_SECONDS:
            await connection.execute(DISCARD_PLANS)
            self._planned_at = now

    def _build_rows(self, batch: list[PendingWrite]) -> list[Row]:
        by_source: dict[EventSource, list[PendingWrite]] = {}
        for write in batch:
            by_source.setdefault(write.source, []).append(write)
        rows: list[Row] = []
        for source, writes in by_source.items():
            own = [write.row for write in writes if write.row is not None and write.takes_row]
            entries = [entry for write in writes for entry in write.taken_entries]
            fence = Fence(source.turn_id, self._policy.worker_id, source.epoch)
            rows += statements.build_commit_rows(fence, own, entries, attempts=source.attempts)
        return rows


class SlowWriter(JournalWriter):
    """Commits the writes that would delay or have delayed the others.

    A batch has writes of one turn. The writer works, and is connected, only while the others are committed and there
    are such writes.
    """

    def __init__(self, name: str, queue: JournalQueue, policy: CommitPolicy, regular: JournalWriter) -> None:
        super().__init__(name, queue, policy)
        self._regular = regular

    def _subscribe(self) -> None:
        self._queue.subscribe_slow(self._has_changed.set)

    def _take_batch(self) -> list[PendingWrite]:
        is_available = self._regular.unavailable_since is None
        batch = self._queue.take_slow(self._regular.max_bytes, self.max_bytes) if is_available else []
        if not batch:
            self.disconnect()
        return batch

    def _must_probe(self) -> bool:
        return False

    def _handle_success(self, batch: list[PendingWrite], started_at: float) -> None:
        super()._handle_success(batch, started_at)
        self._queue.clear_suspects(batch)

    def _mark_suspects(self, error: Exception, batch: list[PendingWrite]) -> None:
        del error
        self._queue.mark_suspects(batch)
        self._regular.request_probe()

    def _stop_overdue(self, batch: list[PendingWrite]) -> float:
        """Give up overdue suspects, or refuse a write that is too large.

        They are the cause only if others were committed meanwhile.
        """
        suspects = self._queue.list_suspects()
        _, seconds = self._find_overdue(suspects)
        is_available = self._regular.unavailable_since is None
        if not is_available or self.unavailable_since is None or self._regular.succeeded_at < self.unavailable_since:
            return seconds
        overdue, _ = self._find_overdue(batch)
        refused = {write.source for write in batch if write.source in overdue and write.first_size > _MIN_BATCH_BYTES}
        for source in refused:
            self._policy.refuse(source, StorageRefused("The content is too large to be stored in time."))
        overdue, _ = self._find_overdue(write for write in suspects if write.expires and write.source not in refused)
        for source in overdue:
            self._policy.give_up(source)
        return seconds


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or get_sqlstate(error) in _TIMEOUT_SQLSTATES


def _is_met_by_some_writes(sqlstate: str) -> bool:
    """Return whether an empty commit may succeed while others fail."""
    is_short_of_resources = sqlstate.startswith(_INSUFFICIENT_RESOURCES) and sqlstate != _TOO_MANY_CONNECTIONS
    return is_short_of_resources or sqlstate == _INSUFFICIENT_PRIVILEGE


def _is_rolled_back(error: Exception) -> bool:
    """Return whether a failed transaction has certainly had no effect."""
    sqlstate = get_sqlstate(error)
    return sqlstate is not None and sqlstate[:2] not in _ENDS_OF_CONNECTION


async def _execute(connection: Connection, rows: list[Row]) -> None:
    if rows:
        await execute_rows(connection, rows)
    else:
        await connection.execute(statements.PROBE)

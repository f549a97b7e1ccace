"""The journal with group commit.

One task per process commits the writes of all turns together. When the task is idle, it commits a write at once; during
a commit, new writes wait for the next one. See docs/adr/0002.
"""

import asyncio
from operator import attrgetter
from uuid import UUID

import asyncpg
import msgspec

from gateway.common.concurrency import Backoff, BoundedQueue, Deadline, SupervisedTask
from gateway.common.logging import get_logger
from gateway.common.redaction import Redactor
from gateway.domain.errors import Conflict, ConversationBusy, GatewayError, StorageUnavailable, TurnTakenOver
from gateway.domain.events import JournalEntry
from gateway.domain.messages import TurnOutcome, TurnRecord, Usage
from gateway.ports.store import EventSource, Journal
from gateway.store import journal_statements as statements
from gateway.store import redaction
from gateway.store.database import encode_jsonb
from gateway.store.errors import TAKEN_OVER_SQLSTATE, StorageFailure, classify_error, get_sqlstate
from gateway.store.journal_statements import Fence, Row
from gateway_runtime.postgres_connections import PostgresConnector

log = get_logger(__name__)

_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_COMMIT_TIMEOUT_SECONDS = 10.0


class _PendingWrite:
    """The writes of one turn in a commit.

    `row` begins or ends the turn; `done` completes with the commit.
    """

    __slots__ = ("done", "entries", "last_seq", "row", "size", "source")

    def __init__(self, source: EventSource, entries: list[JournalEntry], row: Row | None) -> None:
        self.source = source
        self.entries = entries
        self.last_seq = entries[-1].seq if entries else 0
        self.row = row
        self.size = sum(len(entry.data) for entry in entries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def succeed(self) -> None:
        for entry in self.entries:
            entry.release_encoded()
        if self.last_seq:
            self.source.mark_committed(self.last_seq)
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: GatewayError) -> None:
        """Fail the write for good, but mark it as committed.

        Otherwise its subscribers would wait for ever. The log of a turn that another worker owns is closed instead.
        """
        if isinstance(error, TurnTakenOver):
            self.source.fail(error)
        else:
            self.source.mark_committed(self.last_seq)
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks the error as retrieved, because not every write has a waiter


class PostgresJournal(Journal):
    """The journal, with a connection of its own.

    `flush_seconds` bounds the time that a delta is only in memory. `max_bytes` bounds the writes that wait while the
    database is unavailable: beyond it, `is_backlogged` is true, and turns wait in `wait_for_capacity()`. `begin_turn`
    fails after `timeout_seconds`.
    """

    def __init__(
        self,
        connector: PostgresConnector,
        worker_id: UUID,
        *,
        flush_seconds: float = 0.05,
        timeout_seconds: float = 5.0,
        max_bytes: int = 32 * 1024 * 1024,
        redactor: Redactor | None = None,
    ) -> None:
        self._connector = connector
        self._worker_id = worker_id
        self._flush_seconds = flush_seconds
        self._timeout_seconds = timeout_seconds
        self._redactor = redactor or Redactor()
        self._unredacted: dict[EventSource, list[JournalEntry]] = {}
        self._is_unavailable = False
        self._waiting: BoundedQueue[_PendingWrite] = BoundedQueue(max_bytes, size_of=attrgetter("size"))
        self._in_flight: list[_PendingWrite] = []
        self._dirty: dict[EventSource, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self.task = SupervisedTask("journal", self._write_forever, vital=True)

    def start(self) -> None:
        """Start the task that writes, which waits for the database."""
        self.task.start()

    async def stop(self, seconds: float = 5.0) -> None:
        """Commit the waiting writes, for at most `seconds`, then close the connection."""
        self._flush_dirty()
        deadline = Deadline.after(seconds)
        while (waiting := list(self._waiting)) and not deadline.is_over:
            await asyncio.wait([waiting[-1].done], timeout=deadline.remaining())
            await asyncio.sleep(0)  # lets the writer remove committed writes
        if self._waiting:
            log.error("journal_writes_lost", writes=len(self._waiting))
        await self.task.stop()
        self._disconnect()

    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin_turn`."""
        turn = redaction.redact_record(turn, self._redactor) if self._redactor else turn
        write = self._submit(log, statements.build_begin_row(turn, self._worker_id))
        try:
            await asyncio.wait_for(asyncio.shield(write.done), self._timeout_seconds)
        except TimeoutError:
            self._withdraw(write)
            raise StorageUnavailable from None

    def schedule_flush(self, log: EventSource) -> None:
        """See `Journal.schedule_flush`.

        With redaction rules, deltas wait for the end of their text.
        """
        if self._redactor:
            return
        self._dirty[log] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_seconds, self._flush_dirty)

    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.flush`."""
        return self._submit(log).done

    def finish_turn(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """See `Journal.finish_turn`."""
        outcome = redaction.redact_outcome(outcome, self._redactor) if self._redactor else outcome
        return self._submit(log, statements.build_finish_row(self._fence(log), outcome)).done

    def suspend_turn(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.suspend_turn`."""
        return self._submit(log, statements.build_suspend_row(self._fence(log))).done

    @property
    def is_unavailable(self) -> bool:
        return self._is_unavailable

    @property
    def is_backlogged(self) -> bool:
        return self._waiting.is_full

    async def wait_for_capacity(self) -> None:
        await self._waiting.wait_for_capacity()

    # --- queue

    def _flush_dirty(self) -> None:
        self._timer = None
        for source in list(self._dirty):
            self._submit(source)

    def _submit(self, source: EventSource, row: Row | None = None) -> _PendingWrite:
        """Queue a turn's unwritten entries.

        An empty write is done when the earlier ones are.
        """
        self._dirty.pop(source, None)
        fresh = source.take_unwritten()
        if self._redactor:
            fresh, rest = redaction.split_trailing_deltas(self._unredacted.pop(source, []) + fresh)
            fresh = redaction.redact_entries(fresh, self._redactor)
            if rest:
                self._unredacted[source] = rest
        write = _PendingWrite(source, fresh, row)
        self._waiting.put(write)
        return write

    def _withdraw(self, write: _PendingWrite) -> None:
        """Drop the writes of a turn whose start has timed out.

        If its row is being committed now, queue an end that marks the turn as failed, unless its end is being
        committed, too.
        """
        source = write.source
        self._dirty.pop(source, None)
        self._unredacted.pop(source, None)
        in_flight = [other for other in self._in_flight if other.source is source]
        waiting = [other for other in self._waiting if other.source is source and other not in in_flight]
        self._waiting.remove(waiting)
        for other in waiting:
            other.done.cancel()
        if any(other.row is not None and other.row[0] == statements.FINISH_TURN for other in in_flight):
            return
        if write in in_flight:
            error = StorageUnavailable().to_error_info()
            outcome = TurnOutcome("failed", (), "", steps=0, usage=Usage(), duration_ms=0.0, error=error)
            self._submit(source, statements.build_finish_row(self._fence(source), outcome))

    # --- writing

    async def _write_forever(self) -> None:
        while True:
            self._in_flight = batch = await self._waiting.wait_for_items()
            await self._commit_with_retry(batch)
            self._in_flight = []
            self._waiting.remove(batch)

    async def _commit_with_retry(self, batch: list[_PendingWrite]) -> None:
        """Commit a batch, with retries while the database is unavailable.

        A batch that PostgreSQL refuses is split, so that only the invalid write fails.
        """
        backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while True:
            try:
                await self._commit(batch)
            except Exception as error:  # noqa: BLE001 - an unexpected error would stop the only writer
                if classify_error(error) is not StorageFailure.UNAVAILABLE:
                    self._is_unavailable = False
                    await self._commit_one_by_one(batch, error)
                    return
                log.warning("journal_commit_failed", error=type(error).__name__, writes=len(batch))
                self._is_unavailable = True
                self._disconnect()
                await asyncio.sleep(backoff.next_delay())
            else:
                self._is_unavailable = False
                for write in batch:
                    write.succeed()
                return

    async def _commit_one_by_one(self, batch: list[_PendingWrite], error: Exception) -> None:
        if len(batch) > 1:
            for write in batch:
                await self._commit_with_retry([write])
            return
        [write] = batch
        write_log = log.info if isinstance(error, asyncpg.UniqueViolationError) else log.error
        write_log("journal_write_refused", turn_id=str(write.source.turn_id), error=type(error).__name__)
        write.fail(_to_gateway_error(error))

    async def _commit(self, batch: list[_PendingWrite]) -> None:
        by_statement = self._group_by_statement(batch)
        if not by_statement:
            return
        connection = await self._connect()
        async with asyncio.timeout(_COMMIT_TIMEOUT_SECONDS):
            if len(by_statement) == 1:
                await connection.executemany(*by_statement.popitem())  # is a transaction of its own
                return
            async with connection.transaction():
                for statement in statements.EXECUTION_ORDER:
                    if rows := by_statement.get(statement):
                        await connection.executemany(statement, rows)

    def _group_by_statement(self, batch: list[_PendingWrite]) -> dict[str, list[statements.Values]]:
        by_source: dict[EventSource, list[_PendingWrite]] = {}
        for write in batch:
            by_source.setdefault(write.source, []).append(write)
        by_statement: dict[str, list[statements.Values]] = {}
        for source, writes in by_source.items():
            rows = [write.row for write in writes if write.row is not None]
            entries = [entry for write in writes for entry in write.entries]
            for statement, row in statements.build_commit_rows(
                self._fence(source), rows, entries, attempts=source.attempts
            ):
                by_statement.setdefault(statement, []).append(row)
        return by_statement

    def _fence(self, source: EventSource) -> Fence:
        return Fence(source.turn_id, self._worker_id, source.epoch)

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connector.connect()
            await self._connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=encode_jsonb, decoder=msgspec.json.decode
            )
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _to_gateway_error(error: Exception) -> GatewayError:
    if get_sqlstate(error) == TAKEN_OVER_SQLSTATE:
        return TurnTakenOver()
    if not isinstance(error, asyncpg.UniqueViolationError):
        return GatewayError()
    busy = error.constraint_name == "ux_turns_busy"
    return ConversationBusy() if busy else Conflict("This idempotency key has started a turn.")

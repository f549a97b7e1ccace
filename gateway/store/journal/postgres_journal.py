"""The journal with group commit.

One task per process commits the writes of all turns together. When the task is idle, it commits a write at once; during
a commit, new writes wait for the next one. A second task commits writes that would delay the others. See
docs/adr/0002.
"""

import asyncio
from collections.abc import Callable, Iterable
from uuid import UUID

import asyncpg

from gateway.common.concurrency import Deadline, SupervisedTask, wait_for_result
from gateway.common.logging import get_logger
from gateway.domain.errors import (
    Conflict,
    ConversationBusy,
    GatewayError,
    NotFound,
    StorageRefused,
    StorageUnavailable,
)
from gateway.domain.events import JournalEntry, TurnFailed, encode_event
from gateway.domain.messages import Message, TurnOutcome, TurnRecord, Usage
from gateway.ports.journal import EventSource, Journal
from gateway.store.errors import to_gateway_error
from gateway.store.journal import redaction, statements
from gateway.store.journal.batch import CONNECTION_SETTINGS, Connection
from gateway.store.journal.queue import JournalQueue, NullEventSource, PendingWrite
from gateway.store.journal.statements import Fence, Row
from gateway.store.journal.writer import CommitPolicy, JournalWriter, SlowWriter
from gateway_runtime.postgres.connections import PostgresConnector
from gateway_runtime.redaction.redactor import Redactor

log = get_logger(__name__)

_ATTEMPTS = 3
"""Number of commit attempts that fit into the retry time."""


class PostgresJournal(Journal):
    """The journal, with connections of its own.

    `flush_seconds` bounds the time that a delta is only in memory. `max_bytes` bounds the writes that wait while the
    database is unavailable: beyond it, `is_backlogged` is true, no turn begins, and turns wait in
    `wait_for_capacity()`. `begin_turn` fails after `timeout_seconds`. A turn whose writes the database refuses for
    `retry_seconds` is given up: its log fails, and any worker may claim it once the database takes writes again.
    For `on_commit` see `CommitPolicy`.
    """

    def __init__(
        self,
        connector: PostgresConnector,
        worker_id: UUID,
        *,
        flush_seconds: float = 0.05,
        timeout_seconds: float = 5.0,
        retry_seconds: float = 10.0,
        max_bytes: int = 32 * 1024 * 1024,
        redactor: Redactor | None = None,
        on_commit: Callable[[int, float, bool], None] | None = None,
    ) -> None:
        self._connector = connector
        self._worker_id = worker_id
        self._flush_seconds = flush_seconds
        self._timeout_seconds = timeout_seconds
        self._attempt_seconds = retry_seconds / _ATTEMPTS
        self._redactor = redactor or None  # without rules it is false
        self._unredacted: dict[EventSource, list[JournalEntry]] = {}
        self._dirty: dict[EventSource, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due: dict[EventSource, None] = {}
        self._queue = JournalQueue(max_bytes)
        policy = CommitPolicy(
            worker_id=worker_id,
            connect=self._connect,
            attempt_seconds=self._attempt_seconds,
            retry_seconds=retry_seconds,
            give_up=self._give_up,
            refuse=self._refuse,
            on_commit=on_commit,
        )
        self._writer = JournalWriter("journal", self._queue, policy)
        self._slow_writer = SlowWriter("journal, slow writes", self._queue, policy, self._writer)

    @property
    def tasks(self) -> tuple[SupervisedTask, ...]:
        return self._writer.task, self._slow_writer.task

    def start(self) -> None:
        """Start the tasks that write, which wait for the database."""
        for task in self.tasks:
            task.start()

    async def stop(self, seconds: float = 5.0) -> None:
        """Commit the waiting writes, for at most `seconds`, then close the connections."""
        self._flush_due()
        self._flush_dirty()
        deadline = Deadline.after(seconds)
        while (writes := self._queue.list_writes()) and not deadline.is_over:
            await asyncio.wait([writes[-1].done], timeout=deadline.remaining())
            await asyncio.sleep(0)  # lets the writer remove committed writes
        if self._queue:
            log.error("journal_writes_lost", writes=len(self._queue))
        for task in self.tasks:
            await task.stop()
        self._writer.disconnect()
        self._slow_writer.disconnect()

    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin_turn`."""
        if self.is_backlogged:
            raise StorageUnavailable
        turn = redaction.redact_record(turn, self._redactor) if self._redactor else turn
        row = statements.build_begin_row(turn, self._worker_id)
        write = self._submit(log, row, row_size=_count_chars(turn.request.messages))
        try:
            await wait_for_result(write.done, self._timeout_seconds)
        except TimeoutError:
            self._withdraw(write)
            raise StorageUnavailable from None

    def schedule_flush(self, log: EventSource, *, at_once: bool = False) -> None:
        """See `Journal.schedule_flush`.

        With redaction rules, deltas wait for the end of their text.
        """
        if at_once:
            if not self._due:
                asyncio.get_running_loop().call_soon(self._flush_due)
            self._due[log] = None
            return
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
        row_size = len(outcome.response) + _count_chars(outcome.messages)
        return self._submit(log, statements.build_finish_row(self._fence(log), outcome), row_size=row_size).done

    def suspend_turn(self, log: EventSource, open_inputs: list[UUID]) -> asyncio.Future[None]:
        """See `Journal.suspend_turn`."""
        return self._submit(log, statements.build_suspend_row(self._fence(log), open_inputs)).done

    def is_writing(self, turn_id: UUID) -> bool:
        return self._queue.has_writes(turn_id) or any(source.turn_id == turn_id for source in self._due)

    @property
    def is_unavailable(self) -> bool:
        return self._writer.unavailable_since is not None

    @property
    def recent_refusal(self) -> str | None:
        """SQLSTATE code of a recent write, if resources or privileges were insufficient."""
        return self._writer.recent_refusal or self._slow_writer.recent_refusal

    @property
    def is_backlogged(self) -> bool:
        return self._queue.is_full

    async def wait_for_capacity(self) -> None:
        await self._queue.wait_for_capacity()

    # --- queue

    def _flush_dirty(self) -> None:
        self._timer = None
        for source in list(self._dirty):
            self._submit(source)

    def _flush_due(self) -> None:
        try:
            while self._due:
                self._submit(next(iter(self._due)))
        finally:
            if self._due:  # one source failed, the others are still due
                asyncio.get_running_loop().call_soon(self._flush_due)

    def _submit(self, source: EventSource, row: Row | None = None, *, row_size: int = 0) -> PendingWrite:
        """Queue a turn's unwritten entries.

        An empty write is done when the earlier ones are. A write fails at once if the turn's log has failed.
        """
        self._dirty.pop(source, None)
        self._due.pop(source, None)
        if source.failure is not None:
            write = PendingWrite(source, [])
            write.fail(source.failure)
            return write
        fresh = source.take_unwritten()
        if self._redactor:
            fresh, rest = redaction.split_trailing_deltas(self._unredacted.pop(source, []) + fresh)
            fresh = redaction.redact_entries(fresh, self._redactor)
            if rest:
                self._unredacted[source] = rest
        write = PendingWrite(source, fresh, row, row_size=row_size)
        self._queue.put(write)
        return write

    def _withdraw(self, start: PendingWrite) -> None:
        """Drop the writes of a turn whose start has timed out."""
        for write in self._remove_waiting(start.source, start):
            write.done.cancel()

    def _give_up(self, source: EventSource) -> None:
        """Stop a turn whose writes are refused for too long.

        Its writes are still tried, while this worker owns the turn, and then any worker may claim it. So a result that
        exists is not lost, and nobody runs the turn before its events can be stored.
        """
        error = StorageUnavailable("The database cannot be used, so the turn was stopped. Try again shortly.")
        self._submit(source)
        writes = self._queue.list_writes(source)
        log.error("turn_given_up", turn_id=str(source.turn_id), writes=len(writes))
        source.fail(error)
        if (start := next((write for write in writes if write.begins_turn), None)) is not None:
            for write in (*self._remove_waiting(source, start), start):
                write.fail(error)
            return
        for write in writes:
            write.fail(error)
            write.expires = False
        self._release(source)

    def _refuse(self, source: EventSource, error: Exception) -> None:
        """Stop a turn whose write the database refuses.

        A repetition would be refused as well.
        """
        writes = self._remove_waiting(source, None)
        refusal = _to_refusal(error, begins=any(write.begins_turn for write in writes))
        write_log = log.error if isinstance(refusal, StorageRefused) else log.info
        write_log("journal_write_refused", turn_id=str(source.turn_id), error=type(error).__name__, code=refusal.code)
        for write in writes:
            write.fail(refusal)
        if source.failure is not None and isinstance(refusal, StorageRefused):  # it was given up before
            self._release(NullEventSource(source.turn_id, source.epoch))
        source.fail(refusal)

    def _release(self, source: EventSource) -> None:
        row = statements.build_release_row(self._fence(source))
        self._queue.put(PendingWrite(source, [], row, expires=False))

    def _remove_waiting(self, source: EventSource, start: PendingWrite | None) -> list[PendingWrite]:
        """Remove the writes of a turn from the queue, and return them.

        A commit of `start`, which begins the turn, may have succeeded or succeed now. Then it stays, and an end follows
        that marks the turn as failed, unless its end is being committed, too.
        """
        self._dirty.pop(source, None)
        self._due.pop(source, None)
        self._unredacted.pop(source, None)
        in_flight = [write for write in self._queue.list_writes(source) if self._queue.is_in_flight(write)]
        stays = start is not None and (start.may_be_stored or start in in_flight)
        removed = [
            write
            for write in self._queue.list_writes(source)
            if write not in in_flight and not (stays and write is start)
        ]
        self._queue.remove(removed)
        if start is None or not stays:
            return removed
        start.expires = False
        if not any(write.row is not None and write.row[0] is statements.FINISH_TURN for write in in_flight):
            self._end_unstarted_turn(source, [entry for write in (start, *in_flight) for entry in write.entries])
        return removed

    def _end_unstarted_turn(self, source: EventSource, stored: list[JournalEntry]) -> None:
        """End a turn as failed whose caller got an error.

        Its start may be stored.
        """
        error = StorageUnavailable().to_error_info()
        outcome = TurnOutcome("failed", (), "", steps=0, usage=Usage(), duration_ms=0.0, error=error)
        row = statements.build_finish_row(self._fence(source), outcome)
        end = TurnFailed(error=error, saved="prompt")
        seq = max((entry.seq for entry in stored), default=None)
        entries = [] if seq is None else [JournalEntry(seq + 1, end, encode_event(end))]  # none: no events are stored
        self._queue.put(PendingWrite(source, entries, row, expires=False))

    def _fence(self, source: EventSource) -> Fence:
        return Fence(source.turn_id, self._worker_id, source.epoch)

    async def _connect(self) -> Connection:
        connection = await self._connector.connect()
        await self._connector.limit_transactions(connection, self._attempt_seconds)  # each attempt is given up by then
        await connection.execute(CONNECTION_SETTINGS)
        return connection


def _count_chars(messages: Iterable[Message]) -> int:
    return sum([len(message.text) for message in messages])


def _to_refusal(error: Exception, *, begins: bool) -> GatewayError:
    """Return the error that the turn fails with.

    `begins`: the write would have begun it.
    """
    if isinstance(error, GatewayError):
        return error
    if begins and isinstance(error, asyncpg.ForeignKeyViolationError):
        return NotFound("The conversation has been deleted.", param="conversation_id")
    if not isinstance(error, asyncpg.UniqueViolationError):
        return to_gateway_error(error)
    if not begins:
        return StorageRefused()
    is_busy = error.constraint_name == "ux_turns_busy"
    return ConversationBusy() if is_busy else Conflict("This idempotency key has started a turn.")

"""Group commit: the writes of all turns, gathered and committed together.

One task a process writes. When it is idle a write is committed at once; while a commit runs, what arrives waits for the
next one. So a quiet gateway answers without delay and a busy one pays for one commit where it would have paid for many.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.common.redaction import Redactor
from gateway.domain.errors import Conflict, ConversationBusy, GatewayError, StorageUnavailable
from gateway.domain.events import Entry, InputResolved, ToolCallStarted, ToolFinished
from gateway.domain.messages import Parameters, TurnOutcome, TurnRecord, TurnRequest, Usage
from gateway.ports.store import EventSource, Journal
from gateway.store import redaction
from gateway.store.database import jsonb

log = get_logger(__name__)

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def _telling(first: int) -> str:
    """Keeps the events that a row brings in its parameters from `first` on, if it brings any, where `turn` is a row."""
    return f"""
INSERT INTO turn_events (turn_id, first_seq, last_seq, payload)
SELECT id, ${first}::int, ${first + 1}::int, ${first + 2}::text FROM turn WHERE ${first}::int IS NOT NULL
ON CONFLICT (turn_id, first_seq) DO NOTHING"""


# A turn's events go with whatever else is written of it: a statement of its own would be a round trip more.
_NO_EVENTS = (None, None, None)
_OURS = "WITH turn AS (SELECT id FROM turns WHERE id = $1 AND worker_id = $2)"
BEGIN_TURN = f"""
WITH turn AS (
INSERT INTO turns (id, conversation_id, owner, user_label, worker_id, status, prompt, messages, model_name,
                   parameters, options, request_id, idempotency_key, sent_messages, busy_conversation_id, parent_id,
                   caller)
VALUES ($1, $2, $3, $4, $5, 'running', $6, $7, $8, $9, $10, $11, $12, $13,
        CASE WHEN $14::uuid IS NULL THEN $2::uuid END,
        coalesce($14, (SELECT id FROM turns WHERE conversation_id = $2 ORDER BY id DESC LIMIT 1)), $15)
ON CONFLICT (id) DO NOTHING
RETURNING id)
{_telling(16)}"""
CALL_STARTED = f"""
{_OURS}, told AS ({_telling(3)})
INSERT INTO tool_calls (turn_id, call_id, step, server, tool, arguments, outcome)
VALUES ($1, $6, $7, $8, $9, $10, $11)
ON CONFLICT (turn_id, call_id) DO NOTHING"""
CALL_FINISHED = f"""
{_OURS}, told AS ({_telling(3)})
UPDATE tool_calls SET outcome = $7, content = $8, structured = $9, duration_ms = $10
WHERE turn_id = $1 AND call_id = $6"""
EVENTS = f"""
{_OURS}
{_telling(3)}"""
FINISH_TURN = f"""
WITH turn AS (
UPDATE turns SET status = $2, response = $3, messages = $4, finish_reason = $5, usage = $6, cost_usd = $7, steps = $8,
                 error = $9, completed_at = $10, first_token_ms = $11, duration_ms = $12, busy_conversation_id = NULL,
                 cached = $14
WHERE id = $1 AND worker_id = $13
RETURNING *), told AS ({_telling(15)})
INSERT INTO turn_usage (turn_id, owner, key, model_name, status, prompt_tokens, completion_tokens, total_tokens,
                        cached_tokens, reasoning_tokens, queue_time, model_time, generation_time, steps,
                        conversation_id, cost_usd, error_code, cached, at)
SELECT id, owner, caller->>'key', model_name, status, coalesce((usage->>'prompt_tokens')::bigint, 0),
       coalesce((usage->>'completion_tokens')::bigint, 0), coalesce((usage->>'total_tokens')::bigint, 0),
       coalesce((usage->>'cached_tokens')::bigint, 0), coalesce((usage->>'reasoning_tokens')::bigint, 0),
       coalesce((usage->>'queue_time')::float8, 0), coalesce((usage->>'model_time')::float8, 0),
       coalesce((usage->>'generation_time')::float8, 0), steps, conversation_id, cost_usd, error->>'code', cached,
       completed_at
FROM turn
ON CONFLICT (turn_id) DO NOTHING"""
CALL_EDITED = "UPDATE tool_calls SET arguments = $3 WHERE turn_id = $1 AND call_id = $2"
PARK_TURN = "UPDATE turns SET status = 'waiting', worker_id = NULL WHERE id = $1 AND worker_id = $2"
_ORDER = (BEGIN_TURN, CALL_STARTED, CALL_EDITED, CALL_FINISHED, EVENTS, FINISH_TURN, PARK_TURN)
"""A batch runs its statements in this order. Each may safely be run twice, as after a lost connection it is; and a
worker whose turn was taken over by another writes nothing more of it."""
_ABLE = {BEGIN_TURN: 15, FINISH_TURN: 14, CALL_STARTED: 2, CALL_FINISHED: 2}
"""The statements that can bring a turn's events, and behind how many other parameters they do."""


_Row = tuple[str, tuple[Any, ...]]
_Events = tuple[int, int, str] | tuple[None, None, None]


class _PendingWrite:
    """One turn's share of a commit, and who to tell. `row` begins or ends the turn."""

    __slots__ = ("done", "entries", "last_seq", "row", "size", "source")

    def __init__(self, source: EventSource, entries: list[Entry], row: _Row | None) -> None:
        self.source = source
        self.entries = entries
        self.last_seq = entries[-1].seq if entries else 0
        self.row = row
        self.size = sum(len(entry.data) for entry in entries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PostgresJournal(Journal):
    """The journal over one connection of its own.

    `flush_seconds` is the longest that a delta stays in memory only; `most_bytes` bounds what may wait while the
    database is away: past it `congested` is true and turns wait in `room()`.
    """

    def __init__(
        self,
        dsn: str,
        worker_id: UUID,
        *,
        flush_seconds: float = 0.05,
        patience: float = 5.0,
        max_bytes: int = 32 * 1024 * 1024,
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or Redactor()
        self._held: dict[UUID, list[Entry]] = {}
        self._is_unavailable = False
        self._is_backlogged = False
        self._dsn = dsn
        self._worker_id = worker_id
        self._flush_seconds = flush_seconds
        self._patience = patience
        self._most_bytes = max_bytes
        self._waiting: list[_PendingWrite] = []
        self._waiting_bytes = 0
        self._in_flight: list[_PendingWrite] = []
        self._dirty: dict[UUID, EventSource] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._work = asyncio.Event()
        self._has_capacity = asyncio.Event()
        self._has_capacity.set()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self.task = SupervisedTask("journal", self._write_forever, vital=True)

    def start(self) -> None:
        """Begin to write, in the background, as soon as the database is reachable."""
        self.task.start()

    async def stop(self, seconds: float = 5.0) -> None:
        """Write what still waits, for at most `seconds`, then let go."""
        self._flush_dirty()
        deadline = asyncio.get_running_loop().time() + seconds
        while self._waiting and asyncio.get_running_loop().time() < deadline:
            await asyncio.wait([self._waiting[-1].done], timeout=deadline - asyncio.get_running_loop().time())
        if self._waiting:
            log.error("journal_lost", writes=len(self._waiting))
        await self.task.stop()
        self._disconnect()

    async def begin(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin`."""
        turn = redaction.record(turn, self._redactor) if self._redactor else turn
        write = self._submit(log, (BEGIN_TURN, _turn_row(turn, self._worker_id)))
        try:
            await asyncio.wait_for(asyncio.shield(write.done), self._patience)
        except TimeoutError:
            self._withdraw(write)
            raise StorageUnavailable from None

    def schedule_flush(self, log: EventSource) -> None:
        """See `Journal.schedule_flush`. With rules to redact by, deltas wait for the end of their text."""
        if self._redactor:
            return
        self._dirty[log.turn_id] = log
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_seconds, self._flush_dirty)

    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.flush`."""
        return self._submit(log).done

    def finish(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """See `Journal.finish`."""
        outcome = redaction.outcome(outcome, self._redactor) if self._redactor else outcome
        return self._submit(log, (FINISH_TURN, _outcome_row(log.turn_id, outcome, self._worker_id))).done

    def suspend(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.suspend`."""
        return self._submit(log, (PARK_TURN, (log.turn_id, self._worker_id))).done

    @property
    def is_unavailable(self) -> bool:
        return self._is_unavailable

    @property
    def is_backlogged(self) -> bool:
        return self._is_backlogged

    async def wait_for_capacity(self) -> None:
        await self._has_capacity.wait()

    def _flush_dirty(self) -> None:
        self._timer = None
        for source in list(self._dirty.values()):
            self._submit(source)

    def _submit(self, source: EventSource, row: _Row | None = None) -> _PendingWrite:
        """Queue a turn's fresh entries. Without any, the write is done when those before it are."""
        self._dirty.pop(source.turn_id, None)
        fresh = source.take_unwritten()
        if self._redactor:
            fresh, rest = redaction.merge_deltas(self._held.pop(source.turn_id, []) + fresh)
            fresh = redaction.entries(fresh, self._redactor)
            if rest:
                self._held[source.turn_id] = rest
        write = _PendingWrite(source, fresh, row)
        self._waiting.append(write)
        self._waiting_bytes += write.size
        if self._waiting_bytes > self._most_bytes:
            self._is_backlogged = True
            self._has_capacity.clear()
        self._work.set()
        return write

    def _withdraw(self, write: _PendingWrite) -> None:
        """Forget a turn that nobody waits for any more, with all that it has brought since; if its row is being written
        just now, say that it failed, unless its end is, too."""
        source = write.source
        self._dirty.pop(source.turn_id, None)
        self._held.pop(source.turn_id, None)
        flying = [other for other in self._in_flight if other.source is source]
        waiting = [other for other in self._waiting if other.source is source and other not in flying]
        self._settled(waiting)
        for other in waiting:
            other.done.cancel()
        if any(other.row is not None and other.row[0] == FINISH_TURN for other in flying):
            return
        if write in flying:
            error = StorageUnavailable().info()
            outcome = TurnOutcome("failed", (), "", steps=0, usage=Usage(), duration_ms=0.0, error=error)
            self._submit(source, (FINISH_TURN, _outcome_row(source.turn_id, outcome, self._worker_id)))

    async def _write_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                self._in_flight = batch = list(self._waiting)
                await self._commit_surely(batch)
                self._in_flight = []
                self._settled(batch)

    def _settled(self, batch: list[_PendingWrite]) -> None:
        gone = set(map(id, batch))
        self._waiting = [write for write in self._waiting if id(write) not in gone]
        self._waiting_bytes = sum(write.size for write in self._waiting)
        if self._waiting_bytes <= self._most_bytes // 2:
            self._is_backlogged = False
            self._has_capacity.set()

    async def _commit_surely(self, batch: list[_PendingWrite]) -> None:
        """Commit, through any outage. A batch that Postgres refuses is taken apart: only the bad write fails."""
        delay = 0.05
        while True:
            try:
                await self._commit(batch)
            except Exception as error:  # noqa: BLE001 - the one writer must outlive whatever happens to its connection
                if _is_refusal(error):
                    self._is_unavailable = False
                    await self._commit_one_by_one(batch, error)
                    return
                log.warning("journal_waits_for_database", error=type(error).__name__, writes=len(batch))
                self._is_unavailable = True
                self._disconnect()
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
            else:
                self._is_unavailable = False
                for write in batch:
                    _succeed(write)
                return

    async def _commit_one_by_one(self, batch: list[_PendingWrite], error: Exception) -> None:
        if len(batch) > 1:
            for write in batch:
                await self._commit_surely([write])
            return
        say = log.info if isinstance(error, asyncpg.UniqueViolationError) else log.error
        say("journal_write_refused", turn_id=str(batch[0].source.turn_id), error=type(error).__name__)
        write = batch[0]
        write.source.mark_committed(write.last_seq)  # it never will be: its readers must not wait for that
        if not write.done.done():
            write.done.set_exception(_refused(error))
            write.done.exception()  # whoever waits hears of it; nobody waiting is no fault

    async def _commit(self, batch: list[_PendingWrite]) -> None:
        by_turn: dict[UUID, list[_PendingWrite]] = {}
        for write in batch:
            by_turn.setdefault(write.source.turn_id, []).append(write)
        by_statement: dict[str, list[tuple[Any, ...]]] = {}
        for turn_id, writes in by_turn.items():
            for statement, row in _rows(turn_id, writes, self._worker_id):
                by_statement.setdefault(statement, []).append(row)
        if not by_statement:
            return
        connection = await self._connected()
        async with asyncio.timeout(10):
            if len(by_statement) == 1:
                await connection.executemany(*by_statement.popitem())  # is one transaction by itself
                return
            async with connection.transaction():
                for statement in _ORDER:
                    if rows := by_statement.get(statement):
                        await connection.executemany(statement, rows)

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._dsn, timeout=5)
            await self._connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=jsonb, decoder=msgspec.json.decode
            )
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class EphemeralJournal(Journal):
    """For turns that must not be kept: their row holds figures alone, and their events are shown without a record."""

    def __init__(self, journal: PostgresJournal) -> None:
        self._journal = journal

    @property
    def is_unavailable(self) -> bool:
        return self._journal.is_unavailable

    @property
    def is_backlogged(self) -> bool:
        return False

    async def begin(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin`."""
        request = TurnRequest(
            messages=(), model=turn.request.model, parameters=turn.request.parameters, store=False,
            idempotency_key=turn.request.idempotency_key, parent_turn_id=turn.request.parent_turn_id,
        )  # fmt: skip
        await self._journal.begin(msgspec.structs.replace(turn, request=request), _NullEventSource(turn.id))
        self.schedule_flush(log)

    def schedule_flush(self, log: EventSource) -> None:
        """See `Journal.schedule_flush`."""
        entries = log.take_unwritten()
        if entries:
            log.mark_committed(entries[-1].seq)

    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.flush`."""
        self.schedule_flush(log)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def finish(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """See `Journal.finish`."""
        figures = msgspec.structs.replace(outcome, messages=(), response="")
        done = self._journal.finish(_NullEventSource(log.turn_id), figures)
        done.add_done_callback(lambda _: self.schedule_flush(log))
        return done

    def suspend(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.suspend`. Such a turn never waits for a person."""
        raise AssertionError

    async def wait_for_capacity(self) -> None:
        return


class _NullEventSource(EventSource):
    """A turn's log with nothing to write."""

    def __init__(self, turn_id: UUID) -> None:
        self.turn_id = turn_id

    def take_unwritten(self) -> list[Entry]:
        return []

    def mark_committed(self, seq: int) -> None:
        pass


def _refused(error: Exception) -> GatewayError:
    if not isinstance(error, asyncpg.UniqueViolationError):
        return GatewayError()
    busy = error.constraint_name == "ux_turns_busy"
    return ConversationBusy() if busy else Conflict("This idempotency key has begun a turn.")


def _is_refusal(error: Exception) -> bool:
    """Whether Postgres was there and would refuse the same rows again; asyncpg's own checks are ValueErrors."""
    if isinstance(error, asyncpg.PostgresError):
        return not isinstance(error, _AWAY)
    return isinstance(error, ValueError | TypeError)


def _succeed(write: _PendingWrite) -> None:
    for entry in write.entries:
        entry.kept()
    if write.last_seq:
        write.source.mark_committed(write.last_seq)
    if not write.done.done():
        write.done.set_result(None)


def _text(value: str) -> str:
    return value.replace("\x00", "\ufffd")


def _turn_row(turn: TurnRecord, worker_id: UUID) -> tuple[Any, ...]:
    request = turn.request
    # Whatever is not its default and has no column of its own.
    columns = {"messages": (), "parameters": Parameters(), "user_label": None, "idempotency_key": None}
    options = msgspec.to_builtins(msgspec.structs.replace(request, **columns))
    for name in ("messages", "model", "conversation_id"):
        options.pop(name, None)
    return (
        turn.id,
        turn.conversation_id,
        turn.owner,
        request.user_label and _text(request.user_label),
        worker_id,
        _text(request.prompt),
        request.messages,
        turn.model,
        request.parameters,
        options,
        turn.request_id,
        request.idempotency_key,
        len(request.messages),
        request.parent_turn_id,
        turn.caller,
    )


def _outcome_row(turn_id: UUID, outcome: TurnOutcome, worker_id: UUID) -> tuple[Any, ...]:
    return (
        turn_id,
        outcome.status,
        _text(outcome.response),
        outcome.messages,
        outcome.finish_reason,
        outcome.usage,
        outcome.cost_usd,
        outcome.steps,
        outcome.error,
        datetime.now(UTC),
        outcome.first_token_ms,
        outcome.duration_ms,
        worker_id,
        outcome.cached,
    )


def _rows(turn_id: UUID, writes: list[_PendingWrite], worker_id: UUID) -> list[_Row]:
    """What one commit writes of one turn: a ledger row for each call's start and end, and the rows that begin and end
    it. One of these also brings all its events, which are consecutive; without one they are a row alone."""
    rows = [write.row for write in writes if write.row is not None]
    entries = [entry for write in writes for entry in write.entries]
    if not entries:
        return [_bringing(_NO_EVENTS, row) for row in rows]
    events = entries[0].seq, entries[-1].seq, b"\n".join([entry.data for entry in entries]).decode()
    rows += _ledger_rows(turn_id, entries, worker_id)
    able = next((number for number, (statement, _) in enumerate(rows) if statement in _ABLE), None)
    if able is None:
        return [*rows, (EVENTS, (turn_id, worker_id, *events))]
    return [_bringing(events if number == able else _NO_EVENTS, row) for number, row in enumerate(rows)]


def _bringing(events: _Events, row: _Row) -> _Row:
    """The row with the events in their place among its parameters."""
    statement, values = row
    place = _ABLE.get(statement)
    return row if place is None else (statement, (*values[:place], *events, *values[place:]))


def _ledger_rows(turn_id: UUID, entries: Iterable[Entry], worker_id: UUID) -> Iterable[_Row]:
    for entry in entries:
        match entry.event:
            case ToolCallStarted() as call:
                outcome = "client" if call.client else None
                yield (
                    CALL_STARTED,
                    (turn_id, worker_id, call.call_id, call.step, call.server, call.tool, call.arguments, outcome),
                )
            case ToolFinished() as result:
                content, structured = result.content, result.structured
                yield (
                    CALL_FINISHED,
                    (turn_id, worker_id, result.call_id, result.outcome, content, structured, result.duration_ms),
                )
            case InputResolved(action="accept", content={"arguments": arguments}) as resolved:
                yield CALL_EDITED, (turn_id, resolved.call_id, arguments)
            case _:
                pass  # the journal row alone keeps it

"""Stored turns: reads, cancellation, and pruning of the journal."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import msgspec
from sqlalchemy import and_, delete, exists, or_, tuple_, update
from sqlmodel import col, func, select, text

from gateway.common.logging import get_logger
from gateway.domain import events as e
from gateway.domain.errors import Conflict, ErrorInfo, NotFound, StorageUnavailable, TurnNotStored
from gateway.domain.events import JournalEntry, decode_event
from gateway.domain.messages import Outcome, Principal, TurnClaim, TurnRecord, TurnRequest, Usage
from gateway.domain.reading import get_reader_key
from gateway.domain.turn_progress import TurnProgress
from gateway.ports.store import TurnRepository
from gateway.store.audit import make_audit_entry
from gateway.store.context.titles import clear_titles
from gateway.store.database import Database, DatabaseRow, count_changed_rows
from gateway.store.errors import raise_unreadable
from gateway.store.models import ToolCallRow, Turn, TurnEvents

log = get_logger(__name__)

MAX_ROWS = 2_000
MAX_EVENT_BYTES = 512 * 1024
"""Bytes of events after which a read of the journal ends."""
_RETRY_WINDOW = timedelta(minutes=2)
_RETRY_SECONDS = 3600
"""Age of the oldest turn that a retry repeats."""
_MAX_RETRIED_TURNS = 2_000
"""Number of a user's newest turns that are searched for a retry."""
_UUID7_TIME_SHIFT = 80
_PRUNE_SECONDS = 3600.0
_PRUNE_BATCH_SECONDS = 1.0
_PRUNE_TIMEOUT_SECONDS = 60.0

_EVENTS = f"""
WITH following AS MATERIALIZED (
    SELECT first_seq, payload, octet_length(payload) AS size FROM turn_events
    WHERE turn_id = :turn_id AND last_seq > :after ORDER BY first_seq LIMIT {MAX_ROWS}
), sized AS (
    SELECT first_seq, payload, sum(size) OVER (ORDER BY first_seq) - size AS bytes_before FROM following
)
SELECT first_seq, payload FROM sized WHERE bytes_before < {MAX_EVENT_BYTES} ORDER BY first_seq
"""  # noqa: S608
_PROGRESS = "SELECT status, epoch FROM turns WHERE id = :turn_id"
_WOKEN = """
SELECT known.id FROM unnest(cast(:ids AS uuid[]), cast(:epochs AS int[])) AS known (id, epoch)
LEFT JOIN turns ON turns.id = known.id
WHERE turns.status IS DISTINCT FROM 'waiting' OR turns.epoch <> known.epoch
"""
_DELETE_TURN = "DELETE FROM turns WHERE id = :id RETURNING conversation_id, left(prompt, 4000)"
_FAILED_TURNS = """
SELECT turn_id AS id, at, owner, model_name AS model, error_code AS error, status, steps, conversation_id
FROM turn_usage
WHERE error_code IS NOT NULL AND endpoint IS NULL AND (cast(:error AS text) IS NULL OR error_code = :error)
AND (cast(:before AS uuid) IS NULL OR (at, turn_id) < (SELECT at, turn_id FROM turn_usage WHERE turn_id = :before))
ORDER BY at DESC, turn_id DESC LIMIT :limit
"""


class TurnStore(TurnRepository):
    """See `TurnRepository`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_turn(self, turn_id: UUID, principal: Principal) -> Turn:
        """Return a turn of the principal.

        Raises:
            NotFound: the principal has no such turn, or may not read it.
        """
        query = select(Turn).where(Turn.id == turn_id, Turn.owner == principal.user)
        if (reader_key := get_reader_key(principal)) is not None:
            query = query.where(col(Turn.caller)["key"].astext == reader_key)
        async with self._database.session() as session:
            turn = (await session.exec(query)).first()
        if turn is None:
            raise NotFound(f"There is no turn {str(turn_id)!r}.")
        return turn

    async def load_request(self, turn_id: UUID, principal: Principal) -> TurnRequest:
        """See `TurnRepository.load_request`."""
        turn = await self.get_turn(turn_id, principal)
        if not turn.store:
            raise TurnNotStored("Only the usage of this turn is stored, so it cannot be forked or replayed.")
        with raise_unreadable(turn_id):
            request = _parse_request(turn)
        messages = request.messages[: turn.sent_messages]
        return msgspec.structs.replace(request, messages=messages, parent_turn_id=turn.parent_id)

    async def _find_tool_calls(self, turn_id: UUID, call_ids: Sequence[str]) -> dict[str, ToolCallRow]:
        query = select(ToolCallRow).where(ToolCallRow.turn_id == turn_id, col(ToolCallRow.call_id).in_(call_ids))
        async with self._database.session() as session:
            return {call.call_id: call for call in (await session.exec(query)).all()}

    async def find_by_idempotency_key(self, principal: Principal, idempotency_key: str) -> Turn | None:
        """See `TurnRepository.find_by_idempotency_key`."""
        query = select(Turn).where(Turn.owner == principal.user, Turn.idempotency_key == idempotency_key)
        async with self._database.session() as session:
            turn = (await session.exec(query)).first()
        reader_key = get_reader_key(principal)
        if turn is not None and reader_key is not None and (turn.caller or {}).get("key") != reader_key:
            raise Conflict("A turn of another key has this idempotency key.")
        return turn

    async def find_by_request_hash(self, principal: Principal, request_hash: str) -> Turn | None:
        """See `TurnRepository.find_by_request_hash`."""
        has_effects = or_(col(Turn.status) == "completed", exists().where(col(ToolCallRow.turn_id) == Turn.id))
        is_recent = and_(col(Turn.completed_at) > func.now() - _RETRY_WINDOW, has_effects)
        # The hash has no index, which would cost every turn a tenth of its time in PostgreSQL.
        first_id = UUID(int=int((time.time() - _RETRY_SECONDS) * 1000) << _UUID7_TIME_SHIFT)
        newest = select(Turn.id).where(Turn.owner == principal.user, col(Turn.id) > first_id)
        query = select(Turn).where(
            col(Turn.id).in_(newest.order_by(col(Turn.id).desc()).limit(_MAX_RETRIED_TURNS)),
            Turn.request_hash == request_hash,
            or_(col(Turn.completed_at).is_(None), is_recent),
        )
        async with self._database.session() as session:
            return (await session.exec(query.order_by(col(Turn.id).desc()).limit(1))).first()

    async def delete_turn(self, turn_id: UUID, *, by: str) -> None:
        """Delete a turn with its events, calls and questions.

        A title that repeats its prompt is removed. Turns that continue it stay.
        """
        async with self._database.session() as session:
            await session.exec(delete(TurnEvents).where(col(TurnEvents.turn_id) == turn_id))
            connection = await session.connection()
            rows = (await connection.execute(text(_DELETE_TURN), {"id": turn_id})).all()
            await clear_titles(connection, [(row[0], row[1]) for row in rows])
            session.add(make_audit_entry(by, "turn.delete", f"turn {turn_id}", {}))

    async def load_events(self, turn_id: UUID, after: int) -> list[JournalEntry]:
        """See `TurnRepository.load_events`."""
        rows = await self._database.fetch_rows(_EVENTS, turn_id=turn_id, after=after)
        entries: list[JournalEntry] = []
        # A write that was committed twice, after a lost connection, may be in two overlapping rows.
        for first_seq, payload in rows:
            for entry in _parse_entries(turn_id, first_seq, payload):
                if entry.seq > after:
                    entries.append(entry)
                    after = entry.seq
        return entries

    async def load_journal(self, turn_id: UUID) -> list[JournalEntry]:
        """See `TurnRepository.load_journal`."""
        events: list[JournalEntry] = []
        while more := await self.load_events(turn_id, events[-1].seq if events else 0):
            events += more
        return events

    async def iterate_events(self, turn: Turn) -> AsyncIterator[e.Event]:
        """Read the events of a turn in parts.

        Without a journal, the row of an ended turn has the main ones.
        """
        seq = 0
        while entries := await self.load_events(turn.id, seq):
            seq = entries[-1].seq
            for entry in entries:
                yield entry.event
        if seq == 0 and turn.store and turn.completed_at is not None:
            async for event in self._rebuild_events(turn):
                yield event

    async def _rebuild_events(self, turn: Turn) -> AsyncIterator[e.Event]:
        """Rebuild the main events of an ended turn without a journal.

        The sources are the turn's row and its calls, which are read for each step.
        """
        conversation = str(turn.conversation_id) if turn.conversation_id else None
        yield e.TurnStarted(turn_id=str(turn.id), conversation_id=conversation, model=turn.model_name)
        step = 0
        for message in turn.messages[turn.sent_messages :]:
            if message["role"] != "assistant":
                continue
            step += 1
            if message.get("content"):
                yield e.TextDelta(step=step, text=message["content"])
            if message.get("refusal"):
                yield e.TextDelta(step=step, text=message["refusal"], refusal=True)
            call_ids = [call["id"] for call in message.get("tool_calls") or ()]
            calls = await self._find_tool_calls(turn.id, call_ids) if call_ids else {}
            for call in (calls[call_id] for call_id in call_ids if call_id in calls):
                for event in _rebuild_call_events(call, step):
                    yield event
        usage = msgspec.convert(turn.usage or {}, Usage)
        yield e.StepCompleted(
            step=step, finish_reason=turn.finish_reason or "stop", usage=usage, cost_usd=turn.cost_usd
        )
        yield _rebuild_end_event(turn, usage)

    async def list_failed_turns(self, error: str | None, *, limit: int, before: UUID | None) -> Sequence[DatabaseRow]:
        """List turns that ended with an error, the last ones first.

        `error` is a code, `before` the id of the last turn of the previous page.
        """
        return await self._database.fetch_rows(_FAILED_TURNS, error=error, limit=limit, before=before)

    async def get_progress(self, turn_id: UUID) -> TurnProgress | None:
        """See `TurnRepository.get_progress`."""
        rows = await self._database.fetch_rows(_PROGRESS, turn_id=turn_id)
        return TurnProgress(*rows[0]) if rows else None

    async def find_woken(self, epochs: Mapping[UUID, int]) -> list[UUID]:
        """See `TurnRepository.find_woken`."""
        rows = await self._database.fetch_rows(_WOKEN, ids=list(epochs), epochs=list(epochs.values()))
        return [row[0] for row in rows]

    async def request_cancel(self, turn_id: UUID) -> None:
        """See `TurnRepository.request_cancel`."""
        is_open = (col(Turn.id) == turn_id, col(Turn.status).in_(("running", "waiting")))
        change = update(Turn).where(*is_open).values(cancel_requested=True, status="running", waits_for_task=False)
        async with self._database.session() as session:
            await session.exec(change)

    async def load_record(self, claim: TurnClaim) -> tuple[TurnRecord, bool]:
        """See `TurnRepository.load_record`."""
        async with self._database.session() as session:
            turn = (await session.exec(select(Turn).where(Turn.id == claim.turn_id))).one()
        with raise_unreadable(claim.turn_id):
            return _parse_record(turn, claim), turn.cancel_requested

    async def prune_journal(self, older_than: timedelta) -> int:
        """Delete journal rows of turns that ended before `older_than`.

        Return their number. The turns stay.
        """
        ended = select(Turn.id).where(col(Turn.completed_at) < func.now() - older_than)
        old = select(TurnEvents.turn_id, TurnEvents.first_seq).where(col(TurnEvents.turn_id).in_(ended)).limit(10_000)
        async with self._database.session(seconds=_PRUNE_TIMEOUT_SECONDS) as session:
            key = tuple_(col(TurnEvents.turn_id), col(TurnEvents.first_seq))
            return await count_changed_rows(session, delete(TurnEvents).where(key.in_(old)))


def _rebuild_call_events(call: ToolCallRow, step: int) -> list[e.Event]:
    client = call.outcome == "client"
    started = e.ToolCallStarted(
        step=step, call_id=call.call_id, server=call.server, tool=call.tool, arguments=call.arguments, client=client
    )
    if client or call.outcome is None:
        return [started]
    return [
        started,
        e.ToolFinished(
            call_id=call.call_id,
            outcome=msgspec.convert(call.outcome, Outcome),
            content=call.content or [],
            structured=call.structured,
            duration_ms=call.duration_ms or 0.0,
        ),
    ]


def _rebuild_end_event(turn: Turn, usage: Usage) -> e.TurnEnd:
    if turn.status == "completed":
        return e.TurnCompleted(
            finish_reason=turn.finish_reason or "stop",
            usage=usage,
            steps=turn.steps,
            duration_ms=turn.duration_ms or 0.0,
            first_token_ms=turn.first_token_ms,
            cost_usd=turn.cost_usd,
            tokens_per_second=usage.tokens_per_second,
            cached=turn.cached,
        )
    kind = e.TurnCancelled if turn.status == "cancelled" else e.TurnFailed
    return kind(error=msgspec.convert(turn.error, ErrorInfo), saved="text" if turn.response else "prompt")


def _parse_entries(turn_id: UUID, first_seq: int, payload: str) -> list[JournalEntry]:
    with raise_unreadable(turn_id):
        return [
            JournalEntry(first_seq + n, decode_event(line), line.encode()) for n, line in enumerate(payload.split("\n"))
        ]


def _parse_request(turn: Turn) -> TurnRequest:
    """Restore a turn's request.

    Until the turn ends, its row has only the messages of the request.
    """
    columns = {
        "messages": turn.messages,
        "model": turn.model_name,
        "parameters": turn.parameters,
        "conversation_id": str(turn.conversation_id) if turn.conversation_id else None,
        "user_label": turn.user_label,
        "on_disconnect": "continue",  # the client's connection ended with the worker that died
    }
    return msgspec.convert(turn.options | columns, TurnRequest)


def _parse_record(turn: Turn, claim: TurnClaim) -> TurnRecord:
    return TurnRecord(
        id=turn.id,
        owner=turn.owner,
        request=_parse_request(turn),
        model=turn.model_name,
        conversation_id=turn.conversation_id,
        request_id=turn.request_id,
        caller=None if turn.caller is None else msgspec.convert(turn.caller, Principal),
        epoch=claim.epoch,
        attempts=claim.attempts,
        trace_context=turn.trace_context,
    )


async def prune_forever(turns: TurnStore, older_than: timedelta) -> None:
    """Delete the journal of turns that ended before `older_than`, in batches."""
    while True:
        delay = _PRUNE_SECONDS
        try:
            if await turns.prune_journal(older_than):
                delay = _PRUNE_BATCH_SECONDS
        except StorageUnavailable:
            log.warning("journal_pruning_failed")
        await asyncio.sleep(delay)

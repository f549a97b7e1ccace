"""The SQL statements of the journal, and their parameters."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple, assert_never
from uuid import UUID

import msgspec

from gateway.domain import events as e
from gateway.domain.branches import NO_TURN
from gateway.domain.events import JournalEntry
from gateway.domain.history import HistorySummary
from gateway.domain.messages import Parameters, TurnOutcome, TurnRecord
from gateway.store.search.vector import build_search_vector, find_plain_words

Values = tuple[object, ...]
Row = tuple[str, Values]
"""A statement and its parameters."""
_MAX_INDEXED_LENGTH = 4_000
_Events = tuple[int, int, str] | tuple[None, None, None]


class Fence(NamedTuple):
    """The owner of a turn.

    Its fields are the first parameters of each statement that writes for the turn.
    """

    turn_id: UUID
    worker_id: UUID
    epoch: int


FENCE = """
WITH owned AS MATERIALIZED (
SELECT id FROM turns
WHERE id = $1 AND epoch = $3 AND (worker_id = $2 OR worker_id IS NULL AND status = 'waiting') FOR SHARE),
fence AS MATERIALIZED (SELECT coalesce((SELECT id FROM owned), refuse_stale_write($1)) AS id)"""
"""SQL that fails unless a worker owns a turn.

The worker is $2, the turn $1 and the epoch of the worker $3. The row lock makes a claim wait for the commit, or this
statement wait for the claim. A turn without a worker was suspended by the same owner: the statement runs again after a
lost connection.
"""


def _insert_events_sql(first: int, source: str) -> str:
    """Build SQL that also inserts the events of a turn.

    The events, if any, are the parameters from `first` on. They are inserted if the CTE `source` has a row. A write
    whose first attempt was committed unnoticed is repeated, maybe with more events behind it.
    """
    return f"""
INSERT INTO turn_events (turn_id, first_seq, last_seq, payload)
SELECT id, ${first}::int, ${first + 1}::int, ${first + 2}::text FROM {source} WHERE ${first}::int IS NOT NULL
ON CONFLICT (turn_id, first_seq) DO UPDATE SET last_seq = EXCLUDED.last_seq, payload = EXCLUDED.payload
WHERE turn_events.last_seq < EXCLUDED.last_seq"""


IS_FOLLOWED = "NOT is_replay AND (status NOT IN ('running', 'waiting') OR busy_conversation_id IS NOT NULL)"
"""Condition of the turns that a request without `parent_turn_id` may follow.

Not replays, which are experiments, and no branch that has not ended yet.
"""
# Another statement of the turn also inserts its events, because a separate one costs a round trip. See docs/adr/0002.
_NO_EVENTS = (None, None, None)
BEGIN_TURN = f"""
WITH turn AS (
INSERT INTO turns (id, conversation_id, owner, user_label, worker_id, status, prompt, messages, model_name,
                   parameters, options, request_id, idempotency_key, sent_messages, busy_conversation_id, parent_id,
                   caller, origin_id, is_replay, request_hash, trace_context)
VALUES ($1, $2, $3, $4, $5, 'running', $6, $7, $8, $9, $10, $11, $12, $13,
        CASE WHEN $14::uuid IS NULL AND $16::uuid IS NULL THEN $2::uuid END,
        CASE WHEN $14::uuid IS NOT NULL OR $16::uuid IS NOT NULL THEN nullif($14, '{NO_TURN}'::uuid)
             ELSE (SELECT id FROM turns WHERE conversation_id = $2 AND {IS_FOLLOWED}
                   ORDER BY position DESC NULLS LAST, id DESC LIMIT 1) END,
        $15, $16, $17, $18, $19)
ON CONFLICT (id) DO UPDATE SET worker_id = turns.worker_id
WHERE turns.worker_id = EXCLUDED.worker_id AND turns.epoch = EXCLUDED.epoch
RETURNING id),
fence AS (SELECT coalesce((SELECT id FROM turn), refuse_stale_write($1)) AS id)
{_insert_events_sql(20, "fence")}"""
START_CALL = f"""
{FENCE}, inserted AS ({_insert_events_sql(4, "fence")})
INSERT INTO tool_calls (turn_id, call_id, step, server, tool, arguments, outcome)
SELECT id, $7, $8, $9, $10, $11, $12 FROM fence
ON CONFLICT (turn_id, call_id) DO NOTHING"""
FINISH_CALL = f"""
{FENCE}, inserted AS ({_insert_events_sql(4, "fence")})
UPDATE tool_calls SET outcome = $8, content = $9, structured = $10, duration_ms = $11, source = $12
FROM fence WHERE turn_id = fence.id AND call_id = $7"""
INSERT_EVENTS = f"""
{FENCE}
{_insert_events_sql(4, "fence")}"""
INSERT_USAGE = """
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
FINISH_TURN = f"""
{FENCE}, turn AS (
UPDATE turns SET status = $7, response = $8, messages = $9, finish_reason = $10, usage = $11, cost_usd = $12,
                 steps = $13, error = $14, completed_at = $15, first_token_ms = $16, duration_ms = $17, cached = $18,
                 busy_conversation_id = NULL, search = coalesce(to_tsvector('simple', $19::text), $20::text::tsvector),
                 has_terms = coalesce($19, $20) IS NOT NULL
FROM fence WHERE turns.id = fence.id
RETURNING turns.*), inserted AS ({_insert_events_sql(4, "turn")})
{INSERT_USAGE}"""
EDIT_CALL = f"{FENCE} UPDATE tool_calls SET arguments = $5 FROM fence WHERE turn_id = fence.id AND call_id = $4"
RESET_ATTEMPTS = f"{FENCE} UPDATE turns SET attempts = 0 FROM fence WHERE turns.id = fence.id AND attempts > 0"
SUSPEND_TURN = f"""
{FENCE}
UPDATE turns SET worker_id = NULL,
    status = CASE WHEN cancel_requested OR is_due OR NOT asks THEN 'running' ELSE 'waiting' END,
    waits_for_task = NOT (cancel_requested OR is_due OR asks)
FROM fence, (SELECT
    EXISTS (SELECT FROM turn_inputs WHERE id = ANY($4::uuid[]) AND answer IS NOT NULL)
    OR EXISTS (SELECT FROM tool_tasks WHERE id = ANY($4::uuid[]) AND settled_at IS NOT NULL) AS is_due,
    EXISTS (SELECT FROM turn_inputs WHERE id = ANY($4::uuid[]))
    OR NOT EXISTS (SELECT FROM tool_tasks WHERE id = ANY($4::uuid[])) AS asks
) AS waits
WHERE turns.id = fence.id"""
SAVE_SUMMARY = f"{FENCE} UPDATE turns SET history_summary = $4 FROM fence WHERE turns.id = fence.id"
RELEASE_TURN = f"""
{FENCE}, inserted AS ({_insert_events_sql(4, "fence")})
UPDATE turns SET worker_id = NULL FROM fence WHERE turns.id = fence.id AND status = 'running'"""
PROBE = "INSERT INTO turn_events (turn_id, first_seq, last_seq, payload) SELECT id, 0, 0, '' FROM turns WHERE false"
"""Writes nothing, and fails where the journal's writes would fail."""
EXECUTION_ORDER = (
    BEGIN_TURN,
    START_CALL,
    EDIT_CALL,
    FINISH_CALL,
    INSERT_EVENTS,
    SAVE_SUMMARY,
    RESET_ATTEMPTS,
    FINISH_TURN,
    SUSPEND_TURN,
    RELEASE_TURN,
)
"""Order of the statements in a batch.

A statement may run twice after a lost connection. It fails for a turn that another worker has taken over.
"""
_EVENT_PARAM_OFFSETS = {BEGIN_TURN: 19, FINISH_TURN: 3, START_CALL: 3, FINISH_CALL: 3, RELEASE_TURN: 3}
"""Number of parameters before those of the events.

The keys are the statements that also insert a turn's events.
"""


def _replace_nul(value: str) -> str:
    return value.replace("\x00", "\ufffd")


def build_begin_row(turn: TurnRecord, worker_id: UUID) -> Row:
    request = turn.request
    # `options` holds the fields that differ from their defaults and have no column.
    columns = {
        "messages": (),
        "parameters": Parameters(),
        "user_label": None,
        "idempotency_key": None,
        "request_hash": None,
        "message_paths": (),
        # The event of the call has its arguments, redacted.
        "direct_call": request.direct_call and msgspec.structs.replace(request.direct_call, arguments={}),
    }
    options = msgspec.to_builtins(msgspec.structs.replace(request, **columns))
    for name in ("messages", "model", "conversation_id"):
        options.pop(name, None)
    values = (
        turn.id,
        turn.conversation_id,
        turn.owner,
        request.user_label and _replace_nul(request.user_label),
        worker_id,
        _replace_nul(request.prompt),
        request.messages,
        turn.model,
        request.parameters,
        options,
        turn.request_id,
        request.idempotency_key,
        len(request.messages),
        request.parent_turn_id,
        turn.caller,
        request.origin and request.origin.turn_id,
        request.origin is not None and request.origin.is_replay,
        request.request_hash,
        turn.trace_context,
    )
    return BEGIN_TURN, values


def build_finish_row(fence: Fence, outcome: TurnOutcome) -> Row:
    values = (
        *fence,
        outcome.status,
        _replace_nul(outcome.response),
        outcome.messages,
        outcome.finish_reason,
        outcome.usage,
        outcome.cost_usd,
        outcome.steps,
        outcome.error,
        datetime.now(UTC),
        outcome.first_token_ms,
        outcome.duration_ms,
        outcome.cached,
        *_build_search_terms(outcome),
    )
    return FINISH_TURN, values


def _build_search_terms(outcome: TurnOutcome) -> tuple[str | None, str | None]:
    """Build the terms of a short turn.

    They are words for PostgreSQL's parser, or a vector. Those of a long one take milliseconds, so `SearchIndexer` adds
    them.
    """
    if outcome.prompt is None or len(outcome.prompt) + len(outcome.response) > _MAX_INDEXED_LENGTH:
        return None, None
    if (words := find_plain_words(outcome.prompt, outcome.response)) is not None:
        return words, None
    return None, build_search_vector(outcome.prompt, outcome.response)


def build_release_row(fence: Fence) -> Row:
    """Build the row that lets any worker claim the turn.

    Its statement fails also while events cannot be stored, because the next owner would fail as well.
    """
    return RELEASE_TURN, fence


def build_suspend_row(fence: Fence, open_inputs: list[UUID]) -> Row:
    """Build the row that suspends a turn until something is settled.

    That is a question or a task.
    """
    return SUSPEND_TURN, (*fence, open_inputs)


def build_commit_rows(fence: Fence, rows: list[Row], entries: list[JournalEntry], *, attempts: int = 0) -> list[Row]:
    """Build the statements that write a turn's changes in one commit.

    `rows` are the statements that begin or end the turn, if it begins or ends. Each call that starts or ends adds a
    statement for `tool_calls`. The first statement that can also insert events inserts those of `entries`, which are
    consecutive; if there is none, a statement of its own does. If a step is completed, a last statement sets `attempts`
    to 0.
    """
    if not entries:
        return [_with_events(_NO_EVENTS, row) for row in rows]
    events = entries[0].seq, entries[-1].seq, b"\n".join([entry.data for entry in entries]).decode()
    rows = [*rows, *_build_call_rows(fence, entries)]
    if attempts and any(isinstance(entry.event, e.StepCompleted) for entry in entries):
        rows.append((RESET_ATTEMPTS, fence))
    carrier = next((number for number, (statement, _) in enumerate(rows) if statement in _EVENT_PARAM_OFFSETS), None)
    if carrier is None:
        return [*rows, (INSERT_EVENTS, (*fence, *events))]
    return [_with_events(events if number == carrier else _NO_EVENTS, row) for number, row in enumerate(rows)]


def _with_events(events: _Events, row: Row) -> Row:
    """Insert the events' parameters into a row, if its statement takes them."""
    statement, values = row
    offset = _EVENT_PARAM_OFFSETS.get(statement)
    return row if offset is None else (statement, (*values[:offset], *events, *values[offset:]))


def _build_call_rows(fence: Fence, entries: Iterable[JournalEntry]) -> Iterable[Row]:
    for entry in entries:
        match entry.event:
            case e.TextDelta() | e.ReasoningDelta():  # first: most events are deltas
                pass
            case e.ToolCallStarted() as call:
                outcome = "client" if call.client else None
                name = call.original_name or call.tool
                yield (
                    START_CALL,
                    (*fence, call.call_id, call.step, call.server, name, call.arguments, outcome),
                )
            case e.ToolFinished() as result:
                content, structured = result.content, result.structured
                source = None if result.source is msgspec.UNSET else result.source
                yield (
                    FINISH_CALL,
                    (*fence, result.call_id, result.outcome, content, structured, result.duration_ms, source),
                )
            case e.InputResolved(edited_arguments=dict() as arguments) as resolved:
                yield EDIT_CALL, (*fence, resolved.call_id, arguments)
            case e.HistorySummarized(text=str(summary), error=msgspec.UNSET) as done:
                yield SAVE_SUMMARY, (*fence, HistorySummary(summary, done.turns, UUID(done.through_turn_id)))
            case (
                e.InputResolved()
                | e.HistorySummarized()
                | e.SamplingCompleted()
                | e.TurnStarted()
                | e.ToolProgress()
                | e.ToolLog()
                | e.InputRequired()
                | e.TurnResumed()
                | e.StepCompleted()
                | e.ModelRetry()
                | e.TurnCompleted()
                | e.TurnFailed()
                | e.TurnCancelled()
            ):
                pass  # only in the journal
            case _:
                assert_never(entry.event)

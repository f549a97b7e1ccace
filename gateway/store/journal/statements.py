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
_MAX_INDEXED_LENGTH = 4_000
_Events = tuple[int, int, str] | tuple[None, None, None]
_NO_EVENTS = (None, None, None)
_EVENT_COLUMNS = "first_seq int, last_seq int, payload text"


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


IS_FOLLOWED = "NOT is_replay AND (status NOT IN ('running', 'waiting') OR busy_conversation_id IS NOT NULL)"
"""Condition of the turns that a request without `parent_turn_id` may follow.

Not replays, which are experiments, and no branch that has not ended yet.
"""
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


class Statement:
    """A change of turns, as part of a batch's SQL.

    `columns` are the names and types of a row's values; the first is `turn_id`. `sql` has the CTEs that write the rows
    of the CTE `name`, whose column `id` is the turn's. A fenced statement begins with the values of a `Fence`, and its
    rows are those of turns that their worker owns. If it `carries_events`, the last three values are those of events.
    """

    def __init__(
        self, name: str, columns: str, sql: str = "", *, is_fenced: bool = True, carries_events: bool = True
    ) -> None:
        if is_fenced:
            columns = f"turn_id uuid, worker_id uuid, epoch int, {columns}".removesuffix(", ")
        if carries_events:
            columns = f"{columns}, {_EVENT_COLUMNS}"
        self.name = name
        self.columns = columns
        self.names = tuple(column.partition(" ")[0] for column in columns.split(", "))
        self.sql = sql
        self.is_fenced = is_fenced
        self.carries_events = carries_events


Row = tuple[Statement, Values]
"""A statement and the values of one of its rows."""

BEGIN_TURN = Statement(
    "begun",
    "turn_id uuid, conversation_id uuid, owner text, user_label text, worker_id uuid, prompt text, messages jsonb,"
    " model_name text, parameters jsonb, options jsonb, request_id text, idempotency_key text, sent_messages int,"
    " parent_id uuid, caller jsonb, origin_id uuid, is_replay bool, request_hash text, trace_context jsonb",
    f"""
turn_begin AS (
INSERT INTO turns (id, conversation_id, owner, user_label, worker_id, status, prompt, messages, model_name,
                   parameters, options, request_id, idempotency_key, sent_messages, busy_conversation_id, parent_id,
                   caller, origin_id, is_replay, request_hash, trace_context)
SELECT turn_id, conversation_id, owner, user_label, worker_id, 'running', prompt, messages, model_name,
       parameters, options, request_id, idempotency_key, sent_messages,
       CASE WHEN parent_id IS NULL AND origin_id IS NULL THEN conversation_id END,
       CASE WHEN parent_id IS NOT NULL OR origin_id IS NOT NULL THEN nullif(parent_id, '{NO_TURN}'::uuid)
            ELSE (SELECT id FROM turns WHERE conversation_id = new.conversation_id AND {IS_FOLLOWED}
                  ORDER BY position DESC NULLS LAST, id DESC LIMIT 1) END,
       caller, origin_id, is_replay, request_hash, trace_context
FROM begun_rows AS new
ON CONFLICT (id) DO UPDATE SET worker_id = turns.worker_id
WHERE turns.worker_id = EXCLUDED.worker_id AND turns.epoch = EXCLUDED.epoch
RETURNING id),
begun AS MATERIALIZED (
SELECT CASE WHEN turn_id IN (SELECT id FROM turn_begin) THEN turn_id ELSE refuse_stale_write(turn_id) END AS id,
       first_seq, last_seq, payload FROM begun_rows)""",
    is_fenced=False,
)
START_CALL = Statement(
    "called",
    "call_id text, step int, server text, tool text, arguments jsonb, outcome text",
    """
call_start AS (
INSERT INTO tool_calls (turn_id, call_id, step, server, tool, arguments, outcome)
SELECT id, call_id, step, server, tool, arguments, outcome FROM called
ON CONFLICT (turn_id, call_id) DO NOTHING)""",
)
FINISH_CALL = Statement(
    "returned",
    "call_id text, outcome text, content jsonb, structured jsonb, duration_ms float8, source text",
    """
call_end AS (
UPDATE tool_calls SET outcome = new.outcome, content = new.content, structured = new.structured,
                      duration_ms = new.duration_ms, source = new.source
FROM returned AS new WHERE tool_calls.turn_id = new.id AND tool_calls.call_id = new.call_id)""",
)
INSERT_EVENTS = Statement("written", "")
FINISH_TURN = Statement(
    "ended",
    "status text, response text, messages jsonb, finish_reason text, usage jsonb, cost_usd float8, steps int,"
    " error jsonb, completed_at timestamptz, first_token_ms float8, duration_ms float8, cached bool, words text,"
    " vector text",
    f"""
turn AS (
UPDATE turns SET status = new.status, response = new.response, messages = new.messages,
                 finish_reason = new.finish_reason, usage = new.usage, cost_usd = new.cost_usd, steps = new.steps,
                 error = new.error, completed_at = new.completed_at, first_token_ms = new.first_token_ms,
                 duration_ms = new.duration_ms, cached = new.cached, busy_conversation_id = NULL,
                 search = coalesce(to_tsvector('simple', new.words), new.vector::tsvector),
                 has_terms = coalesce(new.words, new.vector) IS NOT NULL
FROM ended AS new WHERE turns.id = new.id
RETURNING turns.*),
usage AS ({INSERT_USAGE})""",
)
EDIT_CALL = Statement(
    "edited",
    "call_id text, arguments jsonb",
    """
call_edit AS (
UPDATE tool_calls SET arguments = new.arguments
FROM edited AS new WHERE tool_calls.turn_id = new.id AND tool_calls.call_id = new.call_id)""",
    carries_events=False,
)
RESET_ATTEMPTS = Statement(
    "advanced",
    "",
    "attempts_reset AS (UPDATE turns SET attempts = 0 FROM advanced AS new WHERE turns.id = new.id AND attempts > 0)",
    carries_events=False,
)
SUSPEND_TURN = Statement(
    "suspended",
    "open_inputs text",
    """
turn_suspension AS (
UPDATE turns SET worker_id = NULL,
    status = CASE WHEN cancel_requested OR is_due OR NOT asks THEN 'running' ELSE 'waiting' END,
    waits_for_task = NOT (cancel_requested OR is_due OR asks)
FROM suspended AS new, LATERAL (SELECT
    EXISTS (SELECT FROM turn_inputs WHERE id = ANY(new.open_inputs::uuid[]) AND answer IS NOT NULL)
    OR EXISTS (SELECT FROM tool_tasks WHERE id = ANY(new.open_inputs::uuid[]) AND settled_at IS NOT NULL) AS is_due,
    EXISTS (SELECT FROM turn_inputs WHERE id = ANY(new.open_inputs::uuid[]))
    OR NOT EXISTS (SELECT FROM tool_tasks WHERE id = ANY(new.open_inputs::uuid[])) AS asks
) AS waits
WHERE turns.id = new.id)""",
    carries_events=False,
)
SAVE_SUMMARY = Statement(
    "summarized",
    "summary jsonb",
    "summary AS (UPDATE turns SET history_summary = new.summary FROM summarized AS new WHERE turns.id = new.id)",
    carries_events=False,
)
RELEASE_TURN = Statement(
    "released",
    "",
    """
turn_release AS (
UPDATE turns SET worker_id = NULL FROM released AS new WHERE turns.id = new.id AND status = 'running')""",
)
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
"""Order of the statements for one turn.

A statement may run twice after a lost connection. It fails for a turn that another worker has taken over.
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
    return SUSPEND_TURN, (*fence, f"{{{','.join(map(str, open_inputs))}}}")


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
    carrier = next((number for number, (statement, _) in enumerate(rows) if statement.carries_events), None)
    if carrier is None:
        return [*rows, (INSERT_EVENTS, (*fence, *events))]
    return [_with_events(events if number == carrier else _NO_EVENTS, row) for number, row in enumerate(rows)]


def _with_events(events: _Events, row: Row) -> Row:
    """Add the events' values to a row, if its statement takes them."""
    statement, values = row
    return (statement, (*values, *events)) if statement.carries_events else row


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
                saved = HistorySummary(summary, done.turns, UUID(done.through_turn_id))
                yield SAVE_SUMMARY, (*fence, saved)
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

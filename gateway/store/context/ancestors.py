"""Loads the turns before a turn, up to the newest summary."""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from gateway.domain.history import History, HistorySummary, HistoryTurn
from gateway.domain.messages import Message, TurnRecord
from gateway.store.database import Database, DatabaseRow, decode_json
from gateway.store.errors import raise_unreadable
from gateway.store.journal.statements import IS_FOLLOWED

_START_OF_TURN = "SELECT parent_id AS id, origin_id FROM turns WHERE id = :turn_id"
_START_OF_NEXT_TURN = f"""
    SELECT CASE WHEN cast(:parent_id AS uuid) IS NOT NULL OR cast(:origin_id AS uuid) IS NOT NULL
           THEN cast(:parent_id AS uuid)
           ELSE (SELECT id FROM turns WHERE conversation_id = :conversation_id AND {IS_FOLLOWED}
                 ORDER BY position DESC NULLS LAST, id DESC LIMIT 1) END AS id,
           cast(:origin_id AS uuid) AS origin_id"""  # noqa: S608
_LINE = """
    WITH RECURSIVE start AS MATERIALIZED (
        SELECT start.id, origin.history_summary AS summary
        FROM ({start}) AS start LEFT JOIN turns AS origin ON origin.id = start.origin_id
    ), line AS (
        SELECT id, 1 AS depth, (summary->>'through_turn_id')::uuid AS through FROM start WHERE id IS NOT NULL
        UNION ALL
        SELECT turns.parent_id, depth + 1, coalesce(line.through,
            (coalesce(turns.history_summary, origin.history_summary)->>'through_turn_id')::uuid)
        FROM line JOIN turns ON turns.id = line.id LEFT JOIN turns AS origin ON origin.id = turns.origin_id
        WHERE depth <= :max_turns AND turns.parent_id IS NOT NULL AND turns.id IS DISTINCT FROM line.through
    )
    SELECT turns.id, depth,
           CASE WHEN turns.id IS DISTINCT FROM line.through
                AND (turns.response <> '' OR turns.finish_reason IN ('tool_calls', 'added')) THEN turns.messages END,
           coalesce(turns.history_summary, origin.history_summary), (SELECT summary FROM start)
    FROM line JOIN turns ON turns.id = line.id LEFT JOIN turns AS origin ON origin.id = turns.origin_id
    ORDER BY depth DESC
"""
"""SQL that lists the ancestors that no summary replaces.

They are in order, oldest first, after the last turn of the newest summary.

A fork and a replay use the summary of the turn that they come from, which is not their ancestor.
"""
_BEFORE_TURN = _LINE.format(start=_START_OF_TURN)
_BEFORE_NEXT_TURN = _LINE.format(start=_START_OF_NEXT_TURN)


async def load_history(database: Database, turn_id: UUID, *, max_turns: int) -> History:
    """See `ConversationRepository.load_history`."""
    rows = await database.fetch_rows(_BEFORE_TURN, turn_id=turn_id, max_turns=max_turns)
    return _build_history(rows, max_turns)


async def load_next_history(database: Database, turn: TurnRecord, *, max_turns: int) -> History:
    """See `ConversationRepository.load_next_history`."""
    request = turn.request
    rows = await database.fetch_rows(
        _BEFORE_NEXT_TURN,
        conversation_id=turn.conversation_id,
        parent_id=request.parent_turn_id,
        origin_id=request.origin and request.origin.turn_id,
        max_turns=max_turns,
    )
    return _build_history(rows, max_turns)


def _build_history(rows: Sequence[DatabaseRow], max_turns: int) -> History:
    if not rows:
        return History()
    turns = [_build_turn(row) for row in rows if row[1] <= max_turns]
    if (own_summary := _convert_summary(rows[0][4])) is not None:
        turns[-1] = msgspec.structs.replace(turns[-1], summary=own_summary)
    depth = rows[0][1]
    return History(rows[-1][0], tuple(turns), is_full=depth >= max_turns, is_cut=depth > max_turns)


def _build_turn(row: DatabaseRow) -> HistoryTurn:
    with raise_unreadable(row[0]):
        messages = () if row[2] is None else msgspec.convert(decode_json(row[2]), tuple[Message, ...])
        return HistoryTurn(row[0], messages, _convert_summary(row[3]))


def _convert_summary(value: object) -> HistorySummary | None:
    return None if value is None else msgspec.convert(decode_json(value), HistorySummary)

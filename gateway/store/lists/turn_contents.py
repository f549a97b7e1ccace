"""Contents of turns, read in parts that are bounded in bytes."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from gateway.store.database import Database, DatabaseRow
from gateway.store.journal.statements import IS_FOLLOWED
from gateway.store.lists.byte_pages import MAX_PAGE_ROWS, build_page_query

_TURNS = build_page_query(
    "turns",
    listed="SELECT turns.ctid FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS chosen (id, n)"
    " JOIN turns USING (id) ORDER BY chosen.n",
    size="octet_length(t.prompt) + octet_length(t.response) + octet_length(t.messages::text)",
    columns="t.id, t.parent_id, t.origin_id, t.is_replay, t.status, t.model_name, t.prompt, t.response,"
    " t.messages::text, t.error::text, t.created_at, t.completed_at",
)
_CALLS = build_page_query(
    "tool_calls",
    listed="SELECT ctid FROM tool_calls WHERE turn_id = :turn_id AND (started_at, call_id) > (:at, :call_id)"
    " ORDER BY started_at, call_id",
    size="octet_length(coalesce(t.arguments::text, '')) + octet_length(coalesce(t.content::text, ''))"
    " + octet_length(coalesce(t.structured::text, ''))",
    columns="t.call_id, t.step, t.server, t.tool, t.arguments::text, t.outcome, t.content::text, t.structured::text,"
    " t.started_at, t.duration_ms",
)
_NODES = f"""
SELECT id, parent_id, {IS_FOLLOWED} FROM turns WHERE conversation_id = :conversation_id
ORDER BY position NULLS FIRST, id
"""  # noqa: S608


class TurnNode(msgspec.Struct, frozen=True):
    """A turn of a conversation without its content.

    `is_followed` if a request without a parent may follow it.
    """

    id: UUID
    parent_id: UUID | None
    is_followed: bool


class TurnContent(msgspec.Struct, frozen=True):
    """A turn of a conversation; its JSON is as stored."""

    id: UUID
    parent_id: UUID | None
    origin_id: UUID | None
    is_replay: bool
    status: str
    model_name: str
    prompt: str
    response: str
    messages: msgspec.Raw
    error: msgspec.Raw
    created_at: datetime
    completed_at: datetime | None


class ToolCallContent(msgspec.Struct, frozen=True):
    """A tool call and its result; its JSON is as stored."""

    call_id: str
    step: int
    server: str | None
    tool: str
    arguments: msgspec.Raw
    outcome: str | None
    content: msgspec.Raw
    structured: msgspec.Raw
    started_at: datetime
    duration_ms: float | None


def find_followed(nodes: Sequence[TurnNode]) -> TurnNode | None:
    """Find the turn that the next request follows."""
    return next((node for node in reversed(nodes) if node.is_followed), None)


def select_branch(nodes: Sequence[TurnNode], head: TurnNode | None) -> list[UUID]:
    """Return a turn and its ancestors, oldest first."""
    nodes_by_id = {node.id: node for node in nodes}
    branch: list[UUID] = []
    node = head
    while node is not None:
        branch.append(node.id)
        node = nodes_by_id.get(node.parent_id) if node.parent_id else None
    return branch[::-1]


class TurnContentStore:
    """Reads the contents of turns in parts, while a client reads them.

    Callers check that the turns are the client's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_nodes(self, conversation_id: UUID) -> list[TurnNode]:
        """List the turns of all branches, oldest first."""
        rows = await self._database.fetch_rows(_NODES, conversation_id=conversation_id)
        return [TurnNode(*row) for row in rows]

    async def iterate_turns(self, ids: Sequence[UUID]) -> AsyncIterator[TurnContent]:
        """Read turns in this order.

        Turns that were deleted meanwhile are left out.
        """
        start = 0
        while start < len(ids):
            part = ids[start : start + MAX_PAGE_ROWS]
            rows = await self._database.fetch_rows(_TURNS, ids=part)
            for row in rows:
                yield _parse_turn(row)
            start += part.index(rows[-1][1]) + 1 if _is_cut(rows) else len(part)

    async def iterate_calls(self, turn_id: UUID) -> AsyncIterator[ToolCallContent]:
        """Read the tool calls of a turn, oldest first."""
        at, call_id = datetime.min.replace(tzinfo=UTC), ""
        while rows := await self._database.fetch_rows(_CALLS, turn_id=turn_id, at=at, call_id=call_id):
            for row in rows:
                call = _parse_call(row)
                at, call_id = call.started_at, call.call_id
                yield call


def _is_cut(rows: Sequence[DatabaseRow]) -> bool:
    return bool(rows) and len(rows) < rows[0][0]


def _parse_turn(row: DatabaseRow) -> TurnContent:
    _, id_, parent_id, origin_id, is_replay, status, model, prompt, response, messages, error, *times = row
    tree, texts = (parent_id, origin_id, is_replay), (prompt, response, _to_raw(messages), _to_raw(error))
    return TurnContent(id_, *tree, status, model, *texts, created_at=times[0], completed_at=times[1])


def _parse_call(row: DatabaseRow) -> ToolCallContent:
    _, call_id, step, server, tool, arguments, outcome, content, structured, started_at, duration_ms = row
    raw = (_to_raw(content), _to_raw(structured))
    return ToolCallContent(call_id, step, server, tool, _to_raw(arguments), outcome, *raw, started_at, duration_ms)


def _to_raw(text: str | None) -> msgspec.Raw:
    return msgspec.Raw(b"null" if text is None else text.encode())

"""`/api/v1/history` and `/api/v1/search`, and the legacy routes `/history` and `/search`."""

import struct
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel

from gateway.api.deps import HistoryDep, PrincipalDep, TurnsDep
from gateway.api.http.json_lists import build_list_response
from gateway.domain.errors import InvalidRequest
from gateway.store.history import SearchCursor
from gateway.wire.search_language import normalize_search_language

router = APIRouter(tags=["history"])

Limit = Annotated[int, Query(ge=1, le=200, description="Maximum number of items in the page.")]
Offset = Annotated[int, Query(ge=0, le=1_000_000, description="Number of items to skip.")]
SearchQuery = Annotated[
    str, Query(min_length=1, max_length=1_000, description='Words, "a phrase", `or`, -without, as in search engines.')
]
Language = Annotated[
    str,
    Query(
        max_length=63,
        description="A language, whose inflected forms match, too: a code (`en`) or a text search configuration of "
        "Postgres (`english`).",
    ),
    AfterValidator(normalize_search_language),
]
_NO_CURSOR = b'{"next":null,"total":null}'
WithTotal = Annotated[bool, Query(description="Add the total number of turns to the response.")]


class HistoryItem(BaseModel):
    """Prompt and response of a turn."""

    id: UUID
    conversation_id: UUID | None
    prompt: str
    response: str
    model_name: str
    status: str
    created_at: datetime


class SearchHitView(HistoryItem):
    """Turn that matches a search.

    `snippet` is plain text, not HTML, with matched words between <mark> and </mark>.
    """

    rank: float
    snippet: str


class HistoryPage(BaseModel):
    """Page of turns.

    `next` is the `before` of the next page; null on the last page.
    """

    items: list[HistoryItem]
    next: UUID | None = None
    total: int | None = None


class SearchPage(BaseModel):
    """Page of matching turns.

    `next` is the `before` of the next page; null on the last page.
    """

    items: list[SearchHitView]
    next: str | None = None
    total: int | None = None


@router.get("/api/v1/history", summary="List your turns")
async def list_history(
    principal: PrincipalDep,
    history: HistoryDep,
    limit: Limit = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the previous page.")] = None,
    total: WithTotal = False,
) -> HistoryPage:
    """The newest turns first."""
    page = await history.list_turns(principal, limit=limit, before=before)
    items = [HistoryItem.model_validate(turn, from_attributes=True) for turn in page.items]
    turn_count = await history.count_turns(principal) if total else None
    return HistoryPage(items=items, next=items[-1].id if page.has_more else None, total=turn_count)


@router.get("/history", summary="List your turns by offset", response_model=HistoryPage)
async def list_logs(principal: PrincipalDep, history: HistoryDep, limit: Limit = 50, offset: Offset = 0) -> Response:
    """The newest turns first. Legacy route: new clients use `/api/v1/history`."""
    turns = history.iterate_turns(principal, limit=limit, offset=offset)
    items = (HistoryItem.model_validate(turn, from_attributes=True) async for turn in turns)
    return await build_list_response({"items": items}, head=_NO_CURSOR)


@router.get("/history/{turn_id}", summary="Get a turn of the history")
async def get_log(turn_id: UUID, principal: PrincipalDep, turns: TurnsDep) -> HistoryItem:
    """Prompt and response of a turn. Legacy route: new clients use `/api/v1/turns/{turn_id}`."""
    return HistoryItem.model_validate(await turns.get_turn(turn_id, principal), from_attributes=True)


@router.get("/api/v1/search", summary="Search your turns")
async def search(
    principal: PrincipalDep,
    history: HistoryDep,
    query: SearchQuery,
    lang: Language = "simple",
    limit: Limit = 20,
    before: Annotated[str | None, Query(max_length=200, description="The `next` of the previous page.")] = None,
    total: WithTotal = False,
) -> SearchPage:
    """Full-text search in prompts and responses.

    The newest 100 matching turns come best first, then the next 100, and so on. A page ends with its group of 100.
    """
    page = await history.search_turns(principal, query, lang=lang, limit=limit, after=_parse_cursor(before))
    match_count = await history.count_matches(principal, query, lang=lang) if total else None
    next_cursor = "_".join(map(str, page.next)) if page.next else None
    items = [SearchHitView.model_validate(hit, from_attributes=True) for hit in page.items]
    return SearchPage(items=items, next=next_cursor, total=match_count)


@router.get("/search", summary="Search your turns by offset", response_model=SearchPage)
async def search_logs(
    principal: PrincipalDep,
    history: HistoryDep,
    query: SearchQuery,
    lang: Language = "simple",
    limit: Limit = 20,
    offset: Offset = 0,
) -> Response:
    """Full-text search in prompts and responses. Legacy route: new clients use `/api/v1/search`."""
    hits = history.iterate_hits(principal, query, lang=lang, limit=limit, offset=offset)
    items = (SearchHitView.model_validate(hit, from_attributes=True) async for hit in hits)
    return await build_list_response({"items": items}, head=_NO_CURSOR)


def _parse_cursor(cursor: str | None) -> SearchCursor | None:
    """Parse the cursor of a page.

    It has two parts if an older release made it.
    """
    if cursor is None:
        return None
    rank, *ids = cursor.split("_")
    try:
        struct.pack("<f", float(rank))  # raises for a rank that Postgres cannot store as a float4
        turn_id, *group = map(UUID, ids)
        return SearchCursor(float(rank), turn_id, *group)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest("before: must be the `next` of a page.", param="before") from None

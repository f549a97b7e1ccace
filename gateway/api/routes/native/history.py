"""What was said: `/api/v1/history` and `/api/v1/search`, and the same as the gateway's forerunners have it."""

import struct
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import HistoryDep, PrincipalDep, TurnsDep
from gateway.domain.errors import InvalidRequest
from gateway.store.history import SearchHit

router = APIRouter(tags=["history"])

Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]
Words = Annotated[
    str, Query(min_length=1, max_length=1_000, description='As in a search engine: words, "a phrase", or, -without.')
]
Language = Annotated[
    str,
    Query(max_length=63, description="A text search configuration of Postgres, e.g. `english`: finds its word forms."),
]
WithTotal = Annotated[bool, Query(description="Count all there are, too.")]


class HistoryItem(BaseModel):
    """A turn: what was asked and answered."""

    id: UUID
    conversation_id: UUID | None
    prompt: str
    response: str
    model_name: str
    status: str
    created_at: datetime


class SearchHitView(HistoryItem):
    """`snippet` has the words that matched between <mark> and </mark>; the rest of it is what was said, unescaped."""

    rank: float
    snippet: str


class HistoryPage(BaseModel):
    """`next` is the `before` of the next page; null: this is the last."""

    items: list[HistoryItem]
    next: UUID | None = None
    total: int | None = None


class SearchPage(BaseModel):
    """`next` is the `before` of the next page; null: this is the last."""

    items: list[SearchHitView]
    next: str | None = None
    total: int | None = None


@router.get("/api/v1/history", summary="Your turns, the newest first")
async def list_history(
    principal: PrincipalDep,
    history: HistoryDep,
    limit: Limit = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the page before.")] = None,
    total: WithTotal = False,
) -> HistoryPage:
    turns = await history.page(principal, limit=limit, before=before)
    items = [HistoryItem.model_validate(turn, from_attributes=True) for turn in turns]
    number = await history.count_turns(principal) if total else None
    return HistoryPage(items=items, next=items[-1].id if len(items) == limit else None, total=number)


@router.get("/history", summary="The same, by offset")
async def list_logs(principal: PrincipalDep, history: HistoryDep, limit: Limit = 50, offset: Offset = 0) -> HistoryPage:
    turns = await history.page(principal, limit=limit, offset=offset)
    return HistoryPage(items=[HistoryItem.model_validate(turn, from_attributes=True) for turn in turns])


@router.get("/history/{turn_id}", summary="One of your turns")
async def get_log(turn_id: UUID, principal: PrincipalDep, turns: TurnsDep) -> HistoryItem:
    return HistoryItem.model_validate(await turns.get(turn_id, principal), from_attributes=True)


@router.get("/api/v1/search", summary="Search your turns")
async def search(
    principal: PrincipalDep,
    history: HistoryDep,
    query: Words,
    lang: Language = "simple",
    limit: Limit = 20,
    before: Annotated[str | None, Query(max_length=100, description="The `next` of the page before.")] = None,
    total: WithTotal = False,
) -> SearchPage:
    """Full-text search over prompts and responses, best first, among the newest 500 turns that match."""
    hits = await history.search(principal, query, lang=lang, limit=limit, after=_parse_cursor(before))
    number = await history.count_matches(principal, query, lang=lang) if total else None
    following = f"{hits[-1].rank!r}_{hits[-1].id}" if len(hits) == limit else None
    return SearchPage(items=_to_views(hits), next=following, total=number)


@router.get("/search", summary="The same, by offset")
async def search_logs(
    principal: PrincipalDep,
    history: HistoryDep,
    query: Words,
    lang: Language = "simple",
    limit: Limit = 20,
    offset: Offset = 0,
) -> SearchPage:
    return SearchPage(items=_to_views(await history.search(principal, query, lang=lang, limit=limit, offset=offset)))


def _to_views(hits: list[SearchHit]) -> list[SearchHitView]:
    return [SearchHitView.model_validate(hit, from_attributes=True) for hit in hits]


def _parse_cursor(cursor: str | None) -> tuple[float, UUID] | None:
    if cursor is None:
        return None
    rank, _, turn_id = cursor.partition("_")
    try:
        struct.pack("<f", float(rank))  # Postgres has it as a float4
        return float(rank), UUID(turn_id)
    except (ValueError, OverflowError):
        raise InvalidRequest("before: this is no `next` of a page.", param="before") from None

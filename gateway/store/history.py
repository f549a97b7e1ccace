"""What was said, by anyone who may see it: newest first, or found by its words."""

from datetime import datetime
from uuid import UUID

import msgspec
from sqlmodel import col, func, select

from gateway.errors import InvalidRequest
from gateway.messages import Principal
from gateway.store.database import Database
from gateway.store.tables import Turn

# The index is over the words as they stand ('simple'). For a language, the words asked for are cut to their stems and
# those taken as beginnings of words: so one index serves every language. A query of no words matches nothing.
_WORDS = "websearch_to_tsquery('simple', :query)"
_STEMS = (
    "regexp_replace(websearch_to_tsquery(cast(:lang AS regconfig), :query)::text, "
    r"'''(?=\s|\)|$)', ''':*', 'g')::tsquery"
)
_Q = f"WITH q AS MATERIALIZED (SELECT {_WORDS} || CASE :lang WHEN 'simple' THEN ''::tsquery ELSE {_STEMS} END AS query)"
_MATCH = "FROM turns WHERE owner = :owner AND search @@ (SELECT query FROM q)"
COUNT = f"{_Q} SELECT count(*) {_MATCH}"
SEARCH = f"""
{_Q}, hits AS MATERIALIZED (
    SELECT id, rank FROM (SELECT id, ts_rank_cd(search, (SELECT query FROM q)) AS rank {_MATCH}) AS ranked
    WHERE cast(:after_id AS uuid) IS NULL OR (rank, id) < (cast(:after_rank AS float4), cast(:after_id AS uuid))
    ORDER BY rank DESC, id DESC LIMIT :limit OFFSET :offset
)
SELECT id, conversation_id, prompt, response, model_name, status, created_at, rank,
       ts_headline(cast(:lang AS regconfig), "left"(prompt || ' ' || response, 20000), (SELECT query FROM q),
                   'StartSel=<mark>, StopSel=</mark>, MaxFragments=2, MaxWords=24, MinWords=8') AS snippet
FROM hits JOIN turns USING (id) ORDER BY rank DESC, id DESC
"""  # noqa: S608


class Hit(msgspec.Struct, frozen=True):
    """A turn that a search found. `snippet` has the words that matched between <mark> and </mark>, as plain text."""

    id: UUID
    conversation_id: UUID | None
    prompt: str
    response: str
    model_name: str
    status: str
    created_at: datetime
    rank: float
    snippet: str


class HistoryStore:
    """Turns of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, principal: Principal, *, limit: int, before: UUID | None = None, offset: int = 0
    ) -> list[Turn]:
        """The newest first; behind `before`, the last of the page before, or behind so many."""
        query = select(Turn).where(Turn.owner == principal.user)
        if before is not None:
            query = query.where(Turn.id < before)
        async with self._database.session() as session:
            rows = await session.exec(query.order_by(col(Turn.id).desc()).limit(limit).offset(offset))
            return list(rows.all())

    async def total(self, principal: Principal) -> int:
        query = select(func.count()).select_from(Turn).where(Turn.owner == principal.user)
        async with self._database.session() as session:
            return (await session.exec(query)).one()

    async def search(
        self,
        principal: Principal,
        query: str,
        *,
        lang: str,
        limit: int,
        offset: int = 0,
        after: tuple[float, UUID] | None = None,
    ) -> list[Hit]:
        """The turns whose prompt or response match, best first; `query` as one types it into a search engine.

        `after` is rank and id of the last hit of the page before.

        Raises:
            InvalidRequest: Postgres does not know the language.
        """
        await self._check(lang)
        values = {"owner": principal.user, "query": _text(query), "lang": lang}
        rank, turn_id = after or (None, None)
        page = {"limit": limit, "offset": offset, "after_rank": rank, "after_id": turn_id}
        return [Hit(*row) for row in await self._database.rows(SEARCH, **values, **page)]

    async def found(self, principal: Principal, query: str, *, lang: str) -> int:
        """How many turns match in all."""
        await self._check(lang)
        values = {"owner": principal.user, "query": _text(query), "lang": lang}
        [(number,)] = await self._database.rows(COUNT, **values)
        return int(number)

    async def _check(self, lang: str) -> None:
        if lang == "simple":
            return
        known = {str(row[0]) for row in await self._database.rows("SELECT cfgname FROM pg_ts_config")}
        if lang not in known:
            raise InvalidRequest(f"lang: {lang[:50]!r} is none of {', '.join(sorted(known))}.", param="lang")


def _text(query: str) -> str:
    return query.replace("\x00", " ")

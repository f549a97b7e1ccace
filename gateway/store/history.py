"""A user's history: lists of turns, newest first, and full-text search."""

import re
from datetime import datetime
from uuid import UUID

import msgspec

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import Principal
from gateway.store.database import Database

MAX_RANKED = 500
"""Number of newest matches that are ranked.

It bounds the cost of a search. See docs/adr/0009.
"""

# One index without stemming ('simple') serves every language: for a language, the stems of the query's words are
# matched as prefixes. A query without words matches nothing.
_WORDS = "websearch_to_tsquery('simple', :query)"
_STEMS = (
    "regexp_replace(websearch_to_tsquery(cast(:lang AS regconfig), :query)::text, "
    r"'''(?=\s|\)|$)', ''':*', 'g')::tsquery"
)
# All functions are immutable, so a custom plan has the query as a constant and knows how common its words are. See
# docs/adr/0009.
_QUERY = f"({_WORDS} || CASE cast(:lang AS regconfig) WHEN 'simple'::regconfig THEN ''::tsquery ELSE {_STEMS} END)"
_MATCH = f"FROM turns WHERE owner = :owner AND search @@ {_QUERY}"
_COLUMNS = "id, conversation_id, prompt, response, model_name, status, created_at"
PAGE = (
    f"SELECT {_COLUMNS} FROM turns WHERE owner = :owner AND id < :before ORDER BY id DESC LIMIT :limit OFFSET :offset"  # noqa: S608
)
TOTAL = "SELECT count(*) FROM turns WHERE owner = :owner"
COUNT = f"SELECT count(*) {_MATCH}"
SEARCH = f"""
WITH hits AS MATERIALIZED (
    SELECT id, rank FROM (
        SELECT id, ts_rank_cd(search, {_QUERY}) AS rank
        FROM (SELECT id, search {_MATCH} ORDER BY id DESC LIMIT {MAX_RANKED}) AS newest
    ) AS ranked
    WHERE cast(:after_id AS uuid) IS NULL OR (rank, id) < (cast(:after_rank AS float4), cast(:after_id AS uuid))
    ORDER BY rank DESC, id DESC LIMIT :limit OFFSET :offset
)
SELECT {_COLUMNS}, rank,
       ts_headline(cast(:lang AS regconfig), "left"(prompt || ' ' || response, 20000), {_QUERY},
                   'StartSel=<mark>, StopSel=</mark>, MaxFragments=2, MaxWords=24, MinWords=8') AS snippet
FROM hits JOIN turns USING (id) ORDER BY rank DESC, id DESC
"""  # noqa: S608
_REPEATED_NEGATIONS = re.compile(r"-(?:[\W_]*-)+")
_MAX_HYPHENS = 25
_LAST_ID = UUID(int=2**128 - 1)


class HistoryEntry(msgspec.Struct, frozen=True):
    """A turn with its prompt and response."""

    id: UUID
    conversation_id: UUID | None
    prompt: str
    response: str
    model_name: str
    status: str
    created_at: datetime


class SearchHit(HistoryEntry, frozen=True):
    """A turn that matches a search.

    `snippet` is plain text with the matching words between <mark> and </mark>.
    """

    rank: float
    snippet: str


class HistoryStore:
    """Reads the turns of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_turns(
        self, principal: Principal, *, limit: int, before: UUID | None = None, offset: int = 0
    ) -> list[HistoryEntry]:
        """List turns, newest first.

        The list starts below the turn `before`, or after `offset` turns.
        """
        rows = await self._database.fetch_rows(
            PAGE, owner=principal.user, before=before or _LAST_ID, limit=limit, offset=offset
        )
        return [HistoryEntry(*row) for row in rows]

    async def count_turns(self, principal: Principal) -> int:
        [(number,)] = await self._database.fetch_rows(TOTAL, owner=principal.user)
        return int(number)

    async def search_turns(
        self,
        principal: Principal,
        query: str,
        *,
        lang: str,
        limit: int,
        offset: int = 0,
        after: tuple[float, UUID] | None = None,
    ) -> list[SearchHit]:
        """Search prompts and responses of the newest matching turns, best match first.

        `query` has the syntax of a web search. `after` is rank and id of the last hit of the previous page.

        Raises:
            InvalidRequest: PostgreSQL does not support the language.
        """
        await self._check_language(lang)
        rank, turn_id = after or (None, None)
        values = {"owner": principal.user, "query": _clean_query(query), "lang": lang}
        page = {"limit": limit, "offset": offset, "after_rank": rank, "after_id": turn_id}
        return [SearchHit(*row) for row in await self._database.fetch_rows(SEARCH, custom_plan=True, **values, **page)]

    async def count_matches(self, principal: Principal, query: str, *, lang: str) -> int:
        """Count all matching turns."""
        await self._check_language(lang)
        values = {"owner": principal.user, "query": _clean_query(query), "lang": lang}
        [(number,)] = await self._database.fetch_rows(COUNT, custom_plan=True, **values)
        return int(number)

    async def _check_language(self, lang: str) -> None:
        if lang == "simple":
            return
        languages = {str(row[0]) for row in await self._database.fetch_rows("SELECT cfgname FROM pg_ts_config")}
        if lang not in languages:
            raise InvalidRequest(f"lang: {lang[:50]!r} is not one of {', '.join(sorted(languages))}.", param="lang")


def _clean_query(query: str) -> str:
    """Return a query that Postgres accepts.

    It takes a hyphen for a negation, and its stack has room for 32 negations of a negation.
    """
    query = _REPEATED_NEGATIONS.sub("-", query.replace("\x00", " "))
    return query if query.count("-") <= _MAX_HYPHENS else query.replace("-", " ")

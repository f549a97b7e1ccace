"""A user's history: lists of turns, newest first, and full-text search."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from gateway.common.pages import MAX_PAGE_BYTES, Page
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import Principal
from gateway.store.database import Database, DatabaseRow
from gateway.store.lists.owned_rows import IS_OWNED, NEWEST_FIRST, OLDEST_FIRST
from gateway.store.search.query import SearchQuery, parse_query
from gateway.store.search.snippet import SnippetMarker

MAX_RANKED = 100
"""Number of matches that are ranked together.

The newest ones come first, then the next ones. It bounds the cost of a search. See docs/adr/0009 and docs/adr/0036.
"""
_SAMPLE_SIZE = 100
_COMMON_MATCHES = 10
"""Matches that let a search read the newest turns in order.

It does so as well for a user whose turns are all in the sample. See docs/adr/0034.
"""
_MAX_PERIODS = 16
"""Periods of 50 days that are searched in windows.

Each window is as long as all newer ones. All older turns are searched at once, and those of a prefix that the sample
does not have. See docs/adr/0036.
"""

_COLUMNS = "id, conversation_id, prompt, response, model_name, status, created_at"
_SIZE = "octet_length(prompt) + octet_length(response)"
# The subqueries hide the values from the planner, which would plan each request anew where it estimates fewer rows for
# its values than on average.
PAGE = f"""
WITH listed AS MATERIALIZED (
    SELECT owner, {_COLUMNS}, {_SIZE} AS size FROM turns
    WHERE owner = ANY (ARRAY[(SELECT cast(:owner AS text))]) AND id < (SELECT cast(:before AS uuid))
    ORDER BY {NEWEST_FIRST} LIMIT (SELECT cast(:limit AS bigint)) OFFSET (SELECT cast(:offset AS bigint))
), sized AS (SELECT *, sum(size) OVER (ORDER BY {NEWEST_FIRST}) - size AS bytes_before FROM listed)
SELECT {_COLUMNS} FROM sized WHERE bytes_before < {MAX_PAGE_BYTES} ORDER BY {NEWEST_FIRST}
"""  # noqa: S608
TOTAL = "SELECT count(*) FROM turns WHERE owner = :owner"
# A turn without terms runs, or ended in an older release and waits for `SearchIndexer`. Its words are those of
# PostgreSQL's parser without stemming ('simple'); for a language, the stems of the query match as prefixes.
_WORDS = "websearch_to_tsquery('simple', :query)"
_STEMS = (
    "regexp_replace(websearch_to_tsquery(cast(:lang AS regconfig), :query)::text, "
    r"'''(?=\s|\)|$)', ''':*', 'g')::tsquery"
)
# All functions are immutable, so a custom plan has the queries as constants and knows how common their words are. See
# docs/adr/0009.
_OLD_QUERY = f"({_WORDS} || CASE cast(:lang AS regconfig) WHEN 'simple'::regconfig THEN ''::tsquery ELSE {_STEMS} END)"
_QUERY = "cast(:terms AS tsquery)"
# One condition, and not a branch for each kind of turn: a kind without turns would have its own plan, which reads all
# turns if the word is common.
_HAS_WORDS = f"(has_terms AND search @@ {_QUERY} OR NOT has_terms AND search @@ {_OLD_QUERY})"
_OWNED = "ARRAY[owner] @> ARRAY[cast(:owner AS text)]"
COUNT = f"SELECT count(*) FROM turns WHERE owner = :owner AND {_OWNED} AND {_HAS_WORDS}"  # noqa: S608
_BETWEEN = "id <= :newest AND id >= :oldest"
_IN_GROUP = f"{IS_OWNED} AND {_BETWEEN}"
_NEWEST_TURNS = f"SELECT id, has_terms, search FROM turns WHERE {_IN_GROUP} ORDER BY {NEWEST_FIRST}"  # noqa: S608
# The first four digits of a time-ordered id change every 50 days. They are in the index, together with the owner.
_PERIOD_BITS = 16
_TIME = "('x' || left({}::text, 8))::bit(32)::bigint"
_SAMPLE_TIME = f"{_TIME.format('ids[1]')} - {_TIME.format('ids[cardinality(ids)]')}"
# The periods that have enough matches, if the share of the sample is that of all turns.
_WIDTH = f"({MAX_RANKED} * ({_SAMPLE_TIME}) / greatest(matches, 1)) >> {_PERIOD_BITS}"
_WINDOWS = "(0, 1), (1, 2), (2, 4), (4, 8), (8, 16)"
# Each scan for a prefix reads its turns of all users, so there is one, unless few periods seem to have enough matches.
_PERIODS = f"CASE WHEN :has_prefixes AND matches = 0 THEN 0 ELSE {_MAX_PERIODS} END"
_FIRST_PERIOD = "newest - periods + 1"
_FIRST_ID_OF_PERIODS = f"cast(rpad(lpad(to_hex({_FIRST_PERIOD}), 4, '0'), 32, '0') AS uuid)"
# PostgreSQL would multiply the rarity of the owner by itself if one scan had both conditions for it, and OFFSET 0 keeps
# it from reading the turns of all users in the order of the result. The scan that is not chosen does not run.
SEARCH = f"""
WITH sample AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE {_HAS_WORDS}) AS matches, array_agg(id) AS ids
    FROM ({_NEWEST_TURNS} LIMIT {_SAMPLE_SIZE}) AS newest_turns
), bounds AS MATERIALIZED (
    SELECT ({_TIME.format("id")} >> {_PERIOD_BITS})::int AS oldest,
           ({_TIME.format("ids[1]")} >> {_PERIOD_BITS})::int AS newest,
           matches >= {_COMMON_MATCHES} OR cardinality(ids) < {_SAMPLE_SIZE} AS reads_in_order,
           least(greatest({_WIDTH}, 1), {_MAX_PERIODS})::int AS width, {_PERIODS} AS periods
    FROM sample, (SELECT id FROM turns WHERE {_IN_GROUP} ORDER BY {OLDEST_FIRST} LIMIT 1) AS oldest_turn
), windows AS MATERIALIZED (
    SELECT ARRAY(
        SELECT cast(:owner AS text) || lpad(to_hex(period), 4, '0') FROM generate_series(
            newest - first * width, greatest(oldest, newest + 1 - least(periods, last * width)), -1
        ) AS period
    ) AS keys FROM bounds, (VALUES {_WINDOWS}) AS shares (first, last)
    WHERE first * width < periods AND newest - first * width >= oldest ORDER BY first
), newest AS (
    SELECT * FROM (
        (SELECT id, has_terms, search FROM ({_NEWEST_TURNS} OFFSET 0) AS own
         WHERE {_HAS_WORDS} AND (SELECT reads_in_order FROM bounds))
        UNION ALL
        (SELECT found.* FROM windows CROSS JOIN LATERAL (
            SELECT id, has_terms, search FROM turns
            WHERE ARRAY[owner || left(id::text, 4)] && windows.keys AND {_HAS_WORDS} AND {_BETWEEN}
            ORDER BY id DESC OFFSET 0
         ) AS found WHERE NOT (SELECT reads_in_order FROM bounds))
        UNION ALL
        (SELECT id, has_terms, search FROM (
            SELECT id, has_terms, search FROM turns
            WHERE {_OWNED} AND {_HAS_WORDS} AND {_BETWEEN} OFFSET 0
         ) AS older WHERE id < (SELECT {_FIRST_ID_OF_PERIODS} FROM bounds)
              AND NOT (SELECT reads_in_order FROM bounds) AND (SELECT oldest < {_FIRST_PERIOD} FROM bounds)
         ORDER BY id DESC)
    ) AS matches LIMIT {MAX_RANKED} OFFSET :skipped
), hits AS MATERIALIZED (
    SELECT id, rank, count(*) OVER () AS remaining FROM (
        SELECT id, ts_rank_cd(search, CASE WHEN has_terms THEN {_QUERY} ELSE {_OLD_QUERY} END) AS rank FROM newest
    ) AS ranked
    WHERE cast(:after_id AS uuid) IS NULL OR (rank, id) < (cast(:after_rank AS float4), cast(:after_id AS uuid))
    ORDER BY rank DESC, id DESC LIMIT :limit OFFSET :offset
)
SELECT {_COLUMNS}, rank, remaining, (SELECT id FROM newest ORDER BY id DESC LIMIT 1) AS first_match,
       (SELECT id FROM newest ORDER BY id DESC LIMIT 1 OFFSET {MAX_RANKED - 1}) AS last_match
FROM (
    SELECT {_COLUMNS}, rank, remaining, sum({_SIZE}) OVER (ORDER BY rank DESC, id DESC) - ({_SIZE}) AS bytes_before
    FROM hits JOIN turns USING (id)
) AS sized WHERE bytes_before < {MAX_PAGE_BYTES} ORDER BY rank DESC, id DESC
"""  # noqa: S608
# The words keep their accents here, because a stemmer knows them with accents.
_FIND_STEMS = """
SELECT word, tsvector_to_array(to_tsvector(pg_ts_config.oid, word))
FROM pg_ts_config CROSS JOIN unnest(cast(:words AS text[])) AS word WHERE cfgname = :lang
"""
_REPEATED_NEGATIONS = re.compile(r"-(?:[\W_]*-)+")
_MAX_HYPHENS = 25
_MAX_SNIPPET_CHARS = 400_000
"""Characters of a page that are searched for words to mark."""
_MAX_INLINE_CHARS = 40_000
"""Characters of a page that are searched without a thread.

The search takes about a millisecond.
"""
_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=2**128 - 1)


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


class SearchCursor(NamedTuple):
    """Position after a hit in its group of matches.

    The group has the matches from the turn `newest` to `oldest`. A turn that is deleted, or ends, between two pages
    moves no other into the group.
    """

    rank: float
    id: UUID
    newest: UUID = _LAST_ID
    oldest: UUID = _FIRST_ID


class HitPage(msgspec.Struct, frozen=True):
    """Hits of a page; `next` if others may follow."""

    items: list[SearchHit]
    next: SearchCursor | None


class HistoryStore:
    """Reads the turns of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_turns(
        self, principal: Principal, *, limit: int, before: UUID | None = None, offset: int = 0
    ) -> Page[HistoryEntry]:
        """List turns, newest first.

        The page starts below the turn `before`, or after `offset` turns. It may end before `limit`, by its bytes.
        """
        rows = await self._database.fetch_rows(
            PAGE, owner=principal.user, before=before or _LAST_ID, limit=limit, offset=offset
        )
        return _build_page([HistoryEntry(*row) for row in rows], limit)

    async def iterate_turns(self, principal: Principal, *, limit: int, offset: int) -> AsyncIterator[HistoryEntry]:
        """Iterate over turns, newest first, in pages."""
        before: UUID | None = None
        while limit > 0:
            page = await self.list_turns(principal, limit=limit, before=before, offset=offset if before is None else 0)
            for entry in page.items:
                yield entry
            if not page.has_more:
                return
            before, limit = page.items[-1].id, limit - len(page.items)

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
        after: SearchCursor | None = None,
    ) -> HitPage:
        """Search prompts and responses.

        Hits come in groups of `MAX_RANKED` matches, the newest group first, the best match first in each.

        `query` has the syntax of a web search. `after` is `next` of the previous page. A page may end before `limit`,
        by its bytes or with its group.

        Raises:
            InvalidRequest: PostgreSQL does not support the language.
        """
        parsed = parse_query(query)
        stems = await self._find_stems(parsed, lang)
        rank, turn_id, newest, oldest = after or (None, None, _LAST_ID, _FIRST_ID)
        offset_in_group = offset % MAX_RANKED
        terms = parsed.format_tsquery(stems)
        page = {"limit": limit, "offset": offset_in_group, "skipped": offset - offset_in_group}
        group = {"newest": newest, "oldest": oldest, "has_prefixes": ":*" in terms}
        position = {"after_rank": rank, "after_id": turn_id}
        values = _build_values(principal, query, lang, terms) | group | position | page
        rows = await self._database.fetch_rows(SEARCH, custom_plan=True, **values)
        snippets = await _build_snippets(SnippetMarker(parsed, stems), rows)
        hits = [SearchHit(*row[:-3], snippet=snippet) for row, snippet in zip(rows, snippets, strict=True)]
        following = _find_next(hits, rows, offset_in_group, oldest)
        if not hits and following is not None:  # the rest of the group has been deleted
            return await self.search_turns(principal, query, lang=lang, limit=limit, after=following)
        return HitPage(hits, following)

    async def iterate_hits(
        self, principal: Principal, query: str, *, lang: str, limit: int, offset: int
    ) -> AsyncIterator[SearchHit]:
        """Iterate over the hits of a search in pages."""
        after: SearchCursor | None = None
        while limit > 0:
            options = {"limit": limit, "offset": offset if after is None else 0}
            page = await self.search_turns(principal, query, lang=lang, after=after, **options)
            for hit in page.items:
                yield hit
            if page.next is None:
                return
            after, limit = page.next, limit - len(page.items)

    async def count_matches(self, principal: Principal, query: str, *, lang: str) -> int:
        """Count all matching turns."""
        parsed = parse_query(query)
        terms = parsed.format_tsquery(await self._find_stems(parsed, lang))
        values = _build_values(principal, query, lang, terms)
        [(number,)] = await self._database.fetch_rows(COUNT, custom_plan=True, **values)
        return int(number)

    async def _find_stems(self, query: SearchQuery, lang: str) -> dict[str, list[str]] | None:
        """Find the stems of the query's words; None without a language.

        Raises:
            InvalidRequest: PostgreSQL does not support the language.
        """
        if lang == "simple":
            return None
        rows = await self._database.fetch_rows(_FIND_STEMS, lang=lang, words=query.list_words())
        if not rows:
            await self._check_language(lang)
        return {word: stems for word, stems in rows}  # noqa: C416 - `dict` has no type for these rows

    async def _check_language(self, lang: str) -> None:
        languages = {str(row[0]) for row in await self._database.fetch_rows("SELECT cfgname FROM pg_ts_config")}
        if lang not in languages:
            raise InvalidRequest(f"lang: {lang[:50]!r} is not one of {', '.join(sorted(languages))}.", param="lang")


def _find_next(hits: list[SearchHit], rows: Sequence[DatabaseRow], offset: int, oldest: UUID) -> SearchCursor | None:
    """Return the position of the next page, if there is one.

    `oldest`: the end of the group, as far as it was known before the page.
    """
    if rows:
        remaining, first_match, last_match = rows[-1][-3:]
        oldest = last_match or oldest
        if remaining > offset + len(hits):
            return SearchCursor(hits[-1].rank, hits[-1].id, first_match, oldest)
    if oldest == _FIRST_ID:
        return None
    next_newest = UUID(int=oldest.int - 1)
    return SearchCursor(math.inf, next_newest, next_newest)


def _build_page(entries: list[HistoryEntry], limit: int) -> Page[HistoryEntry]:
    size = sum(len(entry.prompt.encode()) + len(entry.response.encode()) for entry in entries)
    return Page(entries, bool(entries) and (len(entries) == limit or size >= MAX_PAGE_BYTES))


def _build_values(principal: Principal, query: str, lang: str, terms: str) -> dict[str, object]:
    return {"owner": principal.user, "query": _clean_query(query), "lang": lang, "terms": terms}


async def _build_snippets(marker: SnippetMarker, rows: Sequence[DatabaseRow]) -> list[str]:
    max_length = _MAX_SNIPPET_CHARS // max(1, len(rows))
    texts = [f"{prompt} {response}"[:max_length] for _, _, prompt, response, *_ in rows]
    if sum(map(len, texts)) <= _MAX_INLINE_CHARS:
        return [marker.build_snippet(text) for text in texts]
    return await asyncio.to_thread(lambda: [marker.build_snippet(text) for text in texts])


def _clean_query(query: str) -> str:
    """Return a query that Postgres accepts.

    It takes a hyphen for a negation, and its stack has room for 32 negations of a negation.
    """
    query = _REPEATED_NEGATIONS.sub("-", query.replace("\x00", " "))
    return query if query.count("-") <= _MAX_HYPHENS else query.replace("-", " ")

"""Usage reports.

Sums over ended turns by day, model, user, key and conversation.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlmodel import text

from gateway.domain.errors import Overloaded, StorageUnavailable
from gateway.store.database import Database, DatabaseRow
from gateway.store.errors import get_sqlstate

GroupKey = Literal["day", "model", "user", "key", "conversation"]
MAX_GROUPS = 10_000
_QUERY_CANCELED = "57014"
_COLUMNS: dict[GroupKey, str] = {
    "day": "(used.at AT TIME ZONE 'UTC')::date",
    "model": "used.model_name",
    "user": "used.owner",
    "key": "used.key",
    "conversation": "used.conversation_id",
}
_AGGREGATE = """
SELECT {groups}, grouping({groups}) <> 0 AS is_total, count(*) FILTER (WHERE endpoint IS NULL),
       count(*) FILTER (WHERE status = 'completed' AND endpoint IS NULL),
       count(*) FILTER (WHERE status = 'failed' AND endpoint IS NULL),
       count(*) FILTER (WHERE status = 'cancelled' AND endpoint IS NULL),
       coalesce(sum(steps), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),
       coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0), coalesce(sum(total_tokens), 0),
       coalesce(sum(queue_time), 0), coalesce(sum(model_time), 0), coalesce(sum(generation_time), 0),
       coalesce(sum(completion_tokens) FILTER (WHERE generation_time > 0), 0),
       coalesce(sum(cost_usd), 0), count(*) FILTER (WHERE cost_usd IS NULL AND endpoint IS NULL),
       count(*) FILTER (WHERE cached), count(*) FILTER (WHERE rating = 'up'), count(*) FILTER (WHERE rating = 'down')
FROM (SELECT {columns}, used.*, rating FROM turn_usage AS used LEFT JOIN turn_feedback USING (turn_id)
      WHERE used.at >= :since AND used.at < :until {owner_filter}) AS ended
GROUP BY GROUPING SETS (({groups}), ())
ORDER BY is_total DESC, {groups}
LIMIT :max_rows
"""


class UsageStats(msgspec.Struct, frozen=True):
    """Usage of a group of turns. Times are in seconds.

    `timed_tokens` are completion tokens with a known generation time. `unpriced_turns` have a model of unknown price
    and add nothing to `cost_usd`. `cached_turns` were answered from the response cache. `up` and `down` count ratings.
    """

    turns: int
    completed: int
    failed: int
    cancelled: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int
    queue_time: float
    model_time: float
    generation_time: float
    timed_tokens: int
    cost_usd: float
    unpriced_turns: int
    cached_turns: int
    up: int
    down: int

    @property
    def cached_share(self) -> float | None:
        """Share of the prompt tokens that the model's server cached."""
        return round(self.cached_tokens / self.prompt_tokens, 4) if self.prompt_tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        return round(self.timed_tokens / self.generation_time, 2) if self.generation_time else None


class UsageReports:
    """Aggregates the turns that ended in a range of time.

    `seconds` limits the duration of a query, `max_groups` the number of groups.
    """

    def __init__(self, database: Database, *, seconds: float = 20.0, max_groups: int = MAX_GROUPS) -> None:
        self.max_groups = max_groups
        self._database = database
        self._seconds = seconds

    async def aggregate(
        self, groups: list[GroupKey], since: datetime, until: datetime, *, owner: str | None = None
    ) -> tuple[list[tuple[dict[GroupKey, object], UsageStats]], UsageStats]:
        """Return the usage of each group, in order, and the total.

        With `owner`, only the owner's turns count. The result has `max_groups` + 1 groups if there are more than
        `max_groups`.

        Raises:
            Overloaded: the query exceeded its time limit.
        """
        values: dict[str, object] = {"since": since, "until": until, "max_rows": self.max_groups + 2}
        if owner is not None:
            values["owner"] = owner
        rows = await self._fetch_rows(build_aggregate_query(groups, of_owner=owner is not None), values)
        width = len(groups)
        total, *parts = [(dict(zip(groups, row[:width], strict=True)), _parse_stats(row[width + 1 :])) for row in rows]
        return parts, total[1]

    async def _fetch_rows(self, statement: str, values: dict[str, object]) -> list[DatabaseRow]:
        try:
            async with self._database.session(seconds=self._seconds) as session:
                connection = await session.connection()
                return list((await connection.execute(text(statement), values)).all())
        except StorageUnavailable as error:
            if get_sqlstate(error.__cause__) != _QUERY_CANCELED:
                raise
            raise Overloaded("There are too many turns to aggregate in time. Request a shorter range.") from error


def build_aggregate_query(groups: list[GroupKey], *, of_owner: bool) -> str:
    """Build the query, whose first row is the total."""
    return _AGGREGATE.format(
        groups=", ".join(f"of_{group}" for group in groups),
        columns=", ".join(f"{_COLUMNS[group]} AS of_{group}" for group in groups),
        owner_filter="AND used.owner = :owner" if of_owner else "",
    )


def _parse_stats(row: Sequence[object]) -> UsageStats:
    """Build the statistics of a row.

    PostgreSQL returns sums of integers as `numeric`.
    """
    kinds = (field.type for field in msgspec.structs.fields(UsageStats))
    return UsageStats(*(kind(value) for kind, value in zip(kinds, row, strict=True)))

"""Usage of turns, reservations of budgets, and feedback.

The end of a turn adds a row to `turn_usage`, which stays when the turn is deleted; until then the turn's row in
`budget_holds` counts. Every query covers a range of times and uses an index.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import date, datetime
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import text

from gateway.domain.errors import NotFound
from gateway.domain.spending import BudgetReservation, RequestHold, UsageTotals
from gateway.ports.store import BudgetRepository, BudgetTransaction
from gateway.store.database import Database, DatabaseRow
from gateway.store.journal.statements import FENCE, Fence, Values
from gateway_runtime.redaction.redactor import Redactor

_TODAY, _THIS_MONTH = "date_trunc('day', now(), 'UTC')", "date_trunc('month', now(), 'UTC')"
# One statement, or a turn that ends now could be in both sums or in none.
_SPENT = f"""
SELECT ended.tokens_today + running.tokens, ended.tokens + running.tokens, ended.usd_today + running.usd,
       ended.usd + running.usd, running.step_tokens + requests.tokens, running.step_usd + requests.usd
FROM (SELECT coalesce(sum(total_tokens) FILTER (WHERE at >= {_TODAY}), 0) AS tokens_today,
             coalesce(sum(total_tokens), 0) AS tokens,
             coalesce(sum(cost_usd) FILTER (WHERE at >= {_TODAY}), 0) AS usd_today, coalesce(sum(cost_usd), 0) AS usd
      FROM turn_usage WHERE at >= {_THIS_MONTH} AND owner = :owner {{usage_key_filter}}) AS ended,
     (SELECT coalesce(sum(hold.tokens), 0) AS tokens, coalesce(sum(hold.usd), 0) AS usd,
             coalesce(sum(hold.step_tokens), 0) AS step_tokens, coalesce(sum(hold.step_usd), 0) AS step_usd
      FROM budget_holds AS hold JOIN turns ON turns.id = hold.turn_id
      WHERE hold.owner = :owner AND turns.completed_at IS NULL
            AND hold.turn_id IS DISTINCT FROM cast(:without AS uuid) {{hold_key_filter}}) AS running,
     (SELECT coalesce(sum(hold.tokens), 0) AS tokens, coalesce(sum(hold.usd), 0) AS usd FROM request_holds AS hold
      WHERE hold.owner = :owner AND (hold.expires_at IS NULL OR hold.expires_at > now()) {{hold_key_filter}}
     ) AS requests
"""  # noqa: S608
_LOCK_OWNER = "SELECT pg_advisory_xact_lock(hashtextextended('budget ' || :owner, 0))"
_DELETE_ENDED = """
DELETE FROM budget_holds USING turns
WHERE budget_holds.owner = :owner AND turns.id = budget_holds.turn_id AND turns.completed_at IS NOT NULL
"""
_RESERVE = f"""
{FENCE}
INSERT INTO budget_holds (turn_id, owner, key, tokens, usd, step_tokens, step_usd)
SELECT id, $4, $5, $6, $7, $8, $9 FROM fence
ON CONFLICT (turn_id) DO UPDATE
SET tokens = excluded.tokens, usd = excluded.usd, step_tokens = excluded.step_tokens, step_usd = excluded.step_usd
"""  # noqa: S608
_SETTLE = f"""
{FENCE}
UPDATE budget_holds SET tokens = $4, usd = $5, step_tokens = $6, step_usd = $7 FROM fence WHERE turn_id = fence.id
"""  # noqa: S608
_DELETE_EXPIRED = "DELETE FROM request_holds WHERE owner = :owner AND expires_at <= now()"
_HOLD = """
INSERT INTO request_holds (id, owner, key, tokens, usd, expires_at)
VALUES (:id, :owner, :key, :tokens, :usd, now() + make_interval(secs => cast(:seconds AS float8)))
"""
_RATE = """
INSERT INTO turn_feedback (turn_id, owner, rating, comment)
SELECT id, owner, cast(:rating AS text), cast(:comment AS text) FROM turns
WHERE id = :turn_id AND owner = :owner FOR KEY SHARE
ON CONFLICT (turn_id) DO UPDATE SET rating = excluded.rating, comment = excluded.comment, at = now()
RETURNING at
"""
_SINCE = "at >= date_trunc('day', now(), 'UTC') - make_interval(days => :days - 1)"
BY_DAY = f"""
SELECT (at AT TIME ZONE 'UTC')::date AS day, count(*) FILTER (WHERE endpoint IS NULL),
       count(*) FILTER (WHERE status = 'completed' AND endpoint IS NULL),
       count(*) FILTER (WHERE status = 'failed' AND endpoint IS NULL),
       count(*) FILTER (WHERE status = 'cancelled' AND endpoint IS NULL),
       sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(total_tokens)::bigint, coalesce(sum(cost_usd), 0)
FROM turn_usage WHERE {_SINCE} AND (cast(:owner AS text) IS NULL OR owner = :owner) GROUP BY 1
"""  # noqa: S608
RATINGS = f"""
SELECT (at AT TIME ZONE 'UTC')::date AS day, count(*) FILTER (WHERE rating = 'up'),
       count(*) FILTER (WHERE rating = 'down')
FROM turn_feedback WHERE {_SINCE} AND (cast(:owner AS text) IS NULL OR owner = :owner) GROUP BY 1
"""  # noqa: S608
BY_MODEL = f"""
SELECT model_name, count(*) FILTER (WHERE endpoint IS NULL), sum(total_tokens)::bigint, coalesce(sum(cost_usd), 0)
FROM turn_usage WHERE {_SINCE} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1000
"""  # noqa: S608
ERRORS = f"""
SELECT error_code, count(*) FROM turn_usage WHERE {_SINCE} AND error_code IS NOT NULL AND endpoint IS NULL
GROUP BY 1 ORDER BY 2 DESC, 1
"""  # noqa: S608
TOOLS = f"""
SELECT (started_at AT TIME ZONE 'UTC')::date AS day, coalesce(server, ''), tool, count(*),
       count(*) FILTER (WHERE outcome IN ('error', 'unknown')), count(*) FILTER (WHERE outcome = 'denied'),
       avg(duration_ms)
FROM tool_calls WHERE started_{_SINCE} AND source IS NULL GROUP BY 1, 2, 3 ORDER BY 1 DESC, 4 DESC, 2, 3 LIMIT 5000
"""  # noqa: S608


class DailyUsage(msgspec.Struct, frozen=True):
    """Turns that ended on a day (UTC), and that day's ratings."""

    day: date
    turns: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost_usd: float = 0.0
    up: int = 0
    down: int = 0


class ModelStats(msgspec.Struct, frozen=True):
    model: str
    turns: int
    total_tokens: int
    cost_usd: float


class ErrorStats(msgspec.Struct, frozen=True):
    code: str
    turns: int


class ToolStats(msgspec.Struct, frozen=True):
    """Calls of a tool on a day.

    `duration_ms` is the mean; None if no call has ended.
    """

    day: date
    server: str
    tool: str
    calls: int
    errors: int
    denied: int
    duration_ms: float | None


def _spent_query(owner: str, key: str | None, without: UUID | None = None) -> tuple[str, dict[str, object]]:
    """Build the query for an owner's or a key's totals.

    Return its SQL and its parameters.
    """
    usage_key_filter, hold_key_filter = ("", "") if key is None else ("AND key = :key", "AND hold.key = :key")
    values: dict[str, object] = {"owner": owner, "without": without}
    if key is not None:
        values["key"] = key
    return _SPENT.format(usage_key_filter=usage_key_filter, hold_key_filter=hold_key_filter), values


def _get_values(reservation: BudgetReservation, worker_id: UUID) -> tuple[Fence, Values]:
    amounts = (reservation.tokens, reservation.usd, reservation.step_tokens, reservation.step_usd)
    return Fence(reservation.turn_id, worker_id, reservation.epoch), amounts


def _parse_totals(row: DatabaseRow) -> UsageTotals:
    return UsageTotals(int(row[0]), int(row[1]), float(row[2]), float(row[3]), int(row[4]), float(row[5]))


class _PostgresBudgetTransaction(BudgetTransaction):
    """See `BudgetTransaction`. The transaction holds the owner's lock."""

    def __init__(self, connection: AsyncConnection, worker_id: UUID, owner: str) -> None:
        self._connection = connection
        self._worker_id = worker_id
        self._owner = owner

    async def get_totals(self, key: str | None = None, *, without: UUID | None = None) -> UsageTotals:
        """See `BudgetTransaction.get_totals`."""
        statement, values = _spent_query(self._owner, key, without)
        return _parse_totals((await self._connection.execute(text(statement), values)).one())

    async def reserve(self, reservation: BudgetReservation, key: str | None) -> None:
        """See `BudgetTransaction.reserve`."""
        await self._connection.execute(text(_DELETE_ENDED), {"owner": self._owner})
        fence, amounts = _get_values(reservation, self._worker_id)
        await self._connection.exec_driver_sql(_RESERVE, (*fence, self._owner, key, *amounts))

    async def reserve_request(self, hold: RequestHold, key: str | None) -> None:
        """See `BudgetTransaction.reserve_request`."""
        await self._connection.execute(text(_DELETE_EXPIRED), {"owner": self._owner})
        values = {"id": hold.id, "owner": self._owner, "key": key, "tokens": hold.tokens, "usd": hold.usd}
        await self._connection.execute(text(_HOLD), values | {"seconds": hold.seconds})


class UsageStore(BudgetRepository):
    """See `BudgetRepository`.

    Also computes statistics by day, model and tool, and saves feedback.
    """

    def __init__(self, database: Database, worker_id: UUID, *, redactor: Redactor | None = None) -> None:
        self._database = database
        self._worker_id = worker_id
        self._redactor = redactor or Redactor()

    async def get_totals(self, owner: str, key: str | None = None) -> UsageTotals:
        """See `BudgetRepository.get_totals`."""
        statement, values = _spent_query(owner, key)
        [row] = await self._database.fetch_rows(statement, custom_plan=False, **values)
        return _parse_totals(row)

    @asynccontextmanager
    async def begin_transaction(self, owner: str) -> AsyncGenerator[_PostgresBudgetTransaction]:
        """See `BudgetRepository.begin_transaction`."""
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(text(_LOCK_OWNER), {"owner": owner})
            yield _PostgresBudgetTransaction(connection, self._worker_id, owner)

    async def settle(self, reservation: BudgetReservation) -> None:
        """See `BudgetRepository.settle`."""
        fence, amounts = _get_values(reservation, self._worker_id)
        async with self._database.session() as session:
            await (await session.connection()).exec_driver_sql(_SETTLE, (*fence, *amounts))

    async def aggregate_by_day(self, days: int, owner: str | None = None) -> list[DailyUsage]:
        """Aggregate the last `days` days, newest first.

        Days without a turn or rating are omitted.
        """
        usage_by_day = {
            row[0]: DailyUsage(*row) for row in await self._database.fetch_rows(BY_DAY, days=days, owner=owner)
        }
        for day, up, down in await self._database.fetch_rows(RATINGS, days=days, owner=owner):
            usage_by_day[day] = msgspec.structs.replace(usage_by_day.get(day, DailyUsage(day)), up=up, down=down)
        return sorted(usage_by_day.values(), key=lambda each: each.day, reverse=True)

    async def aggregate_by_model(self, days: int) -> list[ModelStats]:
        return [ModelStats(*row) for row in await self._database.fetch_rows(BY_MODEL, days=days)]

    async def count_errors(self, days: int) -> list[ErrorStats]:
        return [ErrorStats(*row) for row in await self._database.fetch_rows(ERRORS, days=days)]

    async def aggregate_tools(self, days: int) -> list[ToolStats]:
        """Aggregate calls by day and tool, newest day first."""
        return [ToolStats(*row) for row in await self._database.fetch_rows(TOOLS, days=days)]

    async def save_rating(self, turn_id: UUID, owner: str, rating: str, comment: str | None) -> datetime:
        """Save an owner's feedback on a turn; return the time.

        An earlier rating of the owner is replaced.

        Raises:
            NotFound: the turn was deleted meanwhile.
        """
        comment = comment and self._redactor.redact_text(comment)
        values = {"turn_id": turn_id, "owner": owner, "rating": rating, "comment": comment}
        async with self._database.session() as session:
            saved_at = (await (await session.connection()).execute(text(_RATE), values)).scalar()
        if saved_at is None:
            raise NotFound(f"There is no turn {str(turn_id)!r}.")
        return saved_at

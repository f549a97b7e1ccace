"""`/api/v1/admin/stats`: usage of all users."""

from datetime import date

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, UsageDep
from gateway.api.usage_views import DailyUsageView, Days

router = APIRouter(prefix="/api/v1/admin", tags=["usage"])


class ModelStatsView(BaseModel):
    """Usage of a model."""

    model: str
    turns: int
    total_tokens: int
    cost_usd: float


class ErrorStatsView(BaseModel):
    """Number of turns that ended with an error code."""

    code: str
    turns: int


class ToolStatsView(BaseModel):
    """Calls of a tool on a day (UTC).

    `duration_ms` is the mean, or null if no call has ended.
    """

    day: date
    server: str
    tool: str
    calls: int
    errors: int
    denied: int
    duration_ms: float | None


class StatsView(BaseModel):
    """Usage of all users.

    `days` and `tools` start with the newest day. `models` and `errors` cover all days and start with the most frequent.
    """

    days: list[DailyUsageView]
    models: list[ModelStatsView]
    errors: list[ErrorStatsView]
    tools: list[ToolStatsView]


@router.get("/stats", summary="Get the usage of all users")
async def get_stats(_principal: PrincipalDep, usage: UsageDep, days: Days = 30) -> StatsView:
    """Usage statistics of all users.

    Turns, tokens, cost, errors, ratings and tool calls. Admins only.
    """
    return StatsView(
        days=[
            DailyUsageView.model_validate(stats, from_attributes=True) for stats in await usage.aggregate_by_day(days)
        ],
        models=[
            ModelStatsView.model_validate(stats, from_attributes=True) for stats in await usage.aggregate_by_model(days)
        ],
        errors=[ErrorStatsView.model_validate(stats, from_attributes=True) for stats in await usage.count_errors(days)],
        tools=[
            ToolStatsView.model_validate(stats, from_attributes=True) for stats in await usage.aggregate_tools(days)
        ],
    )

"""`/api/v1/admin/stats`: what all users have used up."""

from datetime import date

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, UsageDep
from gateway.api.routes.native.budget import DailyUsageView, Days

router = APIRouter(prefix="/api/v1/admin", tags=["usage"])


class ModelStatsView(BaseModel):
    model: str
    turns: int
    total_tokens: int
    cost_usd: float


class ErrorStatsView(BaseModel):
    code: str
    turns: int


class ToolStatsView(BaseModel):
    """A tool's calls on a day; `duration_ms` is the mean, null while none has ended."""

    day: date
    server: str
    tool: str
    calls: int
    errors: int
    denied: int
    duration_ms: float | None


class StatsView(BaseModel):
    """`days` and `tools` the newest day first; `models` and `errors` over all of the days, the most frequent first."""

    days: list[DailyUsageView]
    models: list[ModelStatsView]
    errors: list[ErrorStatsView]
    tools: list[ToolStatsView]


@router.get("/stats", summary="What all have used up")
async def get_stats(_principal: PrincipalDep, usage: UsageDep, days: Days = 30) -> StatsView:
    """For admins: turns, tokens, cost, errors, ratings and the use of tools, of all users together."""
    return StatsView(
        days=[DailyUsageView.model_validate(each, from_attributes=True) for each in await usage.by_day(days)],
        models=[ModelStatsView.model_validate(each, from_attributes=True) for each in await usage.by_model(days)],
        errors=[ErrorStatsView.model_validate(each, from_attributes=True) for each in await usage.errors(days)],
        tools=[ToolStatsView.model_validate(each, from_attributes=True) for each in await usage.tools(days)],
    )

"""`/api/v1/budget`: what a user has used up, and may."""

from datetime import date
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, SettingsDep, UsageDep
from gateway.config import Settings
from gateway.domain.messages import Budget, UsageTotals
from gateway.wire.api_keys import BudgetView

router = APIRouter(prefix="/api/v1", tags=["usage"])

Days = Annotated[int, Query(ge=1, le=366, description="How many days back, today among them; days are UTC's.")]


class UsageTotalsView(BaseModel):
    """In UTC. Models without a known price cost nothing here. `…_set_aside`: what the model calls that run now may take
    at most; it is not in the other figures, and only kept where there is a budget."""

    tokens_today: int
    tokens_this_month: int
    usd_today: float
    usd_this_month: float
    tokens_set_aside: int
    usd_set_aside: float
    budget: BudgetView


class DailyUsageView(BaseModel):
    """Turns that ended on a day, and the ratings given on it."""

    day: date
    turns: int
    completed: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float
    up: int
    down: int


class UsageView(BaseModel):
    """`key`: the credential's own share, where it has a budget of its own. `days`: the newest first, none empty."""

    user: UsageTotalsView
    key: UsageTotalsView | None
    days: list[DailyUsageView]


@router.get("/budget", summary="What you have used up, and may")
async def get_budget(principal: PrincipalDep, usage: UsageDep, settings: SettingsDep, days: Days = 30) -> UsageView:
    """Tokens and dollars, today and this month, beside what you may use up: past it a turn is refused with 402."""
    found = await usage.by_day(days, principal.user)
    of_key = None
    if principal.budget is not None:
        of_key = _build_totals(await usage.spent(principal.user, principal.key), principal.budget)
    return UsageView(
        user=_build_totals(await usage.spent(principal.user), budget_of_users(settings)),
        key=of_key,
        days=[DailyUsageView.model_validate(day, from_attributes=True) for day in found],
    )


def budget_of_users(settings: Settings) -> Budget:
    """What each user may use up."""
    return Budget(
        settings.budget_tokens_per_day,
        settings.budget_tokens_per_month,
        settings.budget_usd_per_day,
        settings.budget_usd_per_month,
    )


def _build_totals(spent: UsageTotals, budget: Budget) -> UsageTotalsView:
    return UsageTotalsView(**msgspec.structs.asdict(spent), budget=BudgetView(**msgspec.structs.asdict(budget)))

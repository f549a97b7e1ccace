"""`/api/v1/budget`: a user's usage and budget."""

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, SettingsDep, UsageDep
from gateway.api.usage_views import DailyUsageView, Days
from gateway.domain.messages import Budget
from gateway.domain.spending import UsageTotals
from gateway.wire.api_keys import BudgetView

router = APIRouter(prefix="/api/v1", tags=["usage"])


class UsageTotalsView(BaseModel):
    """Usage of the current day and month (UTC), and the budget.

    Models without a known price add no cost. `…_set_aside` is reserved for model calls that are running; the other
    figures do not include it. It is 0 without a budget.
    """

    tokens_today: int
    tokens_this_month: int
    usd_today: float
    usd_this_month: float
    tokens_set_aside: int
    usd_set_aside: float
    budget: BudgetView


class UsageView(BaseModel):
    """Usage of a user.

    `key` is the usage of the API key, if the key has its own budget. `days` starts with the newest day and omits days
    without turns and ratings.
    """

    user: UsageTotalsView
    key: UsageTotalsView | None
    days: list[DailyUsageView]


@router.get("/budget", summary="Get your usage and budget")
async def get_budget(principal: PrincipalDep, usage: UsageDep, settings: SettingsDep, days: Days = 30) -> UsageView:
    """Tokens and cost of today and this month, with the budget.

    A turn beyond the budget is rejected with 402.
    """
    daily_usage = await usage.aggregate_by_day(days, principal.user)
    key_totals = None
    if principal.budget is not None:
        key_totals = _build_totals(await usage.get_totals(principal.user, principal.key), principal.budget)
    return UsageView(
        user=_build_totals(await usage.get_totals(principal.user), settings.user_budget),
        key=key_totals,
        days=[DailyUsageView.model_validate(day, from_attributes=True) for day in daily_usage],
    )


def _build_totals(totals: UsageTotals, budget: Budget) -> UsageTotalsView:
    return UsageTotalsView(**msgspec.structs.asdict(totals), budget=BudgetView(**msgspec.structs.asdict(budget)))

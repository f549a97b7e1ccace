"""`/api/v1/usage`: what one has used up, and may."""

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, StateDep
from gateway.api.keys import BudgetBody
from gateway.config import Settings
from gateway.messages import Budget, Spent

router = APIRouter(prefix="/api/v1/usage", tags=["usage"])


class SpentView(BaseModel):
    """Of ended turns, in UTC. Models without a known price cost nothing here."""

    tokens_today: int
    tokens_this_month: int
    usd_today: float
    usd_this_month: float
    budget: BudgetBody


class UsageView(BaseModel):
    """`key`: the credential's own share, where it has a budget of its own."""

    user: SpentView
    key: SpentView | None


@router.get("", summary="What you have used up")
async def get_usage(principal: PrincipalDep, state: StateDep) -> UsageView:
    """Tokens and dollars, today and this month, beside what you may use up: past it a turn is refused with 402."""
    of_user = _view(await state.usage.spent(owner=principal.user), budget_of_users(state.settings))
    if principal.budget is None:
        return UsageView(user=of_user, key=None)
    return UsageView(user=of_user, key=_view(await state.usage.spent(key=principal.key), principal.budget))


def budget_of_users(settings: Settings) -> Budget:
    """What each user may use up."""
    return Budget(
        settings.budget_tokens_per_day,
        settings.budget_tokens_per_month,
        settings.budget_usd_per_day,
        settings.budget_usd_per_month,
    )


def _view(spent: Spent, budget: Budget) -> SpentView:
    return SpentView(**msgspec.structs.asdict(spent), budget=BudgetBody(**msgspec.structs.asdict(budget)))

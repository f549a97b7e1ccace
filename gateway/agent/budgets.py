"""What users and keys may use up, checked before a turn and between its steps."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gateway.agent.base import Ledger
from gateway.errors import BudgetExceeded, StorageUnavailable
from gateway.log import get_logger
from gateway.messages import Budget, Principal, Spent

log = get_logger(__name__)


class Spending(Protocol):
    """A turn that runs: what it has used up so far is in no ledger yet."""

    @property
    def principal(self) -> Principal: ...
    @property
    def tokens(self) -> int: ...
    @property
    def usd(self) -> float: ...


class Budgets:
    """The user's budget is the same for all users; a key may have one of its own. Who has none costs nothing."""

    def __init__(self, ledger: Ledger, of_user: Budget) -> None:
        self._ledger = ledger
        self._of_user = of_user if of_user != Budget() else None

    async def check(self, principal: Principal, running: Iterable[Spending], *, begun: bool = False) -> None:
        """Compare what is used up, by ended turns and by those that run here, with what may be.

        A turn that has `begun` goes on while nobody can tell.

        Raises:
            BudgetExceeded: nothing is left.
            StorageUnavailable: nobody can tell.
        """
        try:
            if self._of_user is not None:
                spent = await self._ledger.spent(owner=principal.user)
                of_user = [turn for turn in running if turn.principal.user == principal.user]
                _compare(f"The budget of {principal.user!r}", self._of_user, _with(spent, of_user))
            if principal.budget is not None and principal.key is not None:
                spent = await self._ledger.spent(key=principal.key)
                of_key = [turn for turn in running if turn.principal.key == principal.key]
                _compare(f"The budget of the key {principal.key!r}", principal.budget, _with(spent, of_key))
        except StorageUnavailable:
            if not begun:
                raise
            log.warning("budget_not_checked")


def _with(spent: Spent, running: list[Spending]) -> Spent:
    return spent.plus(sum(turn.tokens for turn in running), sum(turn.usd for turn in running))


def _compare(whose: str, budget: Budget, spent: Spent) -> None:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow, next_month = midnight + timedelta(days=1), (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    for most, used, said, until in (
        (budget.tokens_per_month, spent.tokens_this_month, "{:,} tokens a month", next_month),
        (budget.usd_per_month, spent.usd_this_month, "{:g} USD a month", next_month),
        (budget.tokens_per_day, spent.tokens_today, "{:,} tokens a day", tomorrow),
        (budget.usd_per_day, spent.usd_today, "{:g} USD a day", tomorrow),
    ):
        if most is not None and used >= most:
            raise BudgetExceeded(
                f"{whose}, {said.format(most)}, is used up until {until:%Y-%m-%d} (UTC).",
                retry_after=(until - now).total_seconds(),
            )

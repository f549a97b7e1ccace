"""What users and keys may use up, checked before a turn and before each of its steps.

Before a step asks the model, what it may cost at most is set aside, so that steps at the same time, wherever they run,
do not all count on the same rest. What a turn has set aside counts until its step ends, and what it has used up until
its end puts that into the ledger; turns of dead workers are ended by others, so nothing is set aside for ever.
"""

import asyncio
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

from gateway.common.concurrency import wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.errors import BudgetExceeded, StorageUnavailable
from gateway.domain.messages import Budget, BudgetReservation, Principal, Usage, UsageTotals
from gateway.ports.model import ModelCall, ModelInfo
from gateway.ports.store import BudgetRepository
from gateway.ports.turns import TurnSpending

log = get_logger(__name__)


class _UserLock:
    """Where the steps of an owner wait here, one behind the other, for what runs to leave enough."""

    def __init__(self) -> None:
        self.turnstile = asyncio.Lock()
        self.settled = asyncio.Event()


class Budgets:
    """The user's budget is the same for all users; a key may have one of its own. Who has none costs nothing.

    A step waits at most `wait_seconds` for budget that others have reserved, and checks every `poll_seconds`: steps of
    other workers send no event.
    """

    def __init__(
        self, ledger: BudgetRepository, of_user: Budget, *, wait_seconds: float = 30.0, poll_seconds: float = 0.25
    ) -> None:
        self._ledger = ledger
        self._wait_seconds = wait_seconds
        self._poll_seconds = poll_seconds
        self._of_user = of_user if of_user != Budget() else None
        self._gates: WeakValueDictionary[str, _UserLock] = WeakValueDictionary()

    async def check_remaining(self, principal: Principal) -> None:
        """Raises:
        BudgetExceeded: nothing is left.
        StorageUnavailable: nobody can tell.
        """
        for whose, budget, key in self._list_budgets(principal):
            _RemainingBudget(whose, budget, await self._ledger.get_totals(principal.user, key)).check()

    async def reserve(self, turn: TurnSpending, call: ModelCall) -> None:
        """Set aside what the call may cost at most, besides what the turn has used up; wait for that to be there.

        A call that runs alone may use up more than what is left; a turn goes on while nobody can tell.

        Raises:
            BudgetExceeded: nothing is left, or what is left was set aside for others all the time.
        """
        if not self.applies_to(turn.principal):
            return
        tokens, usd = _estimate_maximum(call, turn.model)
        hold = BudgetReservation(turn.id, turn.tokens, turn.usd, tokens, usd)
        gate = self._gates.setdefault(turn.principal.user, _UserLock())
        try:
            async with asyncio.timeout(self._wait_seconds), gate.turnstile:
                while not await self._try_reserve(turn.principal, hold):
                    gate.settled.clear()
                    await wait_or_poll(gate.settled, self._poll_seconds)
        except TimeoutError:
            message = "What is left of the budget is set aside for model calls that run now. Try again shortly."
            raise BudgetExceeded(message, retry_after=1) from None
        except StorageUnavailable:
            log.warning("budget_not_checked", turn_id=str(turn.id))

    async def settle(self, turn: TurnSpending) -> None:
        """A step of the turn has ended: only what it has used up counts."""
        if not self.applies_to(turn.principal):
            return
        try:
            await self._ledger.settle(BudgetReservation(turn.id, turn.tokens, turn.usd))
        except StorageUnavailable:
            log.warning("budget_not_settled", turn_id=str(turn.id))
        if (gate := self._gates.get(turn.principal.user)) is not None:
            gate.settled.set()

    async def _try_reserve(self, principal: Principal, hold: BudgetReservation) -> bool:
        async with self._ledger.begin_transaction(principal.user) as account:
            for whose, budget, key in self._list_budgets(principal):
                left = _RemainingBudget(whose, budget, await account.get_totals(key, without=hold.turn_id), hold)
                left.check()
                if not left.covers(hold):
                    return False
            await account.reserve(hold, principal.key)
        return True

    def applies_to(self, principal: Principal) -> bool:
        """Whether the principal has one."""
        return self._of_user is not None or principal.budget is not None

    def _list_budgets(self, principal: Principal) -> Generator[tuple[str, Budget, str | None]]:
        if self._of_user is not None:
            yield f"The budget of {principal.user!r}", self._of_user, None
        if principal.budget is not None and principal.key is not None:
            yield f"The budget of the key {principal.key!r}", principal.budget, principal.key


class _RemainingBudget:
    """A budget beside what is used up of it; with `own`, by this turn, too."""

    def __init__(self, owner: str, budget: Budget, spent: UsageTotals, own: BudgetReservation | None = None) -> None:
        self._whose = owner
        self._others_run = bool(spent.tokens_set_aside or spent.usd_set_aside)
        tokens, usd = (own.tokens, own.usd) if own is not None else (0, 0.0)
        self._bounds = (
            (budget.tokens_per_month, spent.tokens_this_month + tokens, spent.tokens_set_aside, "{:,} tokens a month"),
            (budget.usd_per_month, spent.usd_this_month + usd, spent.usd_set_aside, "{:g} USD a month"),
            (budget.tokens_per_day, spent.tokens_today + tokens, spent.tokens_set_aside, "{:,} tokens a day"),
            (budget.usd_per_day, spent.usd_today + usd, spent.usd_set_aside, "{:g} USD a day"),
        )

    def check(self) -> None:
        """Raises:
        BudgetExceeded: nothing is left.
        """
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow, next_month = (
            midnight + timedelta(days=1),
            (midnight.replace(day=1) + timedelta(days=32)).replace(day=1),
        )
        for most, used, _, said in self._bounds:
            if most is not None and used >= most:
                until = next_month if said.endswith("month") else tomorrow
                raise BudgetExceeded(
                    f"{self._whose}, {said.format(most)}, is used up until {until:%Y-%m-%d} (UTC).",
                    retry_after=(until - now).total_seconds(),
                )

    def covers(self, hold: BudgetReservation) -> bool:
        """Whether the step may run beside those that do."""
        if not self._others_run:
            return True
        wanted = (hold.step_tokens, hold.step_usd, hold.step_tokens, hold.step_usd)
        return all(
            most is None or used + aside + more <= most
            for (most, used, aside, _), more in zip(self._bounds, wanted, strict=True)
        )


def _estimate_maximum(call: ModelCall, model: ModelInfo) -> tuple[int, float]:
    """Tokens and USD: the prompt's, about, and as many as the model may write."""
    prompt, answer = call.estimate_tokens(), call.parameters.max_tokens or model.max_output_tokens
    return prompt + answer, model.calculate_cost(Usage(prompt, answer, prompt + answer)) or 0.0

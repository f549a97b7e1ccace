"""Budgets of users and keys.

They are checked before a turn and before each of its steps. Before a step calls the model, its maximum cost is reserved
in the database, so that concurrent steps on all workers do not spend the same remainder. A reservation ends with its
step. The usage of a running turn counts until the turn's end writes it to the ledger. Other workers end the turns of
dead workers, so no reservation lasts for ever.
"""

import asyncio
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

from gateway.common.concurrency import wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.errors import BudgetExceeded, StorageInternalError, StorageUnavailable
from gateway.domain.messages import Budget, Principal, Usage
from gateway.domain.spending import BudgetReservation, RequestHold, UsageTotals
from gateway.ports.model import ModelCall, ModelInfo
from gateway.ports.store import BudgetRepository
from gateway.ports.turns import TurnSpending
from gateway.ports.upstream import RequestBudgets

log = get_logger(__name__)


class _UserLock:
    """Orders the steps of a user that wait for budget.

    It orders those of this worker only.
    """

    def __init__(self) -> None:
        self.reservation_lock = asyncio.Lock()
        self.settled = asyncio.Event()


class Budgets(RequestBudgets):
    """Checks and reserves the budgets of users and keys.

    Every user has a budget; a key may have one of its own. Principals without a budget cause no database access. A step
    waits at most `wait_seconds` for budget that others have reserved, and polls every `poll_seconds`, because steps of
    other workers send no event.
    """

    def __init__(
        self, ledger: BudgetRepository, user_budget: Budget, *, wait_seconds: float = 30.0, poll_seconds: float = 0.25
    ) -> None:
        self._ledger = ledger
        self._wait_seconds = wait_seconds
        self._poll_seconds = poll_seconds
        self._user_budget = user_budget if user_budget != Budget() else None
        self._locks: WeakValueDictionary[str, _UserLock] = WeakValueDictionary()

    async def check_remaining(self, principal: Principal) -> None:
        """Raises:
        BudgetExceeded: the budget is used up.
        StorageUnavailable: the database cannot be reached.
        """
        for owner, budget, key in self._list_budgets(principal):
            _RemainingBudget(owner, budget, await self._ledger.get_totals(principal.user, key)).check()

    async def reserve(self, turn: TurnSpending, call: ModelCall) -> None:
        """Reserve the maximum cost of a call.

        Wait if others have reserved the remainder. A call without concurrent calls may exceed the remainder. Without a
        database, the turn continues unchecked.

        Raises:
            BudgetExceeded: the budget is used up, or stayed reserved for the whole waiting time.
            TurnTakenOver: another worker owns the turn.
            StorageInternalError: the budget cannot be read, although the database answers.
        """
        if not self.applies_to(turn.principal):
            return
        tokens, usd = _estimate_maximum(call, turn.model)
        reservation = BudgetReservation(turn.id, turn.epoch, turn.tokens, turn.usd, tokens, usd)
        lock = self._locks.setdefault(turn.principal.user, _UserLock())
        try:
            async with asyncio.timeout(self._wait_seconds), lock.reservation_lock:
                lock.settled.clear()  # before reading: what settles during the read is not missed
                while not await self._try_reserve(turn.principal, reservation):
                    await wait_or_poll(lock.settled, self._poll_seconds)
                    lock.settled.clear()
        except TimeoutError:
            message = "The rest of the budget is reserved for model calls in progress. Try again shortly."
            raise BudgetExceeded(message, retry_after=1) from None
        except StorageUnavailable:
            log.warning("budget_not_checked", turn_id=str(turn.id))

    async def settle(self, turn: TurnSpending) -> None:
        """Release the reservation of a step that has ended.

        Only its actual usage counts.

        Raises:
            TurnTakenOver: another worker owns the turn.
        """
        if not self.applies_to(turn.principal):
            return
        try:
            await self._ledger.settle(BudgetReservation(turn.id, turn.epoch, turn.tokens, turn.usd))
        except (StorageUnavailable, StorageInternalError) as error:
            log.warning("budget_not_settled", turn_id=str(turn.id), code=error.code)
        if (lock := self._locks.get(turn.principal.user)) is not None:
            lock.settled.set()

    async def _try_reserve(self, principal: Principal, reservation: BudgetReservation) -> bool:
        async with self._ledger.begin_transaction(principal.user) as transaction:
            for owner, budget, key in self._list_budgets(principal):
                remaining = _RemainingBudget(
                    owner, budget, await transaction.get_totals(key, without=reservation.turn_id), reservation
                )
                remaining.check()
                if not remaining.covers(reservation):
                    return False
            await transaction.reserve(reservation, principal.key)
        return True

    async def reserve_request(self, principal: Principal, hold: RequestHold, *, strict: bool = False) -> bool:
        """See `RequestBudgets.reserve_request`."""
        if not self.applies_to(principal):
            return False
        as_step = BudgetReservation(hold.id, 0, 0, 0.0, hold.tokens, hold.usd)
        async with self._ledger.begin_transaction(principal.user) as transaction:
            for owner, budget, key in self._list_budgets(principal):
                remaining = _RemainingBudget(owner, budget, await transaction.get_totals(key))
                remaining.check()
                if not remaining.covers(as_step, strict=strict):
                    estimate = f"about {hold.tokens:,} tokens" + (f" or {hold.usd:.4g} USD" if hold.usd else "")
                    raise BudgetExceeded(f"{owner} does not leave enough for this request: {estimate}.", retry_after=1)
            await transaction.reserve_request(hold, principal.key)
        return True

    def applies_to(self, principal: Principal) -> bool:
        """Return whether the principal has a budget."""
        return self._user_budget is not None or principal.budget is not None

    def _list_budgets(self, principal: Principal) -> Generator[tuple[str, Budget, str | None]]:
        if self._user_budget is not None:
            yield f"The budget of {principal.user!r}", self._user_budget, None
        if principal.budget is not None and principal.key is not None:
            yield f"The budget of the key {principal.key!r}", principal.budget, principal.key


class _RemainingBudget:
    """A budget compared with its usage.

    `own_usage` is that of this turn, which `spent` does not include.
    """

    def __init__(
        self, owner: str, budget: Budget, spent: UsageTotals, own_usage: BudgetReservation | None = None
    ) -> None:
        self._owner = owner
        self._others_run = bool(spent.tokens_set_aside or spent.usd_set_aside)
        tokens, usd = (own_usage.tokens, own_usage.usd) if own_usage is not None else (0, 0.0)
        self._bounds = (
            (budget.tokens_per_month, spent.tokens_this_month + tokens, spent.tokens_set_aside, "{:,} tokens a month"),
            (budget.usd_per_month, spent.usd_this_month + usd, spent.usd_set_aside, "{:g} USD a month"),
            (budget.tokens_per_day, spent.tokens_today + tokens, spent.tokens_set_aside, "{:,} tokens a day"),
            (budget.usd_per_day, spent.usd_today + usd, spent.usd_set_aside, "{:g} USD a day"),
        )

    def check(self) -> None:
        """Raises:
        BudgetExceeded: the budget is used up.
        """
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow, next_month = (
            midnight + timedelta(days=1),
            (midnight.replace(day=1) + timedelta(days=32)).replace(day=1),
        )
        for limit, usage, _, label in self._bounds:
            if limit is not None and usage >= limit:
                until = next_month if label.endswith("month") else tomorrow
                raise BudgetExceeded(
                    f"{self._owner}, {label.format(limit)}, is used up until {until:%Y-%m-%d} (UTC).",
                    retry_after=(until - now).total_seconds(),
                )

    def covers(self, reservation: BudgetReservation, *, strict: bool = False) -> bool:
        """Return whether the step fits beside the concurrent ones.

        Without concurrent ones, it always fits, unless `strict`.
        """
        if not self._others_run and not strict:
            return True
        amounts = (reservation.step_tokens, reservation.step_usd, reservation.step_tokens, reservation.step_usd)
        return all(
            limit is None or usage + reserved + amount <= limit
            for (limit, usage, reserved, _), amount in zip(self._bounds, amounts, strict=True)
        )


def _estimate_maximum(call: ModelCall, model: ModelInfo) -> tuple[int, float]:
    """Estimate the tokens and USD of a model call.

    The estimate covers the prompt and the longest answer that the model may write.
    """
    prompt, answer = call.estimated_tokens, call.parameters.max_tokens or model.max_output_tokens
    return prompt + answer, model.calculate_cost(Usage(prompt, answer, prompt + answer)) or 0.0

"""Usage and reservations that budgets count."""

from uuid import UUID

import msgspec


class UsageTotals(msgspec.Struct, frozen=True):
    """Usage of today and of this month (UTC), with reservations.

    Running turns are included. Reservations (`…_set_aside`) are for active model calls.
    """

    tokens_today: int = 0
    tokens_this_month: int = 0
    usd_today: float = 0.0
    usd_this_month: float = 0.0
    tokens_set_aside: int = 0
    usd_set_aside: float = 0.0


class BudgetReservation(msgspec.Struct, frozen=True):
    """Usage of a running turn and the reservation for its next step.

    `tokens` and `usd` are what the turn has used; `step_tokens` and `step_usd` what the next step may use at most. No
    other sum includes them yet. `epoch` is that of the turn's record.
    """

    turn_id: UUID
    epoch: int
    tokens: int
    usd: float
    step_tokens: int = 0
    step_usd: float = 0.0


class RequestHold(msgspec.Struct, frozen=True):
    """Estimated cost of a request that is no turn.

    It counts until its usage is stored, at most for `seconds`; None: without end.
    """

    id: UUID
    tokens: int
    usd: float
    seconds: float | None = None

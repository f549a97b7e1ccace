"""Interfaces of the rate limits of a model server.

Several gateways may share them.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import msgspec


class LimitState(msgspec.Struct, frozen=True):
    """State of a limit in a response.

    It is `remaining` of `limit`, refilled by `rate` per second.
    """

    limit: float
    remaining: float
    rate: float


class RateLimitHeaders(msgspec.Struct, frozen=True):
    """Rate limit headers of a response.

    None: missing or invalid. `retry_after` in seconds.
    """

    tokens: LimitState | None = None
    requests: LimitState | None = None
    retry_after: float | None = None


class Reservation(msgspec.Struct, frozen=True):
    """A reservation in limits that several gateways share.

    `wait` over 0: nothing is reserved, and the caller may retry after so many seconds. `number` counts the reservations
    of a model; 0: the shared limits are unavailable. `first`: no other call was in flight. `epoch`: the time slot.
    """

    model: str
    tokens: float
    wait: float = 0.0
    number: int = 0
    first: bool = False
    epoch: int = 0


class SharedLimits(Protocol):
    """Limits that several gateways with one API key share.

    No method raises: unavailable limits do not limit.
    """

    @abstractmethod
    async def reserve_tokens(self, model: str, tokens: float) -> Reservation: ...

    @abstractmethod
    async def report_response(
        self, reservation: Reservation, headers: RateLimitHeaders, *, refunded: bool, block: float
    ) -> None:
        """End the reservation of a call.

        The server has counted the call, or it was never sent. `block`: seconds for which the model is blocked.
        """
        ...

    @abstractmethod
    async def refund_tokens(self, reservation: Reservation, tokens: float) -> None:
        """Return reserved tokens that were not used."""
        ...

    @abstractmethod
    async def close(self) -> None: ...


class Timer(Protocol):
    @abstractmethod
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Clock and timers of an event loop, or a test's fake."""

    @abstractmethod
    def time(self) -> float: ...
    @abstractmethod
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class QueuedItem(Protocol):
    """An item of a fair queue.

    `user`: its owner; `tokens`: its cost, over 0.
    """

    @property
    @abstractmethod
    def user(self) -> str: ...
    @property
    @abstractmethod
    def tokens(self) -> float: ...

"""The limits of a model server, and how several gateways with one key share them."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import msgspec


class LimitState(msgspec.Struct, frozen=True):
    """One limit as a response tells it: `remaining` of `limit`, and how much comes back in a second."""

    limit: float
    remaining: float
    rate: float


class RateLimitHeaders(msgspec.Struct, frozen=True):
    """What the headers of a response tell. None: nothing that can be read."""

    tokens: LimitState | None = None
    requests: LimitState | None = None
    retry_after: float | None = None


class Reservation(msgspec.Struct, frozen=True):
    """A reservation among several gateways; with `wait` over 0 there is none yet, and it may be asked for then.

    `number` counts a model's reservations (0: nobody counts); `first`: no other was under way; `epoch`: when it was.
    """

    model: str
    tokens: float
    wait: float = 0.0
    number: int = 0
    first: bool = False
    epoch: int = 0


class SharedLimits(Protocol):
    """The limits as several gateways with one key share them. Nothing of it raises: who cannot ask, has no limit."""

    @abstractmethod
    async def reserve_tokens(self, model: str, tokens: float) -> Reservation: ...

    @abstractmethod
    async def report_response(
        self, reservation: Reservation, headers: RateLimitHeaders, *, refunded: bool, block: float
    ) -> None:
        """The server has seen this call, or it will not be made. The model is blocked for `block` seconds."""
        ...

    @abstractmethod
    async def refund_tokens(self, reservation: Reservation, tokens: float) -> None:
        """Give back what was reserved and not used."""
        ...

    @abstractmethod
    async def close(self) -> None: ...


class Timer(Protocol):
    @abstractmethod
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time as an event loop has it, which is what it usually is."""

    @abstractmethod
    def time(self) -> float: ...
    @abstractmethod
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class QueuedItem(Protocol):
    """What can wait: `user` names whose it is, `tokens` (over 0) what it costs."""

    @property
    @abstractmethod
    def user(self) -> str: ...
    @property
    @abstractmethod
    def tokens(self) -> float: ...

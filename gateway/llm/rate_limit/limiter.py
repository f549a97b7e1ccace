"""One limiter for a model server's key: every call of every turn waits here for its place, by fair shares of the users.

It lives on what the responses tell of the limits. Until one has told, nothing is limited.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Protocol

import msgspec

from gateway.common.logging import get_logger
from gateway.domain.errors import UpstreamRateLimited
from gateway.llm.rate_limit.fair_queue import FairQueue
from gateway.llm.rate_limit.token_bucket import Budget, Reading, read_headers

log = get_logger(__name__)

_LONGEST_GUESS = 60.0
_NO_ANSWER = 0
_NEVER_SENT = 499


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time as an event loop has it, which is what it usually is."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class Ticket(msgspec.Struct, frozen=True):
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

    async def reserve(self, model: str, tokens: float) -> Ticket: ...

    async def answered(self, ticket: Ticket, reading: Reading, *, refunded: bool, block: float) -> None:
        """The server has seen this call, or it will not be made. The model is blocked for `block` seconds."""
        ...

    async def correct(self, ticket: Ticket, tokens: float) -> None:
        """Give back what was reserved and not used."""
        ...

    async def close(self) -> None: ...


class Slot:
    """A call's place. As an async context it is waited for on the way in.

    Raises:
        UpstreamRateLimited: on the way in: the wait would be longer than the deadline, or too many wait already.
    """

    __slots__ = (
        "_deadline", "_limiter", "alone", "expires", "lane", "not_before", "number", "pending", "ticket", "tokens",
        "turn", "user",
    )  # fmt: skip

    def __init__(self, limiter: "Limiter", lane: "_Lane", tokens: float, user: str, deadline: float) -> None:
        self._limiter = limiter
        self._deadline = deadline
        self.lane = lane
        self.tokens = tokens
        self.user = user
        self.turn: asyncio.Future[None] | None = None
        self.expires = math.inf
        self.not_before = 0.0
        self.number = 0
        self.alone = False
        self.pending = 0.0
        self.ticket: Ticket | None = None

    async def __aenter__(self) -> "Slot":
        if not self._limiter.enter_at_once(self):
            await self._limiter.wait_for(self, self._deadline)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pending:
            self._limiter.answered(self, Reading(), _NO_ANSWER)

    def answered(self, headers: Mapping[str, str], status: int) -> None:
        """The response's head is here; also for an error that came later in the stream, with its status."""
        self._limiter.answered(self, read_headers(headers), status)

    def used(self, tokens: float) -> None:
        """How many tokens really count towards the limits: all of the call's, without the cached ones."""
        if self.pending:
            self._limiter.answered(self, Reading(), _NO_ANSWER)
        self._limiter.correct(self, tokens)


class _Lane:
    """A model: its limits, and who waits for it."""

    def __init__(self, model: str, weights: Mapping[str, float]) -> None:
        self.model = model
        self.tokens = Budget()
        self.requests = Budget()
        self.queue = FairQueue[Slot](weights)
        self.timer: Timer | None = None
        self.asking = False
        self._granted = 0
        self._blocked_until = 0.0
        self._strikes = 0
        self._struck_at = 0

    @property
    def held(self) -> bool:
        """Whether an answer must come first: of those who share the limits, or of the one call after a refusal."""
        return self.asking or (self._strikes > 0 and self.requests.pending > 0)

    def idle(self, now: float) -> bool:
        return not self.queue and not self.requests.pending and now >= self._blocked_until

    def wait(self, slot: Slot, now: float, ahead: tuple[float, float] = (0.0, 0.0)) -> float:
        """Seconds until the slot could be had, behind so many tokens and requests."""
        return max(
            self._blocked_until - now,
            slot.not_before - now,
            self.tokens.wait(slot.tokens, now, ahead[0]),
            self.requests.wait(1, now, ahead[1]),
            0.0,
        )

    def take(self, slot: Slot) -> None:
        self._granted += 1
        slot.number = self._granted
        slot.alone = not self.requests.pending
        slot.pending = slot.tokens
        self.tokens.take(slot.tokens)
        self.requests.take(1)

    def settle(self, slot: Slot, *, refund: bool) -> None:
        """The server has seen the call, or never will."""
        if slot.pending:
            self.tokens.pending -= slot.pending
            self.requests.pending -= 1
            slot.pending = 0.0
        if refund:
            self.tokens.give_back(slot.tokens)
            self.requests.give_back(1)
            slot.tokens = 0.0

    def learn(self, slot: Slot, reading: Reading, now: float) -> None:
        alone = slot.alone and slot.number == self._granted
        if reading.tokens is not None:
            self.tokens.learn(reading.tokens, now, alone=alone)
        if reading.requests is not None:
            self.requests.learn(reading.requests, now, alone=alone)

    def refused(self, slot: Slot, retry_after: float | None, now: float) -> float:
        """Block the model, longer each time that the server does not say for how long. Returns the seconds.

        The calls that were under way together are refused together, which is one refusal.
        """
        if slot.number > self._struck_at:
            self._strikes += 1
            self._struck_at = self._granted
        seconds = min(_LONGEST_GUESS, 2.0 ** (self._strikes - 1)) if retry_after is None else retry_after
        self._blocked_until = max(self._blocked_until, now + seconds)
        log.warning("model_rate_limited", model=self.model, seconds=round(seconds, 3), told=retry_after is not None)
        return seconds

    def accepted(self, slot: Slot) -> None:
        if slot.number > self._struck_at:
            self._strikes = 0


class Limiter:
    """Shared by all turns of a process. `weights` are the users' shares, 1 where none is given."""

    def __init__(
        self,
        *,
        shared: SharedLimits | None = None,
        weights: Mapping[str, float] | None = None,
        max_waiting: int = 1_000,
        max_models: int = 256,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._shared = shared
        self._weights = weights or {}
        self._max_waiting = max_waiting
        self._max_models = max_models
        self._lanes: dict[str, _Lane] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self.waiting = 0

    def slot(self, model: str, *, tokens: float, user: str = "", deadline: float | None = None) -> Slot:
        """A place for a call that will take about so many tokens, to be had within `deadline` seconds."""
        lane = self._lanes.get(model) or self._new_lane(model)
        return Slot(self, lane, max(tokens, 1), user, math.inf if deadline is None else deadline)

    def _new_lane(self, model: str) -> _Lane:
        if len(self._lanes) >= self._max_models:
            now = self._clock.time()
            idle = next((name for name, lane in self._lanes.items() if lane.idle(now)), None)
            if idle is not None:
                del self._lanes[idle]
        lane = self._lanes[model] = _Lane(model, self._weights)
        return lane

    def enter_at_once(self, slot: Slot) -> bool:
        """Take the slot if that needs no waiting and nobody to ask."""
        lane = slot.lane
        if self._shared is not None or lane.queue or lane.held or lane.wait(slot, self._clock.time()):
            return False
        lane.take(slot)
        return True

    async def wait_for(self, slot: Slot, deadline: float) -> None:
        """Take the slot in its turn. Whoever is cancelled here leaves no trace."""
        lane, now = slot.lane, self._clock.time()
        slot.expires = now + deadline
        predicted = lane.wait(slot, now, lane.queue.ahead(slot))
        if predicted >= deadline or self.waiting >= self._max_waiting:
            raise _refusal(predicted)
        slot.turn = asyncio.get_running_loop().create_future()
        lane.queue.add(slot)
        self.waiting += 1
        self._serve(lane)
        try:
            await slot.turn
        except asyncio.CancelledError:
            self._withdraw(slot)
            raise

    def answered(self, slot: Slot, reading: Reading, status: int) -> None:
        """See `Slot.answered`. A call that is refused has used nothing of what was taken for it."""
        lane, now, block = slot.lane, self._clock.time(), 0.0
        refund = status >= 400 and slot.pending > 0
        lane.settle(slot, refund=refund)
        lane.learn(slot, reading, now)
        if status == 429:
            block = lane.refused(slot, reading.retry_after, now)
        elif _NO_ANSWER < status < 400:
            lane.accepted(slot)
        if self._shared is not None and slot.ticket is not None:
            self._tell(self._shared.answered(slot.ticket, reading, refunded=refund, block=block))
        self._serve(lane)

    def correct(self, slot: Slot, tokens: float) -> None:
        """See `Slot.used`."""
        spare, slot.tokens = slot.tokens - tokens, tokens
        slot.lane.tokens.give_back(spare)
        if self._shared is not None and slot.ticket is not None and spare:
            self._tell(self._shared.correct(slot.ticket, spare))
        self._serve(slot.lane)

    async def close(self) -> None:
        """Wait until those who share the limits have been told all."""
        await asyncio.gather(*self._telling, return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    def _serve(self, lane: _Lane) -> None:
        """Hand out what can be had, refuse who cannot be served in time, and come back when the next can be.

        Nobody is served before the first, so its wait is the least that all the others have.
        """
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if not lane.queue:
            return
        now = self._clock.time()
        while (slot := lane.queue.first()) is not None:
            wait = lane.wait(slot, now)
            if not wait and not lane.held:
                self._grant_or_ask(slot)
            elif late := [one for one in lane.queue if now + wait >= one.expires]:
                for one in late:
                    self._refuse(one, wait)
            else:
                when = now + wait if wait else min(one.expires for one in lane.queue)
                if when < math.inf:
                    lane.timer = self._clock.call_at(when, partial(self._serve, lane))
                return

    def _grant_or_ask(self, slot: Slot) -> None:
        if self._shared is None:
            self._grant(slot)
        else:
            slot.lane.asking = True
            self._tell(self._ask(slot, self._shared))

    async def _ask(self, slot: Slot, shared: SharedLimits) -> None:
        """Reserve for the first in the queue among all gateways: one at a time, so that the order stands."""
        lane = slot.lane
        ticket = await shared.reserve(lane.model, slot.tokens)
        lane.asking = False
        if slot.turn is None or slot.turn.done():
            self._tell(shared.answered(ticket, Reading(), refunded=True, block=0.0))
        elif ticket.wait > 0:
            slot.not_before = self._clock.time() + ticket.wait
        else:
            slot.ticket = ticket
            self._grant(slot)
        self._serve(lane)

    def _grant(self, slot: Slot) -> None:
        assert slot.turn is not None
        self.waiting -= 1
        slot.lane.queue.serve(slot)
        slot.lane.take(slot)
        slot.turn.set_result(None)

    def _refuse(self, slot: Slot, wait: float) -> None:
        assert slot.turn is not None
        self.waiting -= 1
        slot.lane.queue.remove(slot)
        slot.turn.set_exception(_refusal(wait))

    def _withdraw(self, slot: Slot) -> None:
        """The waiting was cancelled: in the queue, or just as it had come to its end."""
        assert slot.turn is not None
        if slot.number:
            self.answered(slot, Reading(), _NEVER_SENT)
        elif slot.turn.cancelled():
            self.waiting -= 1
            slot.lane.queue.remove(slot)
            self._serve(slot.lane)
        else:
            slot.turn.exception()  # or asyncio logs that nobody took it

    def _tell(self, telling: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _refusal(wait: float) -> UpstreamRateLimited:
    seconds = max(1, math.ceil(wait))
    message = f"{UpstreamRateLimited.default_message} Try again in {seconds} seconds."
    return UpstreamRateLimited(message, retry_after=seconds)

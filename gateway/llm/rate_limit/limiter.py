"""One limiter for a model server's key: every call of every turn waits here for its place, by fair shares of the users.

It lives on what the responses tell of the limits. Until one has told, nothing is limited.
"""

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from types import TracebackType

from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import UpstreamRateLimited
from gateway.llm.rate_limit.fair_queue import FairQueue
from gateway.llm.rate_limit.token_bucket import TokenBucket, parse_rate_limit_headers
from gateway.ports.rate_limit import Clock, RateLimitHeaders, Reservation, SharedLimits, Timer

log = get_logger(__name__)

_MAX_BACKOFF_SECONDS = 60.0
_NO_RESPONSE_STATUS = 0
_NOT_SENT_STATUS = 499


class RateLimitPermit:
    """A call's place. As an async context it is waited for on the way in.

    Raises:
        UpstreamRateLimited: on the way in: the wait would be longer than the deadline, or too many wait already.
    """

    __slots__ = (
        "_deadline",
        "_limiter",
        "alone",
        "expires",
        "granted",
        "not_before",
        "number",
        "pending",
        "queue",
        "reservation",
        "tokens",
        "user",
    )  # fmt: skip

    def __init__(self, limiter: "Limiter", lane: "_ModelQueue", tokens: float, user: str, deadline: float) -> None:
        self._limiter = limiter
        self._deadline = deadline
        self.queue = lane
        self.tokens = tokens
        self.user = user
        self.granted: asyncio.Future[None] | None = None
        self.expires = math.inf
        self.not_before = 0.0
        self.number = 0
        self.alone = False
        self.pending = 0.0
        self.reservation: Reservation | None = None

    async def __aenter__(self) -> "RateLimitPermit":
        if not self._limiter.try_acquire(self):
            await self._limiter.wait_for_permit(self, self._deadline)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pending:
            self._limiter.on_permit_response(self, RateLimitHeaders(), _NO_RESPONSE_STATUS)

    def on_response(self, headers: Mapping[str, str], status: int) -> None:
        """The response's head is here; also for an error that came later in the stream, with its status."""
        self._limiter.on_permit_response(self, parse_rate_limit_headers(headers), status)

    def on_usage(self, tokens: float) -> None:
        """How many tokens really count towards the limits: all of the call's, without the cached ones."""
        if self.pending:
            self._limiter.on_permit_response(self, RateLimitHeaders(), _NO_RESPONSE_STATUS)
        self._limiter.correct_usage(self, tokens)


class _ModelQueue:
    """A model: its limits, and who waits for it."""

    def __init__(self, model: str, weights: Mapping[str, float]) -> None:
        self.model = model
        self.tokens = TokenBucket()
        self.requests = TokenBucket()
        self.waiters = FairQueue[RateLimitPermit](weights)
        self.timer: Timer | None = None
        self.is_reserving = False
        self._granted = 0
        self._blocked_until = 0.0
        self._strikes = 0
        self._struck_at = 0

    @property
    def is_held(self) -> bool:
        """Whether an answer must come first: of those who share the limits, or of the one call after a refusal."""
        return self.is_reserving or (self._strikes > 0 and self.requests.pending > 0)

    def is_idle(self, now: float) -> bool:
        return not self.waiters and not self.requests.pending and now >= self._blocked_until

    def estimate_wait(self, slot: RateLimitPermit, now: float, ahead: tuple[float, float] = (0.0, 0.0)) -> float:
        """Seconds until the slot could be had, behind so many tokens and requests."""
        return max(
            self._blocked_until - now,
            slot.not_before - now,
            self.tokens.get_wait_seconds(slot.tokens, now, ahead[0]),
            self.requests.get_wait_seconds(1, now, ahead[1]),
            0.0,
        )

    def take_permit(self, slot: RateLimitPermit) -> None:
        self._granted += 1
        slot.number = self._granted
        slot.alone = not self.requests.pending
        slot.pending = slot.tokens
        self.tokens.take_tokens(slot.tokens)
        self.requests.take_tokens(1)

    def settle_permit(self, slot: RateLimitPermit, *, refund: bool) -> None:
        """The server has seen the call, or never will."""
        if slot.pending:
            self.tokens.pending -= slot.pending
            self.requests.pending -= 1
            slot.pending = 0.0
        if refund:
            self.tokens.refund(slot.tokens)
            self.requests.refund(1)
            slot.tokens = 0.0

    def update_limits(self, slot: RateLimitPermit, reading: RateLimitHeaders, now: float) -> None:
        alone = slot.alone and slot.number == self._granted
        if reading.tokens is not None:
            self.tokens.update_from_headers(reading.tokens, now, alone=alone)
        if reading.requests is not None:
            self.requests.update_from_headers(reading.requests, now, alone=alone)

    def on_rejected(self, slot: RateLimitPermit, retry_after: float | None, now: float) -> float:
        """Block the model, longer each time that the server does not say for how long. Returns the seconds.

        The calls that were under way together are refused together, which is one refusal.
        """
        if slot.number > self._struck_at:
            self._strikes += 1
            self._struck_at = self._granted
        seconds = min(_MAX_BACKOFF_SECONDS, 2.0 ** (self._strikes - 1)) if retry_after is None else retry_after
        self._blocked_until = max(self._blocked_until, now + seconds)
        log.warning("model_rate_limited", model=self.model, seconds=round(seconds, 3), told=retry_after is not None)
        return seconds

    def on_accepted_permit(self, slot: RateLimitPermit) -> None:
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
        self._queues: dict[str, _ModelQueue] = {}
        self._reports = TaskSet("shared rate limit reports")
        self.waiting_count = 0

    def create_permit(
        self, model: str, *, tokens: float, user: str = "", max_wait_seconds: float | None = None
    ) -> RateLimitPermit:
        """A place for a call that will take about so many tokens, to be had within `deadline` seconds."""
        lane = self._queues.get(model) or self._create_queue(model)
        return RateLimitPermit(
            self, lane, max(tokens, 1), user, math.inf if max_wait_seconds is None else max_wait_seconds
        )

    def _create_queue(self, model: str) -> _ModelQueue:
        if len(self._queues) >= self._max_models:
            now = self._clock.time()
            idle = next((name for name, lane in self._queues.items() if lane.is_idle(now)), None)
            if idle is not None:
                del self._queues[idle]
        lane = self._queues[model] = _ModelQueue(model, self._weights)
        return lane

    def try_acquire(self, slot: RateLimitPermit) -> bool:
        """Take the slot if that needs no waiting and nobody to ask."""
        lane = slot.queue
        if self._shared is not None or lane.waiters or lane.is_held or lane.estimate_wait(slot, self._clock.time()):
            return False
        lane.take_permit(slot)
        return True

    async def wait_for_permit(self, slot: RateLimitPermit, deadline: float) -> None:
        """Take the slot in its turn. Whoever is cancelled here leaves no trace."""
        lane, now = slot.queue, self._clock.time()
        slot.expires = now + deadline
        predicted = lane.estimate_wait(slot, now, lane.waiters.estimate_ahead(slot))
        if predicted >= deadline or self.waiting_count >= self._max_waiting:
            raise _make_rate_limit_error(predicted)
        slot.granted = asyncio.get_running_loop().create_future()
        lane.waiters.add_item(slot)
        self.waiting_count += 1
        self._serve_queue(lane)
        try:
            await slot.granted
        except asyncio.CancelledError:
            self._withdraw_permit(slot)
            raise

    def on_permit_response(self, slot: RateLimitPermit, reading: RateLimitHeaders, status: int) -> None:
        """See `RateLimitPermit.on_response`. A call that is refused has used nothing of what was taken for it."""
        lane, now, block = slot.queue, self._clock.time(), 0.0
        refund = status >= 400 and slot.pending > 0
        lane.settle_permit(slot, refund=refund)
        lane.update_limits(slot, reading, now)
        if status == 429:
            block = lane.on_rejected(slot, reading.retry_after, now)
        elif _NO_RESPONSE_STATUS < status < 400:
            lane.on_accepted_permit(slot)
        if self._shared is not None and slot.reservation is not None:
            self._reports.spawn(self._shared.report_response(slot.reservation, reading, refunded=refund, block=block))
        self._serve_queue(lane)

    def correct_usage(self, slot: RateLimitPermit, tokens: float) -> None:
        """See `RateLimitPermit.on_usage`."""
        spare, slot.tokens = slot.tokens - tokens, tokens
        slot.queue.tokens.refund(spare)
        if self._shared is not None and slot.reservation is not None and spare:
            self._reports.spawn(self._shared.refund_tokens(slot.reservation, spare))
        self._serve_queue(slot.queue)

    async def close(self) -> None:
        """Wait until those who share the limits have been told all."""
        await self._reports.stop(None)
        if self._shared is not None:
            await self._shared.close()

    def _serve_queue(self, lane: _ModelQueue) -> None:
        """Hand out what can be had, refuse who cannot be served in time, and come back when the next can be.

        Nobody is served before the first, so its wait is the least that all the others have.
        """
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if not lane.waiters:
            return
        now = self._clock.time()
        while (slot := lane.waiters.find_next()) is not None:
            wait = lane.estimate_wait(slot, now)
            if not wait and not lane.is_held:
                self._grant_or_reserve(slot)
            elif late := [one for one in lane.waiters if now + wait >= one.expires]:
                for one in late:
                    self._reject_permit(one, wait)
            else:
                when = now + wait if wait else min(one.expires for one in lane.waiters)
                if when < math.inf:
                    lane.timer = self._clock.call_at(when, partial(self._serve_queue, lane))
                return

    def _grant_or_reserve(self, slot: RateLimitPermit) -> None:
        if self._shared is None:
            self._grant_permit(slot)
        else:
            slot.queue.is_reserving = True
            self._reports.spawn(self._reserve_shared(slot, self._shared))

    async def _reserve_shared(self, slot: RateLimitPermit, shared: SharedLimits) -> None:
        """Reserve for the first in the queue among all gateways: one at a time, so that the order stands."""
        lane = slot.queue
        ticket = await shared.reserve_tokens(lane.model, slot.tokens)
        lane.is_reserving = False
        if slot.granted is None or slot.granted.done():
            self._reports.spawn(shared.report_response(ticket, RateLimitHeaders(), refunded=True, block=0.0))
        elif ticket.wait > 0:
            slot.not_before = self._clock.time() + ticket.wait
        else:
            slot.reservation = ticket
            self._grant_permit(slot)
        self._serve_queue(lane)

    def _grant_permit(self, slot: RateLimitPermit) -> None:
        assert slot.granted is not None
        self.waiting_count -= 1
        slot.queue.waiters.serve_item(slot)
        slot.queue.take_permit(slot)
        slot.granted.set_result(None)

    def _reject_permit(self, slot: RateLimitPermit, wait: float) -> None:
        assert slot.granted is not None
        self.waiting_count -= 1
        slot.queue.waiters.remove_item(slot)
        slot.granted.set_exception(_make_rate_limit_error(wait))

    def _withdraw_permit(self, slot: RateLimitPermit) -> None:
        """The waiting was cancelled: in the queue, or just as it had come to its end."""
        assert slot.granted is not None
        if slot.number:
            self.on_permit_response(slot, RateLimitHeaders(), _NOT_SENT_STATUS)
        elif slot.granted.cancelled():
            self.waiting_count -= 1
            slot.queue.waiters.remove_item(slot)
            self._serve_queue(slot.queue)
        else:
            slot.granted.exception()  # or asyncio logs that nobody took it


def _make_rate_limit_error(wait: float) -> UpstreamRateLimited:
    seconds = max(1, math.ceil(wait))
    message = f"{UpstreamRateLimited.default_message} Try again in {seconds} seconds."
    return UpstreamRateLimited(message, retry_after=seconds)

"""Rate limiter of one API key of a model server.

Calls wait here, with fair shares for the users. The limits come from the headers of responses. Until the first
response, nothing is limited.
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
    """The permit of a call.

    It is an async context manager whose entry waits for the rate limits. `user` is the owner; `tokens` the estimated
    size of the call. `alone`: no other call was in flight when it was granted. `pending`: the tokens that no response
    has confirmed.

    Raises:
        UpstreamRateLimited: on entry, if the wait would take too long or too many calls wait already.
    """

    __slots__ = (
        "_limiter",
        "_max_wait_seconds",
        "alone",
        "expires",
        "grant_future",
        "not_before",
        "number",
        "pending",
        "queue",
        "reservation",
        "tokens",
        "user",
    )

    def __init__(
        self, limiter: "ModelRateLimiter", queue: "_ModelQueue", tokens: float, user: str, max_wait_seconds: float
    ) -> None:
        self._limiter = limiter
        self._max_wait_seconds = max_wait_seconds
        self.queue = queue
        self.tokens = tokens
        self.user = user
        self.grant_future: asyncio.Future[None] | None = None
        self.expires = math.inf
        self.not_before = 0.0
        self.number = 0
        self.alone = False
        self.pending = 0.0
        self.reservation: Reservation | None = None

    async def __aenter__(self) -> "RateLimitPermit":
        if not self._limiter.try_acquire(self):
            await self._limiter.wait_for_permit(self, self._max_wait_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pending:
            self._limiter.on_permit_response(self, RateLimitHeaders(), _NO_RESPONSE_STATUS)

    def on_response(self, headers: Mapping[str, str], status: int) -> None:
        """Process the head of the response, or a later status.

        A later status is that of an error in the response's stream.
        """
        self._limiter.on_permit_response(self, parse_rate_limit_headers(headers), status)

    def on_usage(self, tokens: float) -> None:
        """Replace the estimate by the tokens that count.

        The limits count all tokens but the cached ones.
        """
        if self.pending:
            self._limiter.on_permit_response(self, RateLimitHeaders(), _NO_RESPONSE_STATUS)
        self._limiter.correct_usage(self, tokens)


class _ModelQueue:
    """The limits of one model and the calls that wait for it."""

    def __init__(self, model: str, weights: Mapping[str, float]) -> None:
        self.model = model
        self.tokens = TokenBucket()
        self.requests = TokenBucket()
        self.waiters = FairQueue[RateLimitPermit](weights)
        self.timer: Timer | None = None
        self.is_reserving = False
        self._granted_count = 0
        self._blocked_until = 0.0
        self._rejections = 0
        self._rejected_up_to = 0

    @property
    def is_held(self) -> bool:
        """Whether calls must wait for a reply.

        The reply is that to a shared reservation, or to the trial call after a rejection.
        """
        return self.is_reserving or (self._rejections > 0 and self.requests.pending > 0)

    def is_idle(self, now: float) -> bool:
        return not self.waiters and not self.requests.pending and now >= self._blocked_until

    def estimate_wait(self, permit: RateLimitPermit, now: float, ahead: tuple[float, float] = (0.0, 0.0)) -> float:
        """Estimate the seconds until a permit is available.

        `ahead` are the tokens and requests before it.
        """
        return max(
            self._blocked_until - now,
            permit.not_before - now,
            self.tokens.get_wait_seconds(permit.tokens, now, ahead[0]),
            self.requests.get_wait_seconds(1, now, ahead[1]),
            0.0,
        )

    def take_permit(self, permit: RateLimitPermit) -> None:
        self._granted_count += 1
        permit.number = self._granted_count
        permit.alone = not self.requests.pending
        permit.pending = permit.tokens
        self.tokens.take_tokens(permit.tokens)
        self.requests.take_tokens(1)

    def settle_permit(self, permit: RateLimitPermit, *, refund: bool) -> None:
        """End the pending state of a call.

        The server has counted the call, or it was never sent.
        """
        if permit.pending:
            self.tokens.pending -= permit.pending
            self.requests.pending -= 1
            permit.pending = 0.0
        if refund:
            self.tokens.refund(permit.tokens)
            self.requests.refund(1)
            permit.tokens = 0.0

    def update_limits(self, permit: RateLimitPermit, headers: RateLimitHeaders, now: float) -> None:
        alone = permit.alone and permit.number == self._granted_count
        if headers.tokens is not None:
            self.tokens.update_from_headers(headers.tokens, now, alone=alone)
        if headers.requests is not None:
            self.requests.update_from_headers(headers.requests, now, alone=alone)

    def on_rejected(self, permit: RateLimitPermit, retry_after: float | None, now: float) -> float:
        """Block the model and return for how many seconds.

        They are `retry_after`, or else an exponential backoff. Rejections of calls that were in flight together count
        once.
        """
        if permit.number > self._rejected_up_to:
            self._rejections += 1
            self._rejected_up_to = self._granted_count
        seconds = min(_MAX_BACKOFF_SECONDS, 2.0 ** (self._rejections - 1)) if retry_after is None else retry_after
        self._blocked_until = max(self._blocked_until, now + seconds)
        log.warning(
            "model_rate_limited",
            model=self.model,
            seconds=round(seconds, 3),
            has_retry_after=retry_after is not None,
        )
        return seconds

    def on_accepted_permit(self, permit: RateLimitPermit) -> None:
        if permit.number > self._rejected_up_to:
            self._rejections = 0


class ModelRateLimiter:
    """Rate limiter that all turns of a process share.

    `weights` are shares by user, 1 by default. `shared` are the limits that several gateways share, if any.
    """

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
        """Create a permit for a call of about `tokens` tokens.

        `max_wait_seconds` None: no limit.
        """
        queue = self._queues.get(model) or self._create_queue(model)
        wait_limit = math.inf if max_wait_seconds is None else max_wait_seconds
        return RateLimitPermit(self, queue, max(tokens, 1), user, wait_limit)

    def _create_queue(self, model: str) -> _ModelQueue:
        if len(self._queues) >= self._max_models:
            now = self._clock.time()
            idle = next((name for name, queue in self._queues.items() if queue.is_idle(now)), None)
            if idle is not None:
                del self._queues[idle]
        queue = self._queues[model] = _ModelQueue(model, self._weights)
        return queue

    def try_acquire(self, permit: RateLimitPermit) -> bool:
        """Take the permit if that needs no wait.

        A shared reservation needs a wait.
        """
        queue = permit.queue
        if self._shared is not None or queue.waiters or queue.is_held:
            return False
        if queue.estimate_wait(permit, self._clock.time()):
            return False
        queue.take_permit(permit)
        return True

    async def wait_for_permit(self, permit: RateLimitPermit, max_wait_seconds: float) -> None:
        """Wait until the permit is granted.

        A cancelled wait is removed from the queue.

        Raises:
            UpstreamRateLimited: the wait would take `max_wait_seconds` or more, or too many calls wait already.
        """
        queue, now = permit.queue, self._clock.time()
        permit.expires = now + max_wait_seconds
        predicted_wait = queue.estimate_wait(permit, now, queue.waiters.estimate_ahead(permit))
        if predicted_wait >= max_wait_seconds or self.waiting_count >= self._max_waiting:
            raise _make_rate_limit_error(predicted_wait)
        permit.grant_future = asyncio.get_running_loop().create_future()
        queue.waiters.add_item(permit)
        self.waiting_count += 1
        self._serve_queue(queue)
        try:
            await permit.grant_future
        except asyncio.CancelledError:
            self._cancel_permit(permit)
            raise

    def on_permit_response(self, permit: RateLimitPermit, headers: RateLimitHeaders, status: int) -> None:
        """See `RateLimitPermit.on_response`. A rejected call gets its tokens back."""
        queue, now, block = permit.queue, self._clock.time(), 0.0
        refund = status >= 400 and permit.pending > 0
        queue.settle_permit(permit, refund=refund)
        queue.update_limits(permit, headers, now)
        if status == 429:
            block = queue.on_rejected(permit, headers.retry_after, now)
        elif _NO_RESPONSE_STATUS < status < 400:
            queue.on_accepted_permit(permit)
        if self._shared is not None and permit.reservation is not None:
            self._reports.spawn(self._shared.report_response(permit.reservation, headers, refunded=refund, block=block))
        self._serve_queue(queue)

    def correct_usage(self, permit: RateLimitPermit, tokens: float) -> None:
        """See `RateLimitPermit.on_usage`."""
        unused_tokens, permit.tokens = permit.tokens - tokens, tokens
        permit.queue.tokens.refund(unused_tokens)
        if self._shared is not None and permit.reservation is not None and unused_tokens:
            self._reports.spawn(self._shared.refund_tokens(permit.reservation, unused_tokens))
        self._serve_queue(permit.queue)

    async def close(self) -> None:
        """Send the outstanding reports to the shared limits, then close."""
        await self._reports.stop(None)
        if self._shared is not None:
            await self._shared.close()

    def _serve_queue(self, queue: _ModelQueue) -> None:
        """Grant available permits, reject late ones, schedule the next pass.

        A permit is late if its wait would last beyond `expires`. Permits are granted in queue order, so the wait of the
        first is the minimum for all others.
        """
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if not queue.waiters:
            return
        now = self._clock.time()
        while (permit := queue.waiters.find_next()) is not None:
            wait = queue.estimate_wait(permit, now)
            if not wait and not queue.is_held:
                self._grant_or_reserve(permit)
            elif late := [waiter for waiter in queue.waiters if now + wait >= waiter.expires]:
                for waiter in late:
                    self._reject_permit(waiter, wait)
            else:
                wake_at = now + wait if wait else min(waiter.expires for waiter in queue.waiters)
                if wake_at < math.inf:
                    queue.timer = self._clock.call_at(wake_at, partial(self._serve_queue, queue))
                return

    def _grant_or_reserve(self, permit: RateLimitPermit) -> None:
        if self._shared is None:
            self._grant_permit(permit)
        else:
            permit.queue.is_reserving = True
            self._reports.spawn(self._reserve_shared(permit, self._shared))

    async def _reserve_shared(self, permit: RateLimitPermit, shared: SharedLimits) -> None:
        """Reserve the queue's first permit in the shared limits.

        Permits are reserved one at a time, to keep the order.
        """
        queue = permit.queue
        reservation = await shared.reserve_tokens(queue.model, permit.tokens)
        queue.is_reserving = False
        if permit.grant_future is None or permit.grant_future.done():
            self._reports.spawn(shared.report_response(reservation, RateLimitHeaders(), refunded=True, block=0.0))
        elif reservation.wait > 0:
            permit.not_before = self._clock.time() + reservation.wait
        else:
            permit.reservation = reservation
            self._grant_permit(permit)
        self._serve_queue(queue)

    def _grant_permit(self, permit: RateLimitPermit) -> None:
        assert permit.grant_future is not None
        self.waiting_count -= 1
        permit.queue.waiters.serve_item(permit)
        permit.queue.take_permit(permit)
        permit.grant_future.set_result(None)

    def _reject_permit(self, permit: RateLimitPermit, wait: float) -> None:
        assert permit.grant_future is not None
        self.waiting_count -= 1
        permit.queue.waiters.remove_item(permit)
        permit.grant_future.set_exception(_make_rate_limit_error(wait))

    def _cancel_permit(self, permit: RateLimitPermit) -> None:
        """Undo a permit whose wait was cancelled.

        The permit is still queued, just granted, or just rejected.
        """
        assert permit.grant_future is not None
        if permit.number:
            self.on_permit_response(permit, RateLimitHeaders(), _NOT_SENT_STATUS)
        elif permit.grant_future.cancelled():
            self.waiting_count -= 1
            permit.queue.waiters.remove_item(permit)
            self._serve_queue(permit.queue)
        else:
            permit.grant_future.exception()  # else asyncio logs an unretrieved exception


def _make_rate_limit_error(wait: float) -> UpstreamRateLimited:
    seconds = max(1, math.ceil(wait))
    message = f"{UpstreamRateLimited.default_message} Try again in {seconds} seconds."
    return UpstreamRateLimited(message, retry_after=seconds)

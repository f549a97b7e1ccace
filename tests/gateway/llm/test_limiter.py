"""The rate limiter of a model server's key.

Exact limits from headers, and fairness between users.
"""

import asyncio
import heapq
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest

from gateway.domain.errors import UpstreamRateLimited
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.llm.rate_limit.token_bucket import DAY_SECONDS, parse_duration, parse_rate_limit_headers

MODEL = "openai/gpt-oss-120b"


class FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._number = count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._number), timer))
        return timer

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)

    async def advance(self, span: float) -> None:
        end = self.now + span
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if not timer.cancelled:
                timer.callback()
                await settle()
        self.now = end
        await settle()

    async def sleep(self, span: float) -> None:
        done = asyncio.get_running_loop().create_future()
        self.call_at(self.now + span, lambda: done.done() or done.set_result(None))
        await done


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(6):
        await asyncio.sleep(0)


def make_headers(
    *, limit: float = 6_000, left: float = 6_000, requests: float = 14_400, requests_left: float = 14_400
) -> dict[str, str]:
    """Make rate limit headers in Groq's format."""
    return {
        "x-ratelimit-limit-tokens": f"{limit:.0f}",
        "x-ratelimit-remaining-tokens": f"{left:.0f}",
        "x-ratelimit-reset-tokens": f"{(limit - left) / limit * 60:.6f}s",
        "x-ratelimit-limit-requests": f"{requests:.0f}",
        "x-ratelimit-remaining-requests": f"{requests_left:.0f}",
        "x-ratelimit-reset-requests": f"{(requests - requests_left) / requests * DAY_SECONDS:.6f}s",
    }


async def report_headers(
    limiter: ModelRateLimiter, headers: dict[str, str], status: int = 200, model: str = MODEL
) -> None:
    """Make one call whose response has these headers."""
    async with limiter.create_permit(model, tokens=1) as permit:
        permit.on_response(headers, status)


class Calls:
    """Calls in separate tasks, and the order of their permits."""

    def __init__(self, limiter: ModelRateLimiter) -> None:
        self._limiter = limiter
        self.served: list[str] = []
        self.rejected: list[tuple[str, UpstreamRateLimited]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def add(self, user: str, tokens: float = 100, **options: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(user, tokens, **options))
        self.tasks.append(task)
        return task

    async def _call(self, user: str, tokens: float, model: str = MODEL, deadline: float | None = None) -> None:
        try:
            async with self._limiter.create_permit(model, tokens=tokens, user=user, max_wait_seconds=deadline):
                self.served.append(user)
        except UpstreamRateLimited as error:
            self.rejected.append((user, error))


@asynccontextmanager
async def queue_calls(limiter: ModelRateLimiter) -> AsyncGenerator[Calls]:
    calls = Calls(limiter)
    try:
        yield calls
    finally:
        for task in calls.tasks:
            task.cancel()
        await asyncio.gather(*calls.tasks, return_exceptions=True)
        assert limiter.waiting_count == 0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def limiter(clock: FakeClock) -> ModelRateLimiter:
    return ModelRateLimiter(clock=clock)


# --- headers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2m59.56s", 179.56),
        ("7.66s", 7.66),
        ("172.8ms", 0.1728),
        ("1h2m3s", 3723.0),
        ("6m0s", 360.0),
        ("1d", DAY_SECONDS),
        ("90µs", 90e-6),
        ("90us", 90e-6),
        ("500ns", 5e-7),
        ("0s", 0.0),
        ("5.s", 5.0),
        (".5s", 0.5),
        (" 3s ", 3.0),
        ("120", 120.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("9d", DAY_SECONDS),
        ("999999999999999", DAY_SECONDS),
        ("9" * 500 + "s", DAY_SECONDS),
        ("9" * 500, None),
        ("-3", None),
        ("-3s", None),
        ("3 s", None),
        ("1e3", None),
        ("1_0", None),
        ("nan", None),
        ("inf", None),
        ("٣s", None),
        ("soon", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_duration_is_parsed(text: str | None, expected: float | None) -> None:
    assert parse_duration(text) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "expected"),
    [
        ("6000", "5000", "10s", (6000, 5000, 100)),
        ("6000", "0", "1m0s", (6000, 0, 100)),
        ("6000", "0", "30s", (6000, 0, 200)),  # all of it sooner than in a minute
        ("18000", "17997", "7.66s", (18000, 17997, 300)),  # Groq's own example: too little used to tell
        ("6000", "6000", "0s", (6000, 6000, 100)),
        ("6000", "3000", None, (6000, 3000, 100)),
        ("6000", "3000", "soon", (6000, 3000, 100)),
        ("6000", "3000", "0s", (6000, 3000, 100)),
        ("6000", "-40", "60.4s", (6000, -40, 100)),
        ("6000", "7000", "0s", (6000, 6000, 100)),
        (" 6000 ", "5000.5", "9.995s", (6000, 5000.5, 100)),
        ("0", "0", "0s", None),
        ("-1", "-1", "0s", None),
        ("6000", None, "3s", None),
        (None, "5000", "3s", None),
        ("6000", "", "3s", None),
        ("6,000", "5000", "3s", None),
        ("unlimited", "unlimited", "0s", None),
        ("nan", "inf", "0s", None),
    ],
)
def test_limit_headers_are_parsed(
    limit: str | None, remaining: str | None, reset: str | None, expected: tuple[float, float, float] | None
) -> None:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    headers = {f"x-ratelimit-{name}-tokens": value for name, value in values.items() if value is not None}
    tokens = parse_rate_limit_headers(headers).tokens
    parsed = None if tokens is None else (tokens.limit, tokens.remaining, tokens.rate)
    assert parsed == (None if expected is None else pytest.approx(expected))


def test_request_limit_refills_over_a_day() -> None:
    reading = parse_rate_limit_headers(
        {"x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "14370"}
    )
    assert reading.requests is not None
    assert reading.requests.rate == pytest.approx(1 / 6)
    assert (reading.tokens, reading.retry_after) == (None, None)


# --- what is known


async def test_calls_are_unlimited_until_limits_are_known(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    async with queue_calls(limiter) as calls:
        for _ in range(500):
            calls.add("ann", tokens=1_000_000)
        await settle()
        assert len(calls.served) == 500
    assert clock.pending == 0


async def test_tokens_are_granted_up_to_the_limit_exactly(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=1_000))
    async with queue_calls(limiter) as calls:
        for _ in range(30):
            calls.add("ann")
        await settle()
        assert len(calls.served) == 10
        await clock.advance(0.99)
        assert len(calls.served) == 10
        await clock.advance(0.011)  # 100 tokens come back in a second
        assert len(calls.served) == 11
        assert clock.pending == 1
        await clock.advance(19)
        assert len(calls.served) == 30
    assert clock.pending == 0


async def test_requests_per_day_are_limited(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(requests_left=2))
    async with queue_calls(limiter) as calls:
        for _ in range(4):
            calls.add("ann", tokens=1)
        await clock.advance(5.9)
        assert len(calls.served) == 2
        await clock.advance(0.2)
        assert len(calls.served) == 3
        await clock.advance(6)
        assert len(calls.served) == 4


async def test_models_have_their_own_limits(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        calls.add("ann")
        calls.add("ann", model="openai/gpt-oss-20b")
        await settle()
        assert calls.served == ["ann"]
        assert limiter.waiting_count == 1


async def test_call_larger_than_the_limit_starts_when_the_bucket_is_full(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=5_000))
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=50_000)
        await clock.advance(9.9)
        assert calls.served == []
        await clock.advance(0.2)
        assert calls.served == ["ann"]


async def test_response_does_not_refund_reservations_of_calls_in_flight(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    async with limiter.create_permit(MODEL, tokens=400), limiter.create_permit(MODEL, tokens=500) as second:
        second.on_response(make_headers(left=1_000), 200)
        async with queue_calls(limiter) as calls:
            calls.add("ann", tokens=600)
            calls.add("ann", tokens=100)
            await settle()
            assert calls.served == ["ann"]
            await clock.advance(1.1)
            assert calls.served == ["ann", "ann"]


async def test_late_response_of_an_older_call_does_not_raise_the_estimate(limiter: ModelRateLimiter) -> None:
    async with limiter.create_permit(MODEL, tokens=100) as older, limiter.create_permit(MODEL, tokens=100) as newer:
        newer.on_response(make_headers(left=150), 200)
        older.on_response(make_headers(left=5_900), 200)
        async with queue_calls(limiter) as calls:
            calls.add("ann", tokens=100)
            await settle()
            assert calls.served == []


async def test_headers_for_the_only_call_in_flight_replace_the_estimate(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=0))
    await report_headers_without_queue(limiter)
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=4_000)
        await settle()
        assert calls.served == ["ann"]


async def report_headers_without_queue(limiter: ModelRateLimiter) -> None:
    """Report headers with a permit that bypasses the queue."""
    permit = limiter.create_permit(MODEL, tokens=1)
    permit.queue.take_permit(permit)
    permit.on_response(make_headers(left=4_000), 200)


async def test_corrected_estimate_frees_capacity_immediately(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=1_000))
    async with limiter.create_permit(MODEL, tokens=1_000) as permit, queue_calls(limiter) as calls:
        permit.on_response({}, 200)
        calls.add("ann", tokens=600)
        await settle()
        assert calls.served == []
        permit.on_usage(400)
        await settle()
        assert calls.served == ["ann"]
        assert clock.pending == 0


async def test_usage_beyond_the_estimate_delays_later_calls(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=1_000))
    async with limiter.create_permit(MODEL, tokens=100) as permit:
        permit.on_usage(1_000)
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=100)
        await clock.advance(0.9)
        assert calls.served == []
        await clock.advance(0.2)
        assert calls.served == ["ann"]


# --- refusals


async def test_429_without_headers_blocks_the_model_longer_each_time(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        await report_headers(limiter, {}, 429)
        async with queue_calls(limiter) as calls:
            calls.add("ann")
            await clock.advance(pause - 0.01)
            assert calls.served == []
        await clock.advance(0.02)
    await report_headers(limiter, {})
    await report_headers(limiter, {}, 429)
    async with queue_calls(limiter) as calls:
        calls.add("ann")
        await clock.advance(1.01)
        assert calls.served == ["ann"]


async def test_429_blocks_for_retry_after(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, {"retry-after": "17.4"}, 429)
    async with queue_calls(limiter) as calls:
        calls.add("ann")
        calls.add("ann", model="other")
        await clock.advance(17.3)
        assert len(calls.served) == 1
        await clock.advance(0.2)
        assert len(calls.served) == 2


async def test_calls_rejected_together_count_as_one_rejection(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    permits = [limiter.create_permit(MODEL, tokens=10) for _ in range(20)]
    for permit in permits:
        await permit.__aenter__()
    for permit in permits:
        permit.on_response({}, 429)
        await permit.__aexit__(None, None, None)
    async with queue_calls(limiter) as calls:
        calls.add("ann")
        await clock.advance(1.01)
        assert calls.served == ["ann"]


async def test_one_call_probes_the_model_after_a_rejection(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, {}, 429)
    async with queue_calls(limiter) as calls:
        probe = limiter.create_permit(MODEL, tokens=10, user="probe")
        entering = asyncio.create_task(probe.__aenter__())
        await settle()
        for _ in range(5):
            calls.add("ann")
        await clock.advance(1.5)
        await entering
        assert calls.served == []
        probe.on_response({}, 200)
        await settle()
        assert len(calls.served) == 5
        await probe.__aexit__(None, None, None)


async def test_failed_call_uses_no_tokens(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=1_000))
    async with limiter.create_permit(MODEL, tokens=1_000) as permit:
        permit.on_response({}, 503)
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=1_000)
        await settle()
        assert calls.served == ["ann"]


async def test_call_without_a_response_frees_its_reservation(limiter: ModelRateLimiter) -> None:
    with pytest.raises(ConnectionError):
        async with limiter.create_permit(MODEL, tokens=900):
            raise ConnectionError
    await report_headers(limiter, make_headers(left=1_000))
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=1_000)
        await settle()
        assert calls.served == ["ann"]


# --- deadlines and bounds


async def test_call_whose_predicted_wait_exceeds_the_deadline_is_rejected_immediately(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=500)
        await settle()
        calls.add("bob", tokens=500, deadline=9.9)  # 1,000 tokens are 10 seconds
        calls.add("cat", tokens=500, deadline=10.1)
        await settle()
        ((user, error),) = calls.rejected
        assert (user, error.status, error.code, error.retry_after) == ("bob", 429, "upstream_rate_limited", 10)
        assert "10 seconds" in error.message
        await clock.advance(10)
        assert calls.served == ["ann", "cat"]


async def test_predicted_wait_follows_the_fair_order(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for _ in range(100):
            calls.add("ann")
        await settle()
        calls.add("bob", deadline=3)
        calls.add("ann", deadline=30)
        await settle()
        assert [user for user, _ in calls.rejected] == ["ann"]


async def test_waiting_call_is_rejected_when_its_wait_becomes_too_long(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=0))
    running = limiter.create_permit(MODEL, tokens=1)
    running.queue.take_permit(running)
    async with queue_calls(limiter) as calls:
        calls.add("ann", deadline=20)
        calls.add("bob", deadline=500)
        await settle()
        running.on_response({"retry-after": "300"}, 429)
        await settle()
        assert [(user, error.retry_after) for user, error in calls.rejected] == [("ann", 300)]
        await clock.advance(301)
        assert calls.served == ["bob"]


async def test_wait_for_the_probe_ends_at_the_deadline(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, {"retry-after": "1"}, 429)
    await clock.advance(1)
    async with limiter.create_permit(MODEL, tokens=1), queue_calls(limiter) as calls:
        calls.add("ann", deadline=5)
        await clock.advance(4.9)
        assert calls.rejected == []
        await clock.advance(0.2)
        assert len(calls.rejected) == 1


async def test_queue_is_bounded(clock: FakeClock) -> None:
    limiter = ModelRateLimiter(clock=clock, max_waiting=3)
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for user in "abcde":
            calls.add(user)
        await settle()
        assert [user for user, _ in calls.rejected] == ["d", "e"]
        assert all((error.retry_after or 0) >= 1 for _, error in calls.rejected)
        assert limiter.waiting_count == 3
        await clock.advance(10)
        assert calls.served == ["a", "b", "c"]


async def test_idle_models_and_users_are_forgotten(clock: FakeClock) -> None:
    limiter = ModelRateLimiter(clock=clock, max_models=10)
    for number in range(100):
        await report_headers(limiter, make_headers(left=5_000), model=f"model-{number}")
    assert len(limiter._queues) == 10
    queue = limiter.create_permit(MODEL, tokens=1).queue.waiters
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for number in range(50):
            calls.add(f"user-{number}")
        await settle()
        assert len(queue._user_queues) == 50
        await clock.advance(60)
        assert len(calls.served) == 50
    assert not queue


# --- fairness


async def test_user_with_one_call_is_served_second_behind_a_user_with_100(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for _ in range(100):
            calls.add("ann")
        calls.add("bob")
        await clock.advance(3)
        assert calls.served[:3] == ["ann", "bob", "ann"]


async def test_new_user_is_served_before_older_calls_of_a_busy_user(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for _ in range(100):
            calls.add("ann")
        await clock.advance(20)
        calls.add("bob")
        await clock.advance(2.01)
        assert calls.served == ["ann"] * 21 + ["bob"]


async def test_fairness_counts_tokens_not_requests(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for _ in range(10):
            calls.add("ann", tokens=400)
            for _ in range(4):
                calls.add("bob", tokens=100)
        await clock.advance(40)
        assert calls.served.count("ann") == 5
        assert calls.served.count("bob") == 20


async def test_users_get_capacity_in_proportion_to_their_weights(clock: FakeClock) -> None:
    limiter = ModelRateLimiter(clock=clock, weights={"ann": 3})
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        for user in ("ann", "bob"):
            for _ in range(40):
                calls.add(user)
        await clock.advance(40)
        assert calls.served.count("ann") == 30
        assert calls.served.count("bob") == 10


async def test_large_call_is_not_starved_by_small_ones(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        calls.add("ann", tokens=1_000)
        for _ in range(50):
            calls.add("bob", tokens=100)
        await clock.advance(21)
        assert "ann" in calls.served


# --- cancellation


async def test_cancelled_calls_do_not_affect_the_queue(limiter: ModelRateLimiter, clock: FakeClock) -> None:
    await report_headers(limiter, make_headers(left=0))
    async with queue_calls(limiter) as calls:
        cancelled = [calls.add("ann", tokens=1_000) for _ in range(10)]
        await settle()
        calls.add("bob")
        calls.add("ann")
        for task in cancelled:
            task.cancel()
        await clock.advance(2)
        assert calls.served == ["ann", "bob"]
    assert clock.pending == 0


async def test_next_call_starts_when_the_first_is_cancelled(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=500))
    async with queue_calls(limiter) as calls:
        first = calls.add("ann", tokens=5_000)
        await settle()
        calls.add("ann", tokens=500)
        await settle()
        assert calls.served == []
        first.cancel()
        await settle()
        assert calls.served == ["ann"]


async def test_call_cancelled_while_it_is_granted_returns_its_tokens(
    limiter: ModelRateLimiter, clock: FakeClock
) -> None:
    await report_headers(limiter, make_headers(left=1_000))
    holder = limiter.create_permit(MODEL, tokens=1_000)
    await holder.__aenter__()
    async with queue_calls(limiter) as calls:
        first = calls.add("ann", tokens=600)
        await settle()
        calls.add("bob", tokens=600)
        await settle()
        holder.on_usage(400)
        first.cancel()
        await settle()
        assert calls.served == ["bob"]


async def test_call_cancelled_while_it_is_rejected_raises_no_error(limiter: ModelRateLimiter) -> None:
    await report_headers(limiter, make_headers(left=0))
    running = limiter.create_permit(MODEL, tokens=1)
    running.queue.take_permit(running)
    async with queue_calls(limiter) as calls:
        task = calls.add("ann", deadline=5)
        await settle()
        running.on_response({"retry-after": "300"}, 429)
        task.cancel()
        await settle()
        assert task.cancelled()
        assert calls.rejected == []


# --- against a server


class Server:
    """Model server that refills its limit evenly, like Groq."""

    def __init__(self, clock: FakeClock, limit: float) -> None:
        self._clock = clock
        self._limit = self.level = limit
        self._at = clock.now
        self.rejected = 0

    def admit(self, tokens: float) -> tuple[dict[str, str], int]:
        self.level = min(self._limit, self.level + self._limit / 60 * (self._clock.now - self._at))
        self._at = self._clock.now
        if tokens > self.level + 0.01:
            self.rejected += 1
            return make_headers(limit=self._limit, left=math.floor(self.level)) | {"retry-after": "1"}, 429
        self.level -= tokens
        return make_headers(limit=self._limit, left=math.floor(self.level)), 200


@pytest.mark.parametrize("seed", range(10))
async def test_server_rejects_no_call_and_is_fully_used(limiter: ModelRateLimiter, clock: FakeClock, seed: int) -> None:
    """The order of calls and of responses is random."""
    chance, server, total = random.Random(seed), Server(clock, 60_000), 0

    async def call(user: str) -> None:
        nonlocal total
        async with limiter.create_permit(MODEL, tokens=(tokens := chance.randint(1, 4_000)), user=user) as permit:
            await clock.sleep(chance.random())
            headers, status = server.admit(tokens)
            await clock.sleep(chance.random() * 3)
            permit.on_response(headers, status)
            await clock.sleep(chance.random() * 5)
            permit.on_usage(tokens)
            total += tokens

    first = asyncio.create_task(call("first"))
    await clock.advance(10)
    await first
    calls = [asyncio.create_task(call(f"user-{number % 7}")) for number in range(200)]
    await clock.advance(300)
    assert server.rejected == 0
    assert total > 0.95 * min(200 * 2_000, 300 * 1_000)
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert limiter.waiting_count == 0

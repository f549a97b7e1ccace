"""Rate limits that several gateways share through a real Redis.

Also their behaviour without Redis.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.domain.errors import UpstreamRateLimited
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.llm.rate_limit.redis import RedisLimits
from tests.eventually import eventually
from tests.gateway.llm.test_limiter import FakeClock
from tests.redis_server import RedisServer, serve_silently

MODEL = "openai/gpt-oss-120b"


@pytest.fixture
def redis(tmp_path: Path) -> Generator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def replicas(redis: RedisServer) -> AsyncGenerator[list[ModelRateLimiter]]:
    async with two_replicas(redis.url, timeout_seconds=30.0) as limiters:
        yield limiters


@asynccontextmanager
async def two_replicas(url: str, **options: float) -> AsyncGenerator[list[ModelRateLimiter]]:
    shared = [RedisLimits(url, "gsk_secret", **options) for _ in range(2)]
    limiters = [ModelRateLimiter(shared=one) for one in shared]
    yield limiters
    for limiter, one in zip(limiters, shared, strict=True):
        await limiter.close()
        await one.close()
        assert limiter.waiting_count == 0


def make_headers(left: float, *, requests_left: float = 144) -> dict[str, str]:
    """Make headers of limits that hardly refill in a test.

    They refill by 1 token per second and 1 request in 10 minutes.
    """
    return {
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": f"{left:.0f}",
        "x-ratelimit-reset-tokens": f"{10_000 - left:.0f}s",
        "x-ratelimit-limit-requests": "144",
        "x-ratelimit-remaining-requests": f"{requests_left:.0f}",
    }


async def report_headers(limiter: ModelRateLimiter, headers: dict[str, str], status: int = 200) -> None:
    async with limiter.create_permit(MODEL, tokens=1) as permit:
        permit.on_response(headers, status)
    await limiter.close()


async def try_acquire(limiter: ModelRateLimiter, stack: AsyncExitStack, tokens: float, **options: Any) -> bool:
    try:
        await stack.enter_async_context(limiter.create_permit(MODEL, tokens=tokens, **options))
    except UpstreamRateLimited:
        return False
    return True


async def test_200_reservations_of_two_gateways_never_exceed_the_shared_tokens(
    replicas: list[ModelRateLimiter],
) -> None:
    await report_headers(replicas[0], make_headers(5_000))
    async with AsyncExitStack() as stack:
        calls = (
            try_acquire(replicas[number % 2], stack, 100, max_wait_seconds=30.0, user=f"u{number % 5}")
            for number in range(200)
        )
        assert sum(await asyncio.gather(*calls)) == 50


async def test_200_reservations_of_two_gateways_never_exceed_the_shared_requests(
    replicas: list[ModelRateLimiter],
) -> None:
    await report_headers(replicas[1], make_headers(10_000, requests_left=40))
    async with AsyncExitStack() as stack:
        calls = (try_acquire(replicas[number % 2], stack, 1, max_wait_seconds=30.0) for number in range(200))
        assert sum(await asyncio.gather(*calls)) == 40


async def test_calls_are_unlimited_until_limits_are_known(replicas: list[ModelRateLimiter]) -> None:
    async with AsyncExitStack() as stack:
        calls = (try_acquire(replicas[number % 2], stack, 1_000_000, max_wait_seconds=30.0) for number in range(200))
        assert all(await asyncio.gather(*calls))


async def test_response_at_one_gateway_keeps_reservations_of_the_other(replicas: list[ModelRateLimiter]) -> None:
    async with replicas[0].create_permit(MODEL, tokens=4_000), AsyncExitStack() as stack:
        await report_headers(replicas[1], make_headers(5_000))
        assert not await try_acquire(replicas[1], stack, 1_100, max_wait_seconds=30.0)
        assert await try_acquire(replicas[1], stack, 900, max_wait_seconds=30.0)


async def test_corrected_estimate_at_one_gateway_frees_capacity_for_the_other(replicas: list[ModelRateLimiter]) -> None:
    await report_headers(replicas[0], make_headers(5_000))
    async with replicas[0].create_permit(MODEL, tokens=4_000) as permit, AsyncExitStack() as stack:
        assert not await try_acquire(replicas[1], stack, 2_000, max_wait_seconds=30.0)
        permit.on_response({}, 200)
        permit.on_usage(1_000)
        await replicas[0].close()
        assert await try_acquire(replicas[1], stack, 2_000, max_wait_seconds=30.0)


async def test_rejection_at_one_gateway_blocks_the_other(replicas: list[ModelRateLimiter]) -> None:
    await report_headers(replicas[0], {"retry-after": "600"}, 429)
    async with AsyncExitStack() as stack:
        assert not await try_acquire(replicas[1], stack, 1, max_wait_seconds=30.0)


async def test_block_of_another_gateway_ends_after_retry_after(
    redis: RedisServer, replicas: list[ModelRateLimiter]
) -> None:
    await report_headers(replicas[0], {"retry-after": "600"}, 429)
    clock = FakeClock()
    blocked = ModelRateLimiter(shared=RedisLimits(redis.url, "gsk_secret", timeout_seconds=30.0), clock=clock)
    async with Redis(port=redis.port) as client, AsyncExitStack() as stack:
        [key] = await client.keys("agent_gateway:upstream:*")
        block_end, at = map(float, await client.hmget(key, "blocked", "at"))
        assert block_end - at == pytest.approx(600)
        call = asyncio.create_task(try_acquire(blocked, stack, 1))
        await eventually(lambda: clock.pending)  # Redis told it how long to wait
        await clock.advance(590)
        assert not call.done()
        await client.hset(key, "blocked", block_end - 600)  # the clock of Redis cannot be set
        await clock.advance(20)
        async with asyncio.timeout(30):
            assert await call
    await blocked.close()


async def test_cancelled_reservation_returns_its_tokens(replicas: list[ModelRateLimiter]) -> None:
    await report_headers(replicas[0], make_headers(5_000))
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(try_acquire(replicas[0], stack, 4_000)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while len(replicas[0]._reports):
            await replicas[0].close()
        assert await try_acquire(replicas[1], stack, 4_990, max_wait_seconds=30.0)


async def test_each_key_has_its_own_limits(redis: RedisServer, replicas: list[ModelRateLimiter]) -> None:
    await report_headers(replicas[0], make_headers(0))
    other = RedisLimits(redis.url, "gsk_other")
    limiter = ModelRateLimiter(shared=other)
    async with AsyncExitStack() as stack:
        assert await try_acquire(limiter, stack, 5_000, max_wait_seconds=30.0)
    await limiter.close()
    await other.close()


async def test_gateway_without_redis_enforces_observed_limits_and_logs_it_once(redis: RedisServer) -> None:
    async with two_replicas(redis.url, timeout_seconds=30.0, backoff_seconds=0.0) as replicas:
        for limiter in replicas:
            await report_headers(limiter, make_headers(5_000))
        with capture_logs() as logs:
            async with AsyncExitStack() as stack:
                assert await try_acquire(replicas[0], stack, 1_000, max_wait_seconds=30.0)
                redis.stop()
                calls = (try_acquire(replicas[0], stack, 100, max_wait_seconds=30.0) for _ in range(100))
                assert sum(await asyncio.gather(*calls)) in (39, 40)
            await replicas[0].close()
            assert [entry["event"] for entry in logs] == ["model_limits_without_redis"]
            redis.start()
            async with AsyncExitStack() as stack:
                assert await try_acquire(replicas[0], stack, 1, max_wait_seconds=30.0)
            assert [entry["event"] for entry in logs] == ["model_limits_without_redis", "model_limits_with_redis_again"]


async def test_redis_that_hangs_after_it_answered_delays_only_one_call(redis: RedisServer) -> None:
    shared = RedisLimits(redis.url, "gsk_secret", timeout_seconds=30.0, backoff_seconds=600.0)
    limiter = ModelRateLimiter(shared=shared)
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        permit = await stack.enter_async_context(limiter.create_permit(MODEL, tokens=100))
        assert permit.reservation is not None
        assert permit.reservation.number == 1  # of Redis
        redis.freeze()
        shared._redis._timeout_seconds = 0.2
        with capture_logs() as logs:
            assert await try_acquire(limiter, stack, 100)
            assert [entry["error"] for entry in logs] == ["TimeoutError"]
        shared._redis._timeout_seconds = 3600.0  # a call that asks Redis again would wait for it
        for _ in range(4):
            assert await try_acquire(limiter, stack, 100)
        redis.stop()
    await limiter.close()
    await shared.close()


async def test_hanging_redis_delays_only_one_call() -> None:
    async with (
        serve_silently() as (port, connections),
        two_replicas(f"redis://127.0.0.1:{port}/0", timeout_seconds=0.2, backoff_seconds=600.0) as replicas,
        AsyncExitStack() as stack,
    ):
        assert await try_acquire(replicas[0], stack, 100, max_wait_seconds=30.0)
        count = len(connections)
        for _ in range(4):
            assert await try_acquire(replicas[0], stack, 100, max_wait_seconds=30.0)
        assert len(connections) == count > 0

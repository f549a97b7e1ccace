"""The limit on a key's running turns."""

from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from gateway.api.rate_limit.stream_slots import StreamLimiter
from gateway.common.redis import SharedRedis
from gateway.domain.errors import TooManyStreams
from gateway.domain.messages import KeyLimits
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.redis_server import RedisServer
from tests.stack import Gateway, serve_gateway

BACKGROUND = {"input": "forever", "background": True}
STALL = Fault(kind="stall", match="forever", after_chunks=1, times=99)


@pytest.fixture
def redis(tmp_path: Path) -> Generator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def serve_workers(
    number: int, database_url: str, simulator: Simulator, tools_url: str, **settings: Any
) -> AsyncGenerator[tuple[list[Gateway], dict[str, str]]]:
    """Serve gateways on one database.

    Yields them, and the headers of a key for one stream.
    """
    simulator.faults.add_faults(STALL)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(serve_gateway(database_url, simulator, tools_url, **settings))
            for _ in range(number)
        ]
        yield workers, await Keyring(workers[0]).create_key("ada", limits=KeyLimits(streams=1))


async def test_thirty_background_turns_of_a_key_for_one_run_one_at_a_time(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_workers(1, database_url, simulator, tools_url) as ([gateway], headers):
        replies = [await gateway.post("/v1/responses", BACKGROUND, headers=headers) for _ in range(30)]
        assert Counter(reply.status for reply in replies) == {200: 1, 429: 29}
        assert {reply.body["error"]["x_gateway"]["code"] for reply in replies[1:]} == {"too_many_streams"}
        assert gateway.state.turn_service.running_turns == 1
        path = f"/v1/responses/{replies[0].body['id']}"
        assert (await gateway.get(path, headers=headers)).status == 200  # requests are counted apart
        assert (await gateway.post(f"{path}/cancel", {}, headers=headers)).status == 200

        async def is_accepted() -> bool:
            return (await gateway.post("/v1/responses", {"input": "hi"}, headers=headers)).status == 200

        await eventually(is_accepted)


async def test_turn_that_outlives_its_client_keeps_its_slot(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_workers(1, database_url, simulator, tools_url) as ([gateway], headers):
        body = {"messages": [{"role": "user", "content": "forever"}], "on_disconnect": "continue"}
        url = f"{gateway.base_url}/api/v1/chat/stream"
        response = await gateway.session.post(url, json=body, headers=headers)
        await response.content.readany()
        response.close()

        async def has_request_slot() -> bool:  # the closed stream no longer counts, its turn does
            path = f"/api/v1/turns/{response.headers['X-Turn-Id']}/events"
            async with gateway.session.get(f"{gateway.base_url}{path}", headers=headers) as follower:
                return follower.status == 200

        await eventually(has_request_slot)

        async def is_refused_for_its_turn() -> bool:
            reply = await gateway.post("/api/v1/chat", body, headers=headers)
            return reply.status == 429 and gateway.state.turn_service.running_turns == 1

        await eventually(is_refused_for_its_turn)
        async with connect_mcp_client(gateway, headers) as client:
            result = await client.call_tool("ask_agent", {"prompt": "hello"})
        assert result.meta is not None
        assert result.meta["mcp-agent-gateway/error"]["code"] == "too_many_streams"


async def test_workers_with_redis_share_the_count_of_background_turns(
    database_url: str, simulator: Simulator, tools_url: str, redis: RedisServer
) -> None:
    options = {"redis_url": SecretStr(redis.url), "redis_timeout_seconds": 30}
    async with serve_workers(2, database_url, simulator, tools_url, **options) as (workers, headers):
        replies = [await workers[n % 2].post("/v1/responses", BACKGROUND, headers=headers) for n in range(10)]
        assert Counter(reply.status for reply in replies) == {200: 1, 429: 9}


async def test_turns_resumed_by_answers_wait_for_a_free_slot(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_workers(1, database_url, simulator, tools_url) as ([gateway], headers):
        body = {"messages": [{"role": "user", "content": "Add a task to rest"}], "approval": "always"}
        waiting = [(await gateway.post("/api/v1/chat", body, headers=headers)).body for _ in range(4)]
        await simulator.wait_until(lambda s: s.open_streams == 0)
        simulator.pause_streams()
        for turn in waiting:
            answer = {"input_id": turn["inputs"][0]["input_id"], "action": "accept"}
            path = f"/api/v1/turns/{turn['turn_id']}/input"
            assert (await gateway.post(path, answer, headers=headers)).status == 200
        await eventually(lambda: gateway.state.turn_service.running_turns == 4)
        await simulator.wait_until(lambda s: s.open_streams == 1)
        requests = len(simulator.requests)
        assert (await gateway.post("/api/v1/chat", body, headers=headers)).status == 429
        assert (len(simulator.requests), simulator.open_streams) == (requests, 1)
        cancelled = await gateway.post(f"/api/v1/turns/{waiting[3]['turn_id']}/cancel", {}, headers=headers)
        assert cancelled.status == 200
        simulator.resume_streams()

        async def get_statuses() -> bool:
            paths = [f"/api/v1/turns/{turn['turn_id']}" for turn in waiting]
            statuses = [(await gateway.get(path, headers=headers)).body["status"] for path in paths]
            return Counter(statuses) == {"completed": 3, "cancelled": 1} or Counter(statuses) == {"completed": 4}

        await eventually(get_statuses)


async def test_slot_of_a_killed_worker_moves_to_the_worker_that_continues_the_turn(redis: RedisServer) -> None:
    client = Redis(port=redis.port)
    shared = SharedRedis(client, timeout_seconds=30)
    killed, heir, other = (StreamLimiter(shared, lease_seconds=600, renew_seconds=3600) for _ in range(3))
    turn, second_turn = uuid4().hex, uuid4().hex
    await killed.acquire_slot("ada", 1, name=turn)
    with pytest.raises(TooManyStreams):
        await other.acquire_slot("ada", 1, name=second_turn)
    slot = await heir.wait_for_slot("ada", 1, name=turn)  # at once, although the lease has not expired
    with pytest.raises(TooManyStreams):
        await other.acquire_slot("ada", 1, name=second_turn)
    slot.release()
    slot.release()
    (await other.wait_for_slot("ada", 1, name=second_turn)).release()
    for limiter in (killed, heir, other):
        await limiter.close()
    await client.aclose()

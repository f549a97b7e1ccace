"""Tests of requests that an SDK sends again.

They are the turn of the first one.
"""

import asyncio
from functools import partial
from typing import Any

import asyncpg
import openai
import pytest

from gateway.simulator.faults import Fault
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, JsonObject, Reply

pytestmark = pytest.mark.faults

BODIES: dict[str, tuple[str, JsonObject]] = {
    "chat completions": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Add a task to buy milk"}]}),
    "responses": ("/v1/responses", {"input": "Add a task to buy milk"}),
    "messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "Add a task to buy milk"}], "max_tokens": 99},
    ),
    "native": ("/api/v1/chat", {"messages": [{"role": "user", "content": "Add a task to buy milk"}]}),
}
PATH, BODY = BODIES["chat completions"]


async def send(gateway: Gateway, attempt: Any, path: str = PATH, body: JsonObject = BODY, **headers: str) -> Reply:
    return await gateway.post(path, body, headers={"X-Stainless-Retry-Count": str(attempt), **headers})


async def count_turns(db: asyncpg.Connection) -> int:
    return await db.fetchval("SELECT count(*) FROM turns")


@pytest.mark.parametrize("name", BODIES)
async def test_retry_of_an_answered_request_is_the_same_turn(
    gateway: Gateway, db: asyncpg.Connection, name: str
) -> None:
    path, body = BODIES[name]
    first, second = await send(gateway, 0, path, body), await send(gateway, 1, path, body)
    assert (first.status, second.status) == (200, 200)
    assert first.headers["X-Turn-Id"] == second.headers["X-Turn-Id"]
    assert await count_turns(db) == 1
    assert await db.fetchval("SELECT count(*) FROM tool_calls") == 1


async def test_first_request_needs_no_header(gateway: Gateway, db: asyncpg.Connection) -> None:
    first = await gateway.post(PATH, BODY)
    assert (await send(gateway, 2)).headers["X-Turn-Id"] == first.headers["X-Turn-Id"]
    assert await count_turns(db) == 1


@pytest.mark.parametrize("attempt", [0, "00", "", "-1", "one", "1.5", "9" * 200])
async def test_request_that_is_no_retry_starts_a_turn(gateway: Gateway, db: asyncpg.Connection, attempt: Any) -> None:
    await send(gateway, 0)
    assert (await send(gateway, attempt)).status == 200
    assert await count_turns(db) == 2


async def test_other_path_body_or_caller_starts_a_turn(
    keyring: Keyring, gateway: Gateway, db: asyncpg.Connection
) -> None:
    await keyring.create_key("ada")
    other_key = (await keyring.gateway.state.keys.create_key(_make_key("ada"), by="test"))[1]
    await send(gateway, 0, **keyring.headers("ada"))
    turns = [(await send(gateway, 1, **keyring.headers("ada"))).headers["X-Turn-Id"]]
    turns.append((await send(gateway, 1, **{"X-API-Key": other_key})).headers["X-Turn-Id"])
    turns.append((await send(gateway, 1, **keyring.headers("root"))).headers["X-Turn-Id"])
    turns.append((await send(gateway, 1, "/openai" + PATH, **keyring.headers("ada"))).headers["X-Turn-Id"])
    turns.append((await send(gateway, 1, body=BODY | {"seed": 1}, **keyring.headers("ada"))).headers["X-Turn-Id"])
    assert len(set(turns)) == len(turns) == await count_turns(db)


def _make_key(owner: str) -> Any:
    from gateway.store.api_keys import NewKey

    return NewKey(owner)


async def test_retry_after_two_minutes_starts_a_turn(gateway: Gateway, db: asyncpg.Connection) -> None:
    await send(gateway, 0)
    await db.execute("UPDATE turns SET completed_at = completed_at - interval '60 seconds'")
    await send(gateway, 1)
    assert await count_turns(db) == 1
    await db.execute("UPDATE turns SET completed_at = completed_at - interval '65 seconds'")
    await send(gateway, 1)
    assert await count_turns(db) == 2


async def test_retry_of_a_failure_without_tool_calls_tries_again(gateway: Gateway, db: asyncpg.Connection) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=400, body={"error": {"message": "no"}}))
    assert (await send(gateway, 0)).status == 400
    assert (await send(gateway, 1)).status == 200
    assert await count_turns(db) == 2


async def test_retry_of_a_failure_after_tool_calls_runs_none_again(gateway: Gateway, db: asyncpg.Connection) -> None:
    call = {"name": "add_task", "arguments": {"title": "milk"}}
    gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[call]),
        Fault(kind="status", status=400, skip=1, times=9, body={"error": {"message": "no"}}),
    )
    first, second = await send(gateway, 0), await send(gateway, 1)
    assert (first.status, second.status) == (400, 400)
    assert first.headers["X-Turn-Id"] == second.headers["X-Turn-Id"]
    assert len(gateway.simulator.requests) == 2
    assert await db.fetchval("SELECT count(*) FROM tool_calls WHERE tool = 'add_task'") == 1


async def test_retry_at_another_worker_follows_the_running_turn(workers: list[Gateway], db: asyncpg.Connection) -> None:
    body = {"messages": [{"role": "user", "content": "lorem " * 60}], "x_gateway": {"tools": "none"}}
    first = asyncio.create_task(send(workers[0], 0, body=body))
    await eventually(lambda: len(workers[0].simulator.requests) > 0)
    await eventually(partial(count_turns, db))
    second = await send(workers[1], 1, body=body)
    assert second.body["choices"] == (await first).body["choices"]
    assert (await send(workers[1], 2, body=body)).headers["X-Turn-Id"] == second.headers["X-Turn-Id"]
    assert await count_turns(db) == 1


SLOW = {"messages": [{"role": "user", "content": "lorem " * 200}], "x_gateway": {"tools": "none"}}


@pytest.mark.parametrize("stream", [False, True])
async def test_retry_of_an_sdk_that_timed_out_gets_the_answer_of_the_turn(
    gateway: Gateway, db: asyncpg.Connection, stream: bool
) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="slow_first_token", seconds=1.5))
    sdk = openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", timeout=1.0, max_retries=5)
    async with sdk:
        request = sdk.chat.completions.create(
            model="openai/gpt-oss-120b", messages=[{"role": "user", "content": "Hello."}], stream=stream
        )
        answer = await request
        if isinstance(answer, openai.AsyncStream):
            assert [chunk async for chunk in answer][-1].choices[0].finish_reason == "stop"
        else:
            assert answer.choices[0].finish_reason == "stop"
    assert len(gateway.simulator.requests) == await count_turns(db) == 1


async def test_retry_at_another_worker_keeps_the_turn_that_its_client_left(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    first = asyncio.create_task(send(workers[0], 0, body=SLOW))
    await eventually(partial(count_turns, db))
    first.cancel()
    second = await send(workers[1], 1, body=SLOW)
    assert (second.status, second.body["choices"][0]["finish_reason"]) == (200, "stop")
    assert await count_turns(db) == 1


async def test_turn_of_an_sdk_that_left_for_good_is_cancelled(gateway: Gateway, db: asyncpg.Connection) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="slow_first_token", seconds=30.0))
    first = asyncio.create_task(send(gateway, 0))
    await eventually(partial(count_turns, db))
    first.cancel()
    await eventually(lambda: db.fetchval("SELECT status = 'cancelled' FROM turns"))


async def test_turn_goes_on_while_its_retry_listens(workers: list[Gateway], db: asyncpg.Connection) -> None:
    gateway = workers[0]
    body = {"messages": [{"role": "user", "content": "lorem " * 60}], "stream": True, "x_gateway": {"tools": "none"}}
    options = {"json": body, "headers": {"X-Stainless-Retry-Count": "0"}}
    async with gateway.session.post(f"{gateway.base_url}{PATH}", **options) as first:
        await first.content.readline()
        again = gateway.session.post(f"{gateway.base_url}{PATH}", json=body, headers={"X-Stainless-Retry-Count": "1"})
        async with again as second:
            await second.content.readline()
            first.close()
            text = (await second.read()).decode()
    assert text.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"stop"' in text
    assert await count_turns(db) == 1

"""Order of the turns and requests of a conversation, over two workers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

SKEW_MS = 3_000


def set_clock_back(gateway: Gateway) -> None:
    """Let a worker create its turn ids with a slow clock.

    The clock is `SKEW_MS` behind.
    """

    def create_late_turn_id() -> UUID:
        return UUID(int=uuid7().int - (SKEW_MS << 80))  # the first 48 bits are the time in milliseconds

    runner = gateway.state.turn_service._runner
    runner._config = replace(runner._config, create_turn_id=create_late_turn_id)


async def start_conversation(gateway: Gateway, prompt: str) -> str:
    return str((await gateway.chat(prompt, conversation_id="new")).body["conversation_id"])


def get_prompts(messages: list[Any]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


# --- order of turns


async def test_slow_clock_of_a_worker_loses_no_turn_from_the_context(workers: list[Gateway]) -> None:
    set_clock_back(workers[1])
    prompts = [f"Prompt {number}" for number in range(6)]
    conversation_id = await start_conversation(workers[0], prompts[0])
    turn_ids: list[str] = []
    for number, prompt in enumerate(prompts[1:], 1):
        reply = await workers[number % 2].chat(prompt, conversation_id=conversation_id)
        turn_ids.append(reply.body["turn_id"])
    assert turn_ids != sorted(turn_ids)
    assert get_prompts(workers[0].simulator.requests[-1]["messages"]) == prompts
    conversation = (await workers[0].get(f"/api/v1/conversations/{conversation_id}")).body
    assert [turn["prompt"] for turn in conversation["turns"]] == prompts
    assert get_prompts(conversation["messages"]) == prompts


async def test_turns_without_a_position_come_first(gateway: Gateway, db: asyncpg.Connection) -> None:
    prompts = [f"Prompt {number}" for number in range(4)]
    conversation_id = await start_conversation(gateway, prompts[0])
    await gateway.chat(prompts[1], conversation_id=conversation_id)
    await db.execute("UPDATE turns SET position = NULL")
    set_clock_back(gateway)
    for prompt in prompts[2:]:
        await gateway.chat(prompt, conversation_id=conversation_id)
    assert get_prompts(gateway.simulator.requests[-1]["messages"]) == prompts
    conversation = (await gateway.get(f"/api/v1/conversations/{conversation_id}")).body
    assert [turn["prompt"] for turn in conversation["turns"]] == prompts


# --- order of waiting requests


@asynccontextmanager
async def keep_busy(gateway: Gateway) -> AsyncGenerator[str]:
    """Run a turn in a new conversation; yield the conversation's id."""
    gateway.simulator.pause_streams()
    async with gateway.stream("count to 100", conversation_id="new") as stream:
        started = (await stream.read_until("turn.started")).data
        yield started["conversation_id"]
        assert (await gateway.post(f"/api/v1/turns/{started['turn_id']}/cancel", None)).status == 200
    gateway.simulator.resume_streams()


class WaitingRequests:
    """Requests for one conversation, each sent once the last one waits."""

    def __init__(self, db: asyncpg.Connection, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.replies: list[asyncio.Task[Reply]] = []
        self._db = db

    async def send(self, gateway: Gateway, prompt: str) -> asyncio.Task[Reply]:
        before = await self.count_tickets()
        reply = asyncio.create_task(gateway.chat(prompt, conversation_id=self.conversation_id))
        self.replies.append(reply)
        await self.wait_for_tickets(before + 1)
        return reply

    async def count_tickets(self) -> int:
        return int(await self._db.fetchval("SELECT count(*) FROM conversation_waiters"))

    async def wait_for_tickets(self, number: int) -> None:
        async def has_number() -> bool:
            return await self.count_tickets() == number

        await eventually(has_number)

    async def wait_for_statuses(self) -> list[int]:
        async with asyncio.timeout(60):
            return [reply.status for reply in await asyncio.gather(*self.replies)]


async def read_prompts(db: asyncpg.Connection) -> list[str]:
    """Read the prompts of all turns but the first, in order."""
    return [row["prompt"] for row in await db.fetch("SELECT prompt FROM turns ORDER BY position OFFSET 1")]


async def test_waiting_requests_run_in_the_order_of_their_arrival(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    prompts = [f"Prompt {number}" for number in range(10)]
    async with keep_busy(workers[0]) as conversation_id:
        requests = WaitingRequests(db, conversation_id)
        for number, prompt in enumerate(prompts):
            await requests.send(workers[number * 7 // 3 % 2], prompt)
    assert await requests.wait_for_statuses() == [200] * 10
    assert await read_prompts(db) == prompts
    assert get_prompts(workers[0].simulator.requests[-1]["messages"])[-10:] == prompts
    await requests.wait_for_tickets(0)


async def test_new_requests_do_not_overtake_waiting_ones(workers: list[Gateway], db: asyncpg.Connection) -> None:
    """New requests arrive whenever a turn ends."""
    prompts = [f"Prompt {number}" for number in range(4)]
    async with keep_busy(workers[0]) as conversation_id:
        requests = WaitingRequests(db, conversation_id)
        waiting = [await requests.send(workers[number % 2], prompt) for number, prompt in enumerate(prompts)]
    for reply in waiting:
        late = [worker.chat("Late", conversation_id=conversation_id) for worker in workers]
        requests.replies += map(asyncio.create_task, late)
        await reply
    assert await requests.wait_for_statuses() == [200] * 12
    assert (await read_prompts(db))[:4] == prompts


async def test_request_whose_client_leaves_blocks_no_other(workers: list[Gateway], db: asyncpg.Connection) -> None:
    async with keep_busy(workers[0]) as conversation_id:
        requests = WaitingRequests(db, conversation_id)
        for number in range(5):
            await requests.send(workers[number % 2], f"Prompt {number}")
        for number in (0, 3):  # the first in line, and one in the middle
            requests.replies[number].cancel()
        await requests.wait_for_tickets(3)
    requests.replies = [requests.replies[number] for number in (1, 2, 4)]
    assert await requests.wait_for_statuses() == [200] * 3
    assert await read_prompts(db) == ["Prompt 1", "Prompt 2", "Prompt 4"]


async def test_expired_tickets_of_any_conversation_are_deleted_with_the_next_one(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    await db.execute(
        "INSERT INTO conversation_waiters (conversation_id, worker_id, expires_at)"
        " SELECT gen_random_uuid(), gen_random_uuid(), now() - interval '1 second' FROM generate_series(1, 50)"
    )
    async with keep_busy(workers[0]) as conversation_id:
        requests = WaitingRequests(db, conversation_id)
        await requests.send(workers[1], "Hello")
    assert await requests.wait_for_statuses() == [200]
    await requests.wait_for_tickets(0)


async def test_tickets_without_a_live_worker_and_expired_ones_do_not_count(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    conversation_id = await start_conversation(workers[0], "Hello")
    worker_id = await eventually(lambda: db.fetchval("SELECT id FROM workers LIMIT 1"))
    insert = (
        "INSERT INTO conversation_waiters (conversation_id, worker_id, expires_at) VALUES ($1::uuid, $2, now() + $3)"
    )
    await db.execute(insert, conversation_id, uuid4(), timedelta(minutes=1))
    await db.execute(insert, conversation_id, worker_id, timedelta(seconds=-1))
    assert (await workers[0].chat("Hello", conversation_id=conversation_id, if_busy="reject")).status == 200
    await db.execute(insert, conversation_id, worker_id, timedelta(minutes=1))
    reply = await workers[1].chat("Hello", conversation_id=conversation_id, if_busy="reject")
    assert (reply.status, reply.body["error"]["code"]) == (409, "conversation_busy")


async def test_request_that_waited_too_long_is_a_409_and_leaves_the_queue(
    database_url: str, slow_simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    timeouts = replace(TIMEOUTS, conversation_busy=1.0)
    async with (
        serve_gateway(database_url, slow_simulator, tools_url, timeouts=timeouts) as first,
        serve_gateway(database_url, slow_simulator, tools_url, timeouts=timeouts) as second,
        keep_busy(first) as conversation_id,
    ):
        replies = await asyncio.gather(
            *(worker.chat("Hello", conversation_id=conversation_id) for worker in (first, second))
        )
        codes = [(reply.status, reply.body["error"]["code"]) for reply in replies]
        assert codes == [(409, "conversation_busy")] * 2
        await WaitingRequests(db, conversation_id).wait_for_tickets(0)


async def test_waiting_requests_are_rejected_when_the_turn_asks_a_person(
    workers: list[Gateway], db: asyncpg.Connection
) -> None:
    requests: WaitingRequests | None = None
    async with workers[0].stream("Add a task to buy milk", conversation_id="new", approval="always") as stream:
        conversation_id = (await stream.read_until("turn.started")).data["conversation_id"]
        requests = WaitingRequests(db, conversation_id)
        chats = [worker.chat("Hello", conversation_id=conversation_id) for worker in (*workers, *workers)]
        requests.replies = [asyncio.create_task(chat) for chat in chats]
        await stream.read_until("input.required")
    assert await requests.wait_for_statuses() == [409] * 4
    await requests.wait_for_tickets(0)


async def test_waiting_requests_end_when_their_worker_stops(workers: list[Gateway], db: asyncpg.Connection) -> None:
    async with keep_busy(workers[0]) as conversation_id:
        requests = WaitingRequests(db, conversation_id)
        for _ in range(3):
            await requests.send(workers[1], "Hello")
        await workers[1].state.stop(0)
        assert await requests.wait_for_statuses() == [503] * 3
        await requests.wait_for_tickets(0)

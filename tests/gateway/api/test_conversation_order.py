"""Order of the turns and requests of a conversation, over two workers."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from tests.stack import Gateway

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

"""Turns started by the tool `ask_agent` of `/mcp`."""

import asyncio
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, serve_gateway

KEY = {"mcp-agent-gateway/idempotency-key": "k-1"}


def get_error(result: Any) -> Any:
    assert result.is_error
    return result.meta["mcp-agent-gateway/error"]


async def ask_agent(gateway: Gateway, prompt: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:
    async with connect_host(gateway, "auto", headers=headers or {}) as client:
        return await client.call_tool("ask_agent", {"prompt": prompt, **options.pop("arguments", {})}, **options)


async def test_model_defaults_equal_those_of_the_http_api(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    defaults = {
        "groq_default_model": "qwen/qwen3-32b",
        "groq_reasoning_format": "hidden",
        "groq_reasoning_effort": "default",
        "groq_temperature": 0.25,
        "groq_top_p": 0.5,
        "groq_max_tokens": 321,
    }
    field_names = ("model", "reasoning_format", "reasoning_effort", "temperature", "top_p", "max_completion_tokens")
    async with serve_gateway(database_url, simulator, tools_url, **defaults) as gateway:
        assert not (await ask_agent(gateway, "Hello")).is_error
        over_mcp = {name: simulator.requests[-1].get(name) for name in field_names}
        assert (await gateway.chat("Hello")).status == 200
        over_http = {name: simulator.requests[-1].get(name) for name in field_names}
    assert over_mcp == over_http
    assert (over_mcp["reasoning_format"], over_mcp["temperature"], over_mcp["top_p"]) == ("hidden", 0.25, 0.5)


async def test_too_long_prompt_is_rejected_with_the_code_of_the_http_api(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, max_message_chars=10) as gateway:
        rejection = await gateway.chat("x" * 11)
        result = await ask_agent(gateway, "x" * 11)
    assert get_error(result) == {name: rejection.body["error"][name] for name in ("code", "message", "param")}
    assert get_text(result) == rejection.body["error"]["message"]
    assert (get_error(result)["code"], await db.fetchval("SELECT count(*) FROM turns")) == ("invalid_request", 0)


async def test_idempotency_key_starts_a_turn_once(gateway: Gateway, db: asyncpg.Connection) -> None:
    prompt = "Add a task to buy milk"
    async with connect_host(gateway, "auto") as client:
        calls = [client.call_tool("ask_agent", {"prompt": prompt}, meta=KEY) for _ in range(3)]
        results = await asyncio.gather(*calls)
        repeated = await client.call_tool("ask_agent", {"prompt": prompt}, meta=KEY)
        other = await client.call_tool("ask_agent", {"prompt": prompt}, meta=dict.fromkeys(KEY, "k-2"))
    assert not any(result.is_error for result in (*results, repeated, other))
    assert len({result.structured_content["turn_id"] for result in (*results, repeated)}) == 1
    assert get_text(repeated) == get_text(results[0])
    assert other.structured_content["turn_id"] != repeated.structured_content["turn_id"]
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 2


async def test_idempotency_keys_are_scoped_to_their_owner(keyring: Keyring) -> None:
    for owner in ("ada", "bob"):
        await keyring.create_key(owner)
    results = [
        await ask_agent(keyring.gateway, "Hello", headers=keyring.headers(owner), meta=KEY) for owner in ("ada", "bob")
    ]
    assert len({result.structured_content["turn_id"] for result in results}) == 2


@pytest.mark.parametrize("key", ["", "x" * 201, 7])
async def test_invalid_idempotency_key_is_rejected(gateway: Gateway, key: Any) -> None:
    result = await ask_agent(gateway, "Hello", meta=dict.fromkeys(KEY, key))
    assert (get_error(result)["code"], get_error(result)["param"]) == ("invalid_request", "_meta")


async def test_second_turn_of_a_conversation_waits_for_the_first(
    gateway: Gateway, simulator: Simulator, db: asyncpg.Connection
) -> None:
    first = await gateway.chat("Hello", conversation_id="new")
    conversation = {"conversation_id": first.body["conversation_id"]}
    replies = await asyncio.gather(
        ask_agent(gateway, "count to 50", arguments=conversation),
        ask_agent(gateway, "count to 60", arguments=conversation),
    )
    assert not any(reply.is_error for reply in replies)
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 3

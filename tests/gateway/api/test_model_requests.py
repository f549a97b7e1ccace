"""Tests of the requests that model servers get."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import SecretStr

from tests.scripted_model import ScriptedModelServer, serve_scripted_model
from tests.stack import Gateway, ServeSharedGateway

USER = {"role": "user", "content": "Go."}


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer) -> Gateway:
    settings: dict[str, Any] = {"groq_api_key": None, "openai_api_key": SecretStr("k" * 20)}
    return await serve_shared_gateway(openai_base_url=f"{model.url}/v1", **settings)


async def complete(gateway: Gateway, model: ScriptedModelServer, **body: Any) -> tuple[Any, Any]:
    """Return the answer to a chat, and the upstream request."""
    model.script_answers()
    reply = await gateway.post("/v1/chat/completions", {"messages": [USER], **body})
    assert reply.status == 200, reply.body
    return reply.body, model.requests[0]


async def test_system_messages_are_joined_at_the_beginning(gateway: Gateway, model: ScriptedModelServer) -> None:
    messages = [{"role": "system", "content": "Be terse."}, USER, {"role": "developer", "content": "Be kind."}]
    _, request = await complete(gateway, model, messages=messages)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][0]["content"].endswith("\n\nBe terse.\n\nBe kind.")


async def test_limit_that_the_server_did_not_tell_is_not_enforced(gateway: Gateway, model: ScriptedModelServer) -> None:
    _, request = await complete(gateway, model, max_tokens=32_000)
    assert request["max_tokens"] == 32_000


@pytest.mark.parametrize(("effort", "sent"), [("xhigh", "high"), ("max", "high"), ("minimal", "low")])
async def test_unknown_effort_maps_to_the_nearest_with_a_warning(
    gateway: Gateway, model: ScriptedModelServer, effort: str, sent: str
) -> None:
    answer, request = await complete(gateway, model, reasoning_effort=effort)
    assert request["reasoning_effort"] == sent
    assert f"reasoning_effort={effort} was replaced by {sent}" in answer["x_gateway"]["warnings"][0]


async def test_long_call_ids_are_shortened_in_pairs(gateway: Gateway, model: ScriptedModelServer) -> None:
    call = {"id": "c" * 100, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c" * 100, "content": "x"},
    ]
    _, request = await complete(gateway, model, messages=messages)
    call_id = request["messages"][2]["tool_calls"][0]["id"]
    assert request["messages"][3]["tool_call_id"] == call_id
    assert len(call_id) <= 40


@pytest.fixture(scope="module")
async def configured(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    """Gateway whose defaults not every model takes."""
    return await serve_shared_gateway(
        groq_reasoning_effort="medium", groq_reasoning_format="parsed", groq_temperature=0.5, groq_max_tokens=9_000
    )


@pytest.mark.parametrize(
    ("model_id", "sent"),
    [
        ("openai/gpt-oss-120b", {"reasoning_effort": "medium", "temperature": 0.5, "max_completion_tokens": 9_000}),
        ("qwen/qwen3.8-27b", {"reasoning_format": "parsed", "temperature": 0.5, "max_completion_tokens": 9_000}),
        ("groq/compound", {"temperature": 0.5}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/chat"])
async def test_default_parameters_are_sent_only_to_models_that_take_them(
    configured: Gateway, path: str, model_id: str, sent: dict[str, Any]
) -> None:
    reply = await configured.post(path, {"messages": [USER], "model": model_id})
    assert reply.status == 200, reply.body
    request = configured.simulator.requests[-1]
    names = {"reasoning_effort", "reasoning_format", "temperature", "max_completion_tokens"}
    assert {name: request[name] for name in names & set(request)} == sent


async def test_parameter_of_a_request_that_the_model_does_not_take_is_still_refused(configured: Gateway) -> None:
    body = {"messages": [USER], "model": "groq/compound", "reasoning_effort": "medium"}
    reply = await configured.post("/v1/chat/completions", body)
    assert (reply.status, reply.body["error"]["param"]) == (400, "reasoning_effort")

"""Errors and limits of the OpenAI-compatible routes, as SDKs read them."""

from typing import Any

import openai
import pytest

from tests.auth_helpers import Keyring
from tests.stack import Gateway

USER: Any = {"role": "user", "content": "What is 23*19?"}
MODEL = "openai/gpt-oss-120b"


def make_tools(number: int, description: str = "A tool.") -> list[Any]:
    function = {"description": description, "parameters": {"type": "object", "properties": {}}}
    return [{"type": "function", "function": {"name": f"own_{n}", **function}} for n in range(number)]


def make_client(gateway: Gateway, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0)


async def test_wrong_key_is_an_invalid_api_key(keyring: Keyring) -> None:
    async with make_client(keyring.gateway, "agw_12345678_guess") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.body["x_gateway"] == {"code": "not_authenticated"}  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportArgumentType, reportCallIssue]


async def test_prompt_beyond_the_window_exceeds_the_context_length(shared_gateway: Gateway) -> None:
    messages: Any = [{"role": "user", "content": "word " * 75_000}] * 2
    async with make_client(shared_gateway) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=messages)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="no-such-model", messages=[USER])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert missing.value.code == "model_not_found"


LIMITS: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "tools": ({"tools": make_tools(129)}, 400, "array_above_max_length", "tools", "128"),
    "description": (
        {"tools": make_tools(1, "x" * 32_769)},
        400,
        "string_above_max_length",
        "tools.0.function.description",
        "32768",
    ),
    "messages": ({"messages": [USER] * 501}, 400, "array_above_max_length", "messages", "MAX_MESSAGES"),
    "characters": (
        {"messages": [USER, {"role": "user", "content": "x" * 400_001}]},
        400,
        "string_above_max_length",
        "messages.1.content",
        "MAX_MESSAGE_CHARS",
    ),
    "body": ({"user": "x" * 4 * 1024 * 1024}, 413, "payload_too_large", "", "MAX_BODY_BYTES"),
}


@pytest.mark.parametrize(("body", "status", "code", "param", "named"), LIMITS.values(), ids=LIMITS)
async def test_limit_is_named(
    shared_gateway: Gateway, body: dict[str, Any], status: int, code: str, param: str, named: str
) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": [USER], **body})
    error = reply.body["error"]
    assert (reply.status, error["code"], error["param"] or "") == (status, code, param)
    assert named in error["message"]


CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
INVALID: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {}, "missing_required_parameter", "messages"),
    (CHAT, {"messages": [{"content": "x"}]}, "missing_required_parameter", "messages.0.role"),
    (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.function"),
    (RESPONSES, {}, "missing_required_parameter", "input"),
    (RESPONSES, {"input": "x", "tools": [{"type": "mcp"}]}, "missing_required_parameter", "tools.0.server_label"),
    ("/v1/completions", {}, "missing_required_parameter", "prompt"),
    (CHAT, {"messages": "x"}, "invalid_type", "messages"),
    (CHAT, {"messages": [USER], "temperature": "hot"}, "invalid_type", "temperature"),
    (CHAT, {"messages": [USER], "max_tokens": 1.5}, "invalid_type", "max_tokens"),
    (CHAT, {"messages": [USER], "temperature": 9}, "decimal_above_max_value", "temperature"),
    (CHAT, {"messages": [USER], "max_tokens": 0}, "integer_below_min_value", "max_tokens"),
    (CHAT, {"messages": []}, "empty_array", "messages"),
    (CHAT, {"messages": [{"role": "x", "content": "x"}]}, "invalid_value", "messages.0.role"),
]


@pytest.mark.faults
@pytest.mark.parametrize(("path", "body", "code", "param"), INVALID)
async def test_invalid_field_has_the_code_that_sdks_know(
    shared_gateway: Gateway, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    reply = await shared_gateway.post(path, body)
    error = reply.body["error"]
    assert (reply.status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert error["param"] == param


async def test_limit_of_tools_counts_those_of_the_client(gateway: Gateway) -> None:
    body = {"messages": [USER], "tools": make_tools(128), "x_gateway": {"tools": "all"}}
    reply = await gateway.post("/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    sent = [tool["function"]["name"] for tool in gateway.simulator.requests[-1]["tools"]]
    assert sent == [f"own_{n}" for n in range(128)]
    assert any("left out" in warning for warning in reply.body["x_gateway"]["warnings"])

"""Tests of refusals of OpenAI's documented fields."""

from typing import Any

import pytest

from tests.stack import Gateway

MESSAGES = [{"role": "user", "content": "Hello."}]
CHAT: dict[str, tuple[dict[str, Any], str, str]] = {
    "different limits": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "max_completion_tokens alone"),
    "several answers": ({"n": 2}, "n", "again"),
    "probabilities": ({"logprobs": True}, "logprobs", "leave it out"),
    "best probabilities": ({"top_logprobs": 2}, "top_logprobs", "leave it out"),
    "biases": ({"logit_bias": {"1": 2}}, "logit_bias", "leave it out"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities", '["text"]'),
    "voice": ({"audio": {"voice": "x", "format": "wav"}}, "audio", "leave it out"),
    "custom tool": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
    "custom choice": ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "required"),
    "limit of Responses": ({"max_output_tokens": 5}, "max_output_tokens", "max_completion_tokens"),
    "custom call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x", "type": "custom", "custom": {"name": "f"}}]}]},
        "messages.0.tool_calls.0.type",
        "function",
    ),
}
RESPONSES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown item": ({"input": [*MESSAGES, {"type": "computer_call"}]}, "input.1.type", "messages"),
    "stored prompt": ({"input": "x", "prompt": {"id": "p"}}, "prompt", "instructions"),
    "context management": ({"input": "x", "context_management": []}, "context_management", "leave it out"),
    "probabilities": ({"input": "x", "top_logprobs": 2}, "top_logprobs", "leave it out"),
    "file search": ({"input": "x", "tools": [{"type": "file_search"}]}, "tools.0.type", "function or mcp"),
    "hosted choice": ({"input": "x", "tool_choice": {"type": "file_search"}}, "tool_choice.type", "required"),
    "limit of chats": ({"input": "x", "max_tokens": 5}, "max_tokens", "max_output_tokens"),
    "format of chats": ({"input": "x", "response_format": {"type": "json_object"}}, "response_format", "text.format"),
}


@pytest.mark.parametrize(("body", "param", "advice"), CHAT.values(), ids=CHAT)
async def test_chat_completion_field_is_refused_with_what_to_send(
    shared_gateway: Gateway, body: dict[str, Any], param: str, advice: str
) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": MESSAGES, **body})
    error = reply.body["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert error["message"].startswith(f"{param}: ")
    assert advice in error["message"]


@pytest.mark.parametrize(("body", "param", "advice"), RESPONSES.values(), ids=RESPONSES)
async def test_response_field_is_refused_with_what_to_send(
    shared_gateway: Gateway, body: dict[str, Any], param: str, advice: str
) -> None:
    reply = await shared_gateway.post("/v1/responses", body)
    error = reply.body["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert error["message"].startswith(f"{param}: ")
    assert advice in error["message"]


@pytest.mark.parametrize(
    "item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}, {"id": "x", "type": None}]
)
async def test_reference_to_an_unknown_item_is_refused_with_what_to_send(
    shared_gateway: Gateway, item: dict[str, Any]
) -> None:
    error = (await shared_gateway.post("/v1/responses", {"input": [item]})).body["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "input.0.id")
    assert "send the item itself" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 50, "max_completion_tokens": 50},
        {"max_tokens": 50, "max_completion_tokens": None},
        {"max_tokens": None, "max_completion_tokens": 50},
        {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "functions": None},
    ],
)
async def test_field_that_changes_nothing_is_taken(shared_gateway: Gateway, body: dict[str, Any]) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": MESSAGES, **body})
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("kind", ["input_file", "input_audio"])
async def test_content_of_a_response_is_refused_with_what_to_send(shared_gateway: Gateway, kind: str) -> None:
    body = {"input": [{"role": "user", "content": [{"type": kind}]}]}
    error = (await shared_gateway.post("/v1/responses", body)).body["error"]
    assert error["param"] == "input"
    assert kind in error["message"]
    assert "send input_text" in error["message"]

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
    "instructions": ({"instructions": "x"}, "instructions", "role system"),
    "reasoning of Responses": ({"reasoning": {"effort": "low"}}, "reasoning", "reasoning_effort"),
    "earlier response": ({"previous_response_id": "x"}, "previous_response_id", "x_gateway.parent_turn_id"),
    "tool of Responses": ({"tools": [{"type": "function", "name": "f"}]}, "tools.0.name", "in a function"),
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
    "stop": ({"input": "x", "stop": ["a"]}, "stop", "leave it out"),
    "effort of chats": ({"input": "x", "reasoning_effort": "low"}, "reasoning_effort", "reasoning.effort"),
    "tool of chats": (
        {"input": "x", "tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools.0.function",
        "beside the type",
    ),
    "choice of chats": (
        {"input": "x", "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice.function",
        "beside the type",
    ),
    "connector": (
        {"input": "x", "tools": [{"type": "mcp", "server_label": "x", "connector_id": "y"}]},
        "tools.0.connector_id",
        "server_label",
    ),
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


TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "max_completion_tokens": ({"max_completion_tokens": 5}, "send max_tokens"),
    "messages": ({"messages": MESSAGES}, "/v1/chat/completions"),
    "response_format": ({"response_format": {"type": "json_object"}}, "/v1/chat/completions"),
}


@pytest.mark.parametrize(("body", "advice"), TEXTS.values(), ids=TEXTS)
async def test_text_completion_field_is_refused_with_what_to_send(
    shared_gateway: Gateway, body: dict[str, Any], advice: str
) -> None:
    error = (await shared_gateway.post("/v1/completions", {"prompt": "Hello.", **body})).body["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(body)))
    assert advice in error["message"]


FUNCTION = {"type": "function", "name": "f"}
INVALID: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "stops": ("chat/completions", {"stop": ["a"] * 5}, "stop", "at most 4"),
    "choice": ("chat/completions", {"tool_choice": "any"}, "tool_choice", "'required'"),
    "choice of a response": ("responses", {"input": "x", "tool_choice": "any"}, "tool_choice", "'required'"),
    "role": ("responses", {"input": [{"role": "x", "content": "x"}]}, "input.0.role", "'user'"),
    "content": ("responses", {"input": [*MESSAGES, {"role": "user"}]}, "input.1.content", "required"),
    "approval": (
        "responses",
        {"input": [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}]},
        "input.0.approval_request_id",
        "pattern",
    ),
    "type": ("responses", {"input": "x", "tools": [{"name": "f"}]}, "tools.0.type", "required"),
    "unknown field": ("responses", {"input": "x", "tools": [FUNCTION | {"x": 1}]}, "tools.0.x", "unknown"),
}


@pytest.mark.parametrize(("route", "body", "param", "reason"), INVALID.values(), ids=INVALID)
async def test_invalid_value_is_refused_under_its_own_name(
    shared_gateway: Gateway, route: str, body: dict[str, Any], param: str, reason: str
) -> None:
    body = {"messages": MESSAGES} | body if "input" not in body else body
    error = (await shared_gateway.post(f"/v1/{route}", body)).body["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert reason in error["message"]


async def test_route_that_is_not_there_is_refused_with_those_that_are(shared_gateway: Gateway) -> None:
    error = (await shared_gateway.post("/v1/moderations", {"input": "x"})).body["error"]
    assert error["message"].startswith("POST /v1/moderations: ")
    assert "chat/completions" in error["message"]
    reply = await shared_gateway.post("/v1/models", {})
    assert (reply.status, "send GET" in reply.body["error"]["message"]) == (405, True)


@pytest.mark.parametrize(
    "tool",
    [FUNCTION | {"defer_loading": True}, {"type": "web_search_2025_08_26"}, {"type": "web_search_preview_2025_03_11"}],
)
async def test_documented_tool_that_changes_nothing_is_taken(shared_gateway: Gateway, tool: dict[str, Any]) -> None:
    reply = await shared_gateway.post("/v1/responses", {"input": "Hello.", "tools": [tool]})
    assert reply.status == 200, reply.body


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
    content = [{"type": "input_text", "text": "Read this."}, {"type": kind}]
    body = {"input": [{"role": "user", "content": "Hello"}, {"role": "user", "content": content}]}
    error = (await shared_gateway.post("/v1/responses", body)).body["error"]
    assert error["param"] == "input.1.content.1"
    assert kind in error["message"]
    assert "send input_text" in error["message"]

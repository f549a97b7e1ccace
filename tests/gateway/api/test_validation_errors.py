"""Messages and `param` of rejected requests."""

from typing import Any

import pytest

from tests.stack import Gateway

MESSAGE = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/api/v1/keys", {"surplus": 1}, "surplus", "surplus: unknown field"),
        ("/api/v1/keys", {"a": 1, "b": 1}, "a", "a: unknown field (and 1 more problem)"),
        ("/api/v1/keys", {"a": 1, "b": 1, "c": 1}, "a", "a: unknown field (and 2 more problems)"),
        (
            "/api/v1/chat",
            {"messages": [MESSAGE], "store": False, "conversation_id": "new"},
            "store",
            "store: a turn that is not stored cannot start a conversation",
        ),
    ],
)
async def test_invalid_body_names_field_and_reason_once(
    shared_gateway: Gateway, path: str, body: Any, param: str, message: str
) -> None:
    error = (await shared_gateway.post(path, body)).body["error"]
    assert (error["param"], error["message"]) == (param, message)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "tool", "content": "x"}, "messages.0.tool_call_id"),
    ],
)
async def test_rule_of_several_fields_names_the_invalid_one(shared_gateway: Gateway, message: Any, param: str) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": [message]})
    assert reply.body["error"]["param"] == param


async def test_query_parameter_called_query_is_named(shared_gateway: Gateway) -> None:
    error = (await shared_gateway.get("/api/v1/search?query=")).body["error"]
    assert error["param"] == "query"
    assert error["message"].startswith("query: ")


async def test_invalid_header_is_named_without_its_source(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.post("/api/v1/chat", {"messages": [MESSAGE]}, headers={"Idempotency-Key": "k" * 201})
    assert reply.body["error"]["param"] == "idempotency-key"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/api/v1/chat", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/api/v1/chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ("/api/v1/chat", {"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ("/api/v1/chat", {"messages": [MESSAGE], "tools": [{"function": {"name": 1}}]}, "tools.0.function.name"),
        ("/api/v1/chat", {"messages": [MESSAGE], "tool_choice": 1}, "tool_choice"),
        ("/api/v1/chat", {"messages": [MESSAGE], "stop": 1}, "stop"),
        ("/api/v1/chat", {"message": 1}, "message"),
        ("/api/v1/chat", {"messages": [MESSAGE], "max_completion_tokens": "many"}, "max_completion_tokens"),
        ("/api/v1/chat/stream", {"messages": [MESSAGE], "topP": "high"}, "topP"),
        ("/stream", {"message": 1}, "message"),
        ("/api/ada/chat", {"prompt": ""}, "prompt"),
        (
            "/api/chat/stream",
            {"user_prompt": "x", "hyperparameters": {"temperature": "hot"}},
            "hyperparameters.temperature",
        ),
    ],
)
async def test_error_names_the_field_as_it_was_sent(shared_gateway: Gateway, path: str, body: Any, param: str) -> None:
    reply = await shared_gateway.post(path, body)
    error = reply.body["error"]
    assert (reply.status, error["param"]) == (400 if path.startswith("/v1/") else 422, param)
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("path", ["/history", "/api/v1/history", "/api/v1/admin/turns", "/api/v1/audit"])
@pytest.mark.parametrize("limit", ["abc", "0", "-1", "", "1e9", "1.5"])
async def test_query_parameter_with_a_wrong_value_is_named(shared_gateway: Gateway, path: str, limit: str) -> None:
    reply = await shared_gateway.get(f"{path}?limit={limit}")
    assert (reply.status, reply.body["error"]["param"]) == (422, "limit")
    assert reply.body["error"]["message"].startswith("limit: ")

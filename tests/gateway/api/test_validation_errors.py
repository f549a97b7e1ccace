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

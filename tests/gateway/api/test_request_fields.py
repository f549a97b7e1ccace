"""Tests of fields of other APIs in native and legacy requests."""

import json
from typing import Any

import pytest

from gateway.wire.request_fields import CHANGES_NOTHING, SAME_AS, UNSUPPORTED
from tests.stack import Gateway

PROMPT = "What is 23*19?"
BODIES: dict[str, dict[str, Any]] = {
    "/api/v1/chat/stream": {"messages": [{"role": "user", "content": PROMPT}]},
    "/api/v1/chat": {"messages": [{"role": "user", "content": PROMPT}]},
    "/stream": {"prompt": PROMPT},
    "/api/chat/stream": {"user_prompt": PROMPT},
    "/api/ada/chat": {"message": PROMPT},
}
ALL_ROUTES = pytest.mark.parametrize("path", BODIES)
WEATHER = {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}


async def post(gateway: Gateway, path: str, **fields: Any) -> Any:
    """Send a body of the route with further fields."""
    async with gateway.session.post(f"{gateway.base_url}{path}", json=BODIES[path] | fields) as response:
        return response.status, response.headers, await response.text()


def get_sent(gateway: Gateway) -> Any:
    """Return the first model request of the last turn."""
    return next(
        request for request in reversed(gateway.simulator.requests) if request["messages"][-1]["role"] != "tool"
    )


@ALL_ROUTES
async def test_other_names_of_fields_are_understood(gateway: Gateway, path: str) -> None:
    fields: dict[str, Any] = {
        "max_completion_tokens": 500,
        "topP": 0.5,
        "stop_sequences": ["never"],
        "session_id": 12,
        "instructions": "Be a camel.",
        "stream": path.endswith("stream"),
    }
    status, headers, text = await post(gateway, path, **fields)
    assert (status, "x-gateway-warnings" in headers) == (200, False), text
    sent = get_sent(gateway)
    assert (sent["max_completion_tokens"], sent["top_p"], sent["stop"]) == (500, 0.5, ["never"])
    assert "Be a camel." in sent["messages"][0]["content"]
    owner = "ada" if "ada" in path else "local"
    path = "/api/v1/conversations/12"
    assert (await gateway.get(path)).status == (200 if owner == "local" else 404)


async def test_roles_of_other_apis_are_understood(gateway: Gateway) -> None:
    messages = [
        {"role": "developer", "content": "Answer briefly."},
        {"role": "human", "content": "My name is Ada."},
        {"role": "ai", "content": "Hello Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    reply = await gateway.post("/api/v1/chat", {"messages": messages})
    assert (reply.status, reply.body["warnings"]) == (200, [])
    roles = [message["role"] for message in get_sent(gateway)["messages"]]
    assert roles[-3:] == ["user", "assistant", "user"]
    assert "Answer briefly." in str(get_sent(gateway)["messages"][:2])


@pytest.mark.parametrize("field", ["prompt", "user_prompt", "message"])
async def test_prompt_of_another_route_is_understood(shared_gateway: Gateway, field: str) -> None:
    for path in BODIES:
        async with shared_gateway.session.post(f"{shared_gateway.base_url}{path}", json={field: PROMPT}) as response:
            assert (response.status, "437" in await response.text()) == (200, True), path


async def test_stream_decides_the_form_of_a_native_answer(shared_gateway: Gateway) -> None:
    streamed = await post(shared_gateway, "/api/v1/chat", stream=True)
    assert streamed[1]["content-type"].startswith("text/event-stream")
    assert streamed[2].endswith("data: [DONE]\n\n")
    _, headers, text = await post(shared_gateway, "/api/v1/chat/stream", stream=False)
    assert headers["content-type"] == "application/json"
    assert ("437" in json.loads(text)["response"], headers["x-turn-id"]) == (True, json.loads(text)["turn_id"])


@pytest.mark.parametrize(("path", "stream"), [("/stream", False), ("/api/chat/stream", False), ("/api/ada/chat", True)])
async def test_stream_that_a_legacy_route_cannot_follow_is_refused(
    shared_gateway: Gateway, path: str, stream: bool
) -> None:
    status, _, text = await post(shared_gateway, path, stream=stream)
    assert (status, json.loads(text)["error"]["param"]) == (422, "stream")


@ALL_ROUTES
async def test_fields_that_change_nothing_are_taken_with_one_warning(shared_gateway: Gateway, path: str) -> None:
    fields: dict[str, Any] = {
        "n": 1,
        "stream_options": {"include_usage": True},
        "metadata": {"trace": "1"},
        "logprobs": False,
        "logit_bias": {},
        "service_tier": "auto",
        "frobnicate": [1],
        "nothing": None,
    }
    status, headers, text = await post(shared_gateway, path, **fields)
    assert status == 200, text
    warning = headers["x-gateway-warnings"]
    assert warning.count("change nothing") == 1
    for name in set(fields) - {"nothing"}:
        assert name in warning
    assert "nothing," not in warning
    if path == "/api/v1/chat/stream":
        started = next(json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: "))
        assert started["warnings"] == [warning]
    if path in ("/api/v1/chat", "/api/ada/chat"):
        assert json.loads(text)["warnings"] == [warning]
    if path == "/api/chat/stream":
        assert json.loads(text.split("\n")[0][6:])["warnings"] == [warning]


async def test_members_of_messages_that_change_nothing_are_taken(shared_gateway: Gateway) -> None:
    messages = [
        {"id": "m1", "role": "user", "content": "Hi", "createdAt": 1, "timestamp": "2026-01-01"},
        {"id": "m2", "role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "parts": None},
        {"id": "m3", "role": "user", "content": PROMPT, "metadata": {"a": 1}},
    ]
    reply = await shared_gateway.post("/api/v1/chat", {"messages": messages})
    assert reply.status == 200
    names = "messages.*.id, messages.*.createdAt, messages.*.timestamp, messages.*.annotations, messages.*.metadata"
    assert reply.body["warnings"] == [f"These fields of the request change nothing: {names}."]


async def test_warning_of_many_odd_names_is_bounded_and_plain(shared_gateway: Gateway) -> None:
    names = {f"x{n}\r\nSet-Cookie: a=b\u2028{'y' * 500}": 1 for n in range(5_000)}
    status, headers, text = await post(shared_gateway, "/api/v1/chat", **names)
    assert (status, "set-cookie" in headers) == (200, False)
    [warning] = json.loads(text)["warnings"]
    assert (len(warning) < 2_000, warning.isprintable(), warning.endswith("and more.")) == (True, True, True)
    assert len(headers["x-gateway-warnings"]) <= 1_000


REFUSED = {
    "n": 2,
    "best_of": 3,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"1": 5},
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "web_search_options": {},
    "min_p": 0.1,
    "prediction": {"type": "content", "content": "x"},
    "format": "json",
    "verbosity": "low",
}


@ALL_ROUTES
async def test_fields_that_would_change_the_answer_are_refused_by_name(shared_gateway: Gateway, path: str) -> None:
    for name, value in REFUSED.items():
        status, _, text = await post(shared_gateway, path, **{name: value})
        error = json.loads(text)["error"]
        assert (status, error["code"], error["param"]) == (422, "unsupported_parameter", name), (path, text)
        assert error["message"].startswith(f"{name}: "), error


async def test_two_names_of_one_field_with_different_values_are_refused(shared_gateway: Gateway) -> None:
    equal = await post(shared_gateway, "/api/v1/chat", max_tokens=100, max_completion_tokens=100, maxTokens=None)
    assert equal[0] == 200
    status, _, text = await post(shared_gateway, "/api/v1/chat", max_tokens=100, max_completion_tokens=101)
    error = json.loads(text)["error"]
    assert (status, error["param"]) == (422, "max_tokens")
    assert "max_tokens and max_completion_tokens differ" in error["message"]


@ALL_ROUTES
async def test_parameters_that_the_model_does_not_take_warn(shared_gateway: Gateway, path: str) -> None:
    is_native = path.startswith("/api/v1")
    status, headers, text = await post(shared_gateway, path, top_k=40, temperature=3)
    if is_native:
        assert (status, json.loads(text)["error"]["code"]) == (422, "unsupported_parameter")
        status, headers, text = await post(shared_gateway, path, top_k=40, temperature=3, drop_unsupported=True)
    assert status == 200, text
    assert all(f"{name} was left out" in headers["x-gateway-warnings"] for name in ("top_k", "temperature"))


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {**WEATHER, "name": "calculator", "strict": True}},
        {"type": "function", "name": "calculator", "parameters": {"type": "object"}},
        {"name": "calculator", "input_schema": {"type": "object"}},
        {"name": "calculator", "description": "x", "inputSchema": {"type": "object"}},
        {"type": "custom", "name": "calculator", "input_schema": {"type": "object"}},
        "calculator",
    ],
    ids=["OpenAI", "Responses", "Anthropic", "MCP", "Anthropic custom", "name"],
)
async def test_tool_of_the_gateway_in_any_form_allows_it(shared_gateway: Gateway, tool: Any) -> None:
    for path in BODIES:
        status, _, text = await post(shared_gateway, path, tools=[tool])
        assert (status, "437" in text) == (200, True), (path, text)
        sent = get_sent(shared_gateway)["tools"]
        assert [each["function"]["name"] for each in sent] == ["calculator"]
        assert "Weather" not in str(sent)  # the gateway's own definition counts


async def test_other_tool_is_the_clients_and_its_call_is_returned(gateway: Gateway) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": [{"type": "function", "function": WEATHER}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }
    reply = await gateway.post("/api/v1/chat", body)
    assert (reply.status, reply.body["finish_reason"]) == (200, "tool_calls"), reply.body
    [call] = reply.body["tool_calls"]
    assert (call["tool"], call["outcome"]) == ("get_weather", None)
    assistant = {
        "role": "assistant",
        "tool_calls": [{"id": call["id"], "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
    }
    result = {"role": "tool", "tool_call_id": call["id"], "content": "It is 31 degrees."}
    more = await gateway.post(
        "/api/v1/chat", {**body, "messages": [*body["messages"], assistant, result], "tool_choice": "auto"}
    )
    assert (more.status, more.body["finish_reason"]) == (200, "stop"), more.body


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([1], "tools.0"),
        ([{"type": "web_search"}], "tools.0.type"),
        ([{"type": "custom", "custom": {"name": "x"}}], "tools.0.type"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools.0.function.name"),
        ([{"type": "function", "function": {"name": "x", "parameters": 1}}], "tools.0.function.parameters"),
        ([{"type": "function", "function": 1}], "tools.0.function"),
    ],
)
async def test_tool_that_cannot_be_read_is_named(shared_gateway: Gateway, tools: Any, param: str) -> None:
    status, _, text = await post(shared_gateway, "/api/v1/chat", tools=tools)
    assert (status, json.loads(text)["error"]["param"]) == (422, param), text


@pytest.mark.parametrize("path", ["/stream", "/api/chat/stream", "/api/ada/chat"])
async def test_legacy_route_refuses_tools_whose_calls_it_cannot_return(shared_gateway: Gateway, path: str) -> None:
    status, _, text = await post(shared_gateway, path, tools=[{"type": "function", "function": WEATHER}])
    error = json.loads(text)["error"]
    assert (status, error["param"]) == (422, "tools.0")
    assert "get_weather" in error["message"]


async def test_hyperparameters_follow_the_same_rules(shared_gateway: Gateway) -> None:
    path = "/api/chat/stream"
    hyperparameters = {"maxTokens": 300, "n": 1, "top_k": 40, "mystery": 2}
    status, headers, text = await post(shared_gateway, path, hyperparameters=hyperparameters)
    assert status == 200, text
    assert get_sent(shared_gateway)["max_completion_tokens"] == 300
    warning = headers["x-gateway-warnings"]
    assert "hyperparameters.n, hyperparameters.mystery." in warning
    assert "top_k was left out" in warning
    status, _, text = await post(shared_gateway, path, hyperparameters={"n": 2})
    assert (status, json.loads(text)["error"]["param"]) == (422, "hyperparameters.n")


def test_each_field_has_one_meaning() -> None:
    known = {*SAME_AS} - {"prompt", "user_prompt", "message", "system", "system_prompt"}
    assert not known & {*UNSUPPORTED}
    assert not {*CHANGES_NOTHING} & {*SAME_AS, *UNSUPPORTED}

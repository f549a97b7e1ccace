"""Tests of the rule for the gateway tools of a request."""

from typing import Any

import asyncpg
import pytest

from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from tests.auth_helpers import Keyring
from tests.stack import Gateway, JsonObject, Reply, serve_gateway

MODEL = "openai/gpt-oss-120b"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city.", "parameters": SCHEMA}
CHAT_TOOL: JsonObject = {"type": "function", "function": FUNCTION}
MESSAGES: list[JsonObject] = [{"role": "user", "content": "Hello."}]
FORMATS: dict[str, tuple[str, JsonObject, JsonObject]] = {
    "native": ("/api/v1/chat", {"messages": MESSAGES}, CHAT_TOOL),
    "chat completions": ("/v1/chat/completions", {"messages": MESSAGES}, CHAT_TOOL),
    "responses": ("/v1/responses", {"input": "Hello."}, {"type": "function", **FUNCTION}),
    "messages": (
        "/v1/messages",
        {"messages": MESSAGES, "max_tokens": 50},
        {"name": "get_weather", "description": "Weather of a city.", "input_schema": SCHEMA},
    ),
}
BODY_FIELD = {"native": None, "chat completions": "x_gateway", "responses": "x_gateway", "messages": "x_gateway"}
all_formats = pytest.mark.parametrize("name", FORMATS)


async def send(
    gateway: Gateway, name: str, *, own: bool, header: str | None = None, model: str = MODEL, **extra: Any
) -> Reply:
    """Send a request; `own` adds a tool of the client."""
    path, body, tool = FORMATS[name]
    headers = {"X-Gateway-Tools": header} if header else {}
    reply = await gateway.post(
        path, body | {"model": model} | ({"tools": [tool]} if own else {}) | extra, headers=headers
    )
    assert reply.status == 200, reply.body
    return reply


def get_offered(simulator: Simulator) -> set[str]:
    """Return the tools' names in the last request to the model."""
    return {tool["function"]["name"] for tool in simulator.requests[-1].get("tools", [])}


@all_formats
async def test_client_with_tools_gets_its_own_alone_unless_it_asks(gateway: Gateway, name: str) -> None:
    await send(gateway, name, own=True)
    assert get_offered(gateway.simulator) == {"get_weather"}
    await send(gateway, name, own=False)
    assert {"calculator", "add_task"} <= get_offered(gateway.simulator)
    await send(gateway, name, own=True, header="all")
    assert {"get_weather", "calculator", "add_task"} <= get_offered(gateway.simulator)
    await send(gateway, name, own=True, header="calculator")
    assert get_offered(gateway.simulator) == {"get_weather", "calculator"}
    await send(gateway, name, own=False, header="none")
    assert get_offered(gateway.simulator) == set()


@pytest.mark.parametrize("name", [name for name, field in BODY_FIELD.items() if field])
async def test_body_offers_gateway_tools_beside_those_of_the_client(gateway: Gateway, name: str) -> None:
    await send(gateway, name, own=True, x_gateway={"tools": ["calculator"]})
    assert get_offered(gateway.simulator) == {"get_weather", "calculator"}
    await send(gateway, name, own=False, x_gateway={"tools": "none"})
    assert get_offered(gateway.simulator) == set()
    await send(gateway, name, own=True, header="none", x_gateway={"tools": "all"})
    assert get_offered(gateway.simulator) == {"get_weather"}


async def test_functions_are_tools_of_the_client_and_a_text_completion_has_none(gateway: Gateway) -> None:
    await send(gateway, "chat completions", own=False, functions=[FUNCTION])
    assert get_offered(gateway.simulator) == {"get_weather"}
    await send(gateway, "chat completions", own=False, header="calculator", functions=[FUNCTION])
    assert get_offered(gateway.simulator) == {"get_weather", "calculator"}
    await gateway.post("/v1/completions", {"model": MODEL, "prompt": "Hello."})
    assert "calculator" in get_offered(gateway.simulator)
    await gateway.post("/v1/completions", {"model": f"{MODEL}:plain", "prompt": "Hello."})
    assert get_offered(gateway.simulator) == set()


async def test_named_tools_of_a_native_request_are_the_offer(gateway: Gateway) -> None:
    await gateway.chat("Hello.", tools=["calculator", CHAT_TOOL])
    assert get_offered(gateway.simulator) == {"get_weather", "calculator"}
    await gateway.chat("Hello.", tools=[])
    assert get_offered(gateway.simulator) == set()


@all_formats
async def test_empty_list_of_tools_brings_none(gateway: Gateway, name: str) -> None:
    await send(gateway, name, own=False, tools=[])
    assert ("calculator" in get_offered(gateway.simulator)) is (name != "native")  # a native list is the offer


@pytest.mark.faults
@pytest.mark.parametrize(("setting", "own", "expected"), [("all", True, True), ("none", False, False)])
async def test_setting_decides_for_requests_that_say_nothing(
    database_url: str, simulator: Simulator, tools_url: str, setting: str, own: bool, expected: bool
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, gateway_tools=setting) as gateway:
        for name in FORMATS:
            await send(gateway, name, own=own)
            assert ("calculator" in get_offered(simulator)) is expected, name
        await send(gateway, "responses", own=own, header="none" if expected else "all")
        assert ("calculator" in get_offered(simulator)) is not expected


@pytest.mark.faults
async def test_key_overrides_the_setting(keyring: Keyring, gateway: Gateway) -> None:
    await keyring.create_key("eager", gateway_tools="all")
    await keyring.create_key("frugal", gateway_tools="none")
    for key, own, expected in (("eager", True, True), ("frugal", False, False)):
        for path, body, tool in FORMATS.values():
            request = body | {"model": MODEL} | ({"tools": [tool]} if own else {})
            assert (await gateway.post(path, request, headers=keyring.headers(key))).status == 200
            assert ("calculator" in get_offered(gateway.simulator)) is expected


@pytest.mark.faults
@all_formats
async def test_plain_model_is_the_model_without_gateway_tools(gateway: Gateway, name: str) -> None:
    await send(gateway, name, own=False, model=f"{MODEL}:plain", header="all")
    sent = gateway.simulator.requests[-1]
    assert (sent["model"], get_offered(gateway.simulator)) == (MODEL, set())
    await send(gateway, name, own=True, model=f"{MODEL}:plain")
    assert get_offered(gateway.simulator) == {"get_weather"}


@pytest.mark.faults
async def test_plain_models_are_listed_on_request_and_always_found(
    database_url: str, simulator: Simulator, tools_url: str, gateway: Gateway
) -> None:
    names = [model["id"] for model in (await gateway.get("/v1/models")).body["data"]]
    assert not any(name.endswith(":plain") for name in names)
    assert (await gateway.get(f"/v1/models/{MODEL}:plain")).body["id"] == f"{MODEL}:plain"
    async with serve_gateway(database_url, simulator, tools_url, list_plain_models=True) as listing:
        listed = [model["id"] for model in (await listing.get("/v1/models")).body["data"]]
        assert listed == names + [f"{name}:plain" for name in names]
        headers = {"anthropic-version": "2023-06-01"}
        shaped = (await listing.get("/v1/models", headers=headers)).body["data"]
        assert {model["id"] for model in shaped} == set(listed)
    assert (await gateway.get("/v1/models/camel:plain")).status == 404


def build_task_request(task: str, output: str) -> JsonObject:
    """Build a request in the form of Open WebUI's background calls."""
    history = "USER: Add a task to buy milk\nASSISTANT: I added the task."
    prompt = (
        f"### Task:\n{task}\n### Guidelines:\n- Use the language of the chat.\n- Answer with the JSON object alone.\n"
        f"### Output:\nJSON format: {output}\n### Chat History:\n<chat_history>\n{history}\n</chat_history>"
    )
    return {"messages": [{"role": "user", "content": prompt}], "stream": False, "max_completion_tokens": 1000}


OPEN_WEBUI_TASKS = {
    "title": build_task_request("Generate a short title that summarizes the chat.", '{ "title": "your title" }'),
    "tags": build_task_request("Generate 1-3 broad tags of the main themes.", '{ "tags": ["tag1", "tag2"] }'),
    "summary": build_task_request("Summarize the chat for a person who reads on.", '{ "summary": "your summary" }'),
    "follow-ups": build_task_request("Suggest 3-5 questions that may follow.", '{ "follow_ups": ["Question 1?"] }'),
}


@pytest.mark.faults
@pytest.mark.parametrize("task", OPEN_WEBUI_TASKS)
async def test_open_webui_task_at_a_plain_model_changes_nothing(
    gateway: Gateway, db: asyncpg.Connection, task: str
) -> None:
    reply = await gateway.post("/v1/chat/completions", {"model": f"{MODEL}:plain", **OPEN_WEBUI_TASKS[task]})
    assert (reply.status, reply.body["choices"][0]["finish_reason"]) == (200, "stop")
    assert "tool_calls" not in reply.body["x_gateway"] or not reply.body["x_gateway"]["tool_calls"]
    assert len(gateway.simulator.requests) == 1
    assert await db.fetchval("SELECT count(*) FROM tool_calls") == 0


# --- tool_choice


ALLOWED_CHAT = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
}
ALLOWED_RESPONSES = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "get_weather"}],
}
CHOICES: list[tuple[str, Any]] = [
    ("native", "required"),
    ("native", ALLOWED_CHAT),
    ("native", ALLOWED_RESPONSES),
    ("chat completions", "required"),
    ("chat completions", ALLOWED_CHAT),
    ("responses", "required"),
    ("responses", ALLOWED_RESPONSES),
    ("messages", {"type": "any"}),
]


@pytest.mark.faults
@pytest.mark.parametrize(("name", "choice"), CHOICES)
async def test_required_call_is_one_of_the_client(
    gateway: Gateway, db: asyncpg.Connection, name: str, choice: Any
) -> None:
    await send(gateway, name, own=True, header="all", tool_choice=choice)
    assert get_offered(gateway.simulator) == {"get_weather"}
    assert gateway.simulator.requests[-1]["tool_choice"] == "required"
    calls = await db.fetch("SELECT tool, outcome FROM tool_calls")
    assert [tuple(call) for call in calls] == [("get_weather", "client")]


async def test_required_call_stays_required_until_the_client_has_one(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(
        Fault(kind="tool_calls", calls=[{"name": "calculator", "arguments": {"expression": "1+1"}}])
    )
    reply = await send(gateway, "chat completions", own=True, header="all", tool_choice="required")
    choice = reply.body["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    assert [request["tool_choice"] for request in gateway.simulator.requests] == ["required", "required"]


async def test_allowed_tools_alone_are_on_offer(gateway: Gateway) -> None:
    named = {"type": "function", "function": {"name": "calculator"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    await send(gateway, "chat completions", own=True, header="all", tool_choice=choice)
    assert (get_offered(gateway.simulator), gateway.simulator.requests[-1]["tool_choice"]) == ({"calculator"}, "auto")
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "tools"}]}
    await send(gateway, "responses", own=True, header="all", tool_choice=choice)
    assert {"calculator", "add_task"} <= get_offered(gateway.simulator)
    assert "get_weather" not in get_offered(gateway.simulator)


async def test_required_call_without_client_tools_is_one_of_the_gateway(gateway: Gateway) -> None:
    await send(gateway, "chat completions", own=False, tool_choice="required")
    assert gateway.simulator.requests[0]["tool_choice"] == "required"
    assert "calculator" in {tool["function"]["name"] for tool in gateway.simulator.requests[0]["tools"]}

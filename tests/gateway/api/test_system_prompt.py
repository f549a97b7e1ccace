"""Tests of the system prompt, and of message indexes in errors."""

from typing import Any

import pytest

from gateway.agent.prompt import PROMPT_WITHOUT_TOOLS, RESULTS_ARE_DATA, SYSTEM_PROMPT
from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from tests.stack import Gateway, JsonObject, serve_gateway

pytestmark = pytest.mark.faults

OWN = "Answer like a camel."
USER: JsonObject = {"role": "user", "content": "Hello."}
WITH_OWN: dict[str, tuple[str, JsonObject]] = {
    "chat completions": ("/v1/chat/completions", {"messages": [{"role": "system", "content": OWN}, USER]}),
    "developer": ("/v1/chat/completions", {"messages": [{"role": "developer", "content": OWN}, USER]}),
    "responses": ("/v1/responses", {"input": "Hello.", "instructions": OWN}),
    "messages": ("/v1/messages", {"messages": [USER], "max_tokens": 50, "system": OWN}),
    "native": ("/api/v1/chat", {"messages": [USER], "system": OWN}),
}
NO_TOOLS = {"X-Gateway-Tools": "none"}


def get_system_prompt(simulator: Simulator) -> str | None:
    head = simulator.requests[-1]["messages"][0]
    return head["content"] if head["role"] == "system" else None


@pytest.mark.parametrize("name", WITH_OWN)
async def test_built_in_prompt_is_sent_only_without_one_of_the_client(gateway: Gateway, name: str) -> None:
    path, body = WITH_OWN[name]
    assert (await gateway.post(path, body, headers=NO_TOOLS)).status == 200
    assert get_system_prompt(gateway.simulator) == OWN
    assert (await gateway.post(path, body)).status == 200
    prompt = get_system_prompt(gateway.simulator) or ""
    assert prompt.startswith(RESULTS_ARE_DATA)
    assert prompt.endswith(OWN)
    assert "helpful assistant" not in prompt


async def test_request_without_a_system_prompt_gets_the_built_in_one(gateway: Gateway) -> None:
    await gateway.chat("Hello.")
    prompt = get_system_prompt(gateway.simulator) or ""
    assert prompt.startswith(SYSTEM_PROMPT)
    assert prompt.count(RESULTS_ARE_DATA) == 1
    await gateway.chat("Hello.", tools=[])
    assert get_system_prompt(gateway.simulator) == PROMPT_WITHOUT_TOOLS


async def test_policy_always_sends_the_built_in_prompt_before_that_of_the_client(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, system_prompt_policy="always") as gateway:
        for path, body in WITH_OWN.values():
            await gateway.post(path, body)
            prompt = get_system_prompt(simulator) or ""
            assert prompt.startswith(SYSTEM_PROMPT)
            assert prompt.endswith(OWN)


@pytest.mark.parametrize("policy", ["fallback", "always"])
async def test_prompt_of_the_operator_is_always_first(
    database_url: str, simulator: Simulator, tools_url: str, policy: str
) -> None:
    settings: dict[str, Any] = {"agent_system_prompt": "We sell milk.", "system_prompt_policy": policy}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        for path, body in WITH_OWN.values():
            await gateway.post(path, body)
            prompt = get_system_prompt(simulator) or ""
            assert prompt.startswith(f"We sell milk.\n\n{RESULTS_ARE_DATA}")
            assert prompt.endswith(OWN)
            await gateway.post(path, body, headers=NO_TOOLS)
            assert get_system_prompt(simulator) == f"We sell milk.\n\n{OWN}"


# --- indexes of messages in errors


@pytest.mark.parametrize("form", ["messages.{}.content", "messages[{}].content", "messages.[{}].content"])
@pytest.mark.parametrize("has_system", [False, True])
async def test_error_of_the_models_server_names_the_clients_message(
    gateway: Gateway, form: str, has_system: bool
) -> None:
    texts = [{"role": "user", "content": f"Hello {number}."} for number in range(3)]
    messages = [*([{"role": "system", "content": OWN}] if has_system else []), *texts]
    for client_index, text in enumerate(messages):
        sent_index = client_index if has_system else client_index + 1  # after the gateway's own message
        if text["role"] == "system":
            continue
        error = {"message": f"'{form.format(sent_index)}': bad", "type": "invalid_request_error"}
        gateway.simulator.faults.add_faults(Fault(kind="status", status=400, body={"error": error}))
        reply = await gateway.post("/v1/chat/completions", {"messages": messages})
        assert reply.status == 400
        assert f"'{form.format(client_index)}': bad" in reply.body["error"]["message"]
        assert reply.body["error"]["param"] == f"messages.{client_index}"


CALL_ID = "call_1"
ANTHROPIC_MESSAGES: list[JsonObject] = [
    USER,
    {"role": "assistant", "content": [{"type": "tool_use", "id": CALL_ID, "name": "get_weather", "input": {}}]},
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": CALL_ID, "content": "Sunny."},
            {"type": "text", "text": "And now?"},
        ],
    },
]
RESPONSES_ITEMS: list[JsonObject] = [
    USER,
    {"type": "function_call", "call_id": CALL_ID, "name": "get_weather", "arguments": "{}"},
    {"type": "function_call", "call_id": "call_2", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": CALL_ID, "output": "Sunny."},
    {"type": "function_call_output", "call_id": "call_2", "output": "Rainy."},
]
NAMED: list[tuple[str, JsonObject, list[str | None]]] = [
    (
        "/v1/messages",
        {"messages": ANTHROPIC_MESSAGES, "system": OWN, "max_tokens": 9},
        ["system", "messages.0", "messages.1", "messages.2", "messages.2"],
    ),
    ("/v1/messages", {"messages": ANTHROPIC_MESSAGES, "max_tokens": 9}, [None, "messages.0", "messages.1"]),
    ("/v1/responses", {"input": "Hello."}, [None, "input"]),
    ("/v1/responses", {"input": RESPONSES_ITEMS, "instructions": OWN}, [None, "input.0", "input.1", "input.3"]),
    (
        "/v1/chat/completions",
        {"messages": [USER, {"role": "system", "content": OWN}, USER]},
        ["messages.1", "messages.0", "messages.2"],  # the gateway sends system messages first
    ),
]


@pytest.mark.faults
@pytest.mark.parametrize(("path", "body", "names"), NAMED)
async def test_error_of_the_models_server_has_the_clients_name_of_its_message(
    gateway: Gateway, path: str, body: JsonObject, names: list[str | None]
) -> None:
    for sent_index, name in enumerate(names):
        error = {"message": f"'messages[{sent_index}].content': bad", "type": "invalid_request_error"}
        gateway.simulator.faults.add_faults(Fault(kind="status", status=400, body={"error": error}))
        message = (await gateway.post(path, body)).body["error"]["message"]
        list_name, _, number = (name or "messages").rpartition(".")
        assert f"'{f'{list_name}[{number}]' if list_name else number}.content': bad" in message


async def test_error_about_a_message_of_the_gateway_names_no_index(gateway: Gateway) -> None:
    error = {"message": "'messages.0.content': bad", "type": "invalid_request_error"}
    gateway.simulator.faults.add_faults(Fault(kind="status", status=400, body={"error": error}))
    reply = await gateway.post("/v1/chat/completions", {"messages": [USER]})
    assert "'messages.content': bad" in reply.body["error"]["message"]

"""Requests in the forms that SDKs' own types permit."""

import json
from typing import Any, get_type_hints

import anthropic
import groq.types.chat.completion_create_params as groq_chat
import openai.types.chat.completion_create_params as openai_chat
import openai.types.responses.response_create_params as openai_response
import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params

from gateway.simulator import Simulator
from tests.stack import Gateway

MESSAGE: Any = {"role": "user", "content": "Hello."}
SDK_TYPES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "openai chat": ("/v1/chat/completions", {"messages": [MESSAGE]}, openai_chat.CompletionCreateParamsBase),
    "groq chat": ("/openai/v1/chat/completions", {"messages": [MESSAGE]}, groq_chat.CompletionCreateParams),
    "openai response": ("/v1/responses", {"input": "Hello."}, openai_response.ResponseCreateParamsBase),
    "anthropic": (
        "/v1/messages",
        {"messages": [MESSAGE], "max_tokens": 50},
        message_create_params.MessageCreateParamsBase,
    ),
    "anthropic beta": (
        "/v1/messages?beta=true",
        {"messages": [MESSAGE], "max_tokens": 50},
        beta_message_create_params.MessageCreateParamsBase,
    ),
}
LONG_NAME = f"mcp__{'a_server_of_the_client__' * 3}get_weather"
CUSTOM_CALL = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"}
CUSTOM_RESULT = {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done."}


@pytest.mark.parametrize(("path", "body", "sdk_type"), SDK_TYPES.values(), ids=SDK_TYPES)
async def test_null_is_taken_in_every_field_that_the_sdk_knows(
    shared_gateway: Gateway, path: str, body: dict[str, Any], sdk_type: Any
) -> None:
    nulls = dict.fromkeys(set(get_type_hints(sdk_type)) - set(body))
    assert len(nulls) > 10
    reply = await shared_gateway.post(path, nulls | body)
    assert reply.status == 200, reply.body
    assert "not known" not in reply.headers.get("x-gateway-warnings", "")


@pytest.mark.parametrize("arguments", ["", " ", "null", "{", "[]"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_call_without_valid_arguments_reaches_the_model_as_an_empty_object(
    gateway: Gateway, path: str, arguments: str
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [MESSAGE, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1"}]
    messages[-1]["content"] = "Error: these are no arguments."
    item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments}
    items = [MESSAGE, item, {"type": "function_call_output", "call_id": "c1", "output": "Error."}]
    reply = await gateway.post(path, {"messages": messages} if "chat" in path else {"input": items})
    assert reply.status == 200, reply.body
    sent = next(message for message in gateway.simulator.requests[-1]["messages"] if message.get("tool_calls"))
    assert sent["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_unknown_fields_of_messages_are_ignored_with_a_warning(shared_gateway: Gateway) -> None:
    messages = [
        MESSAGE | {"mood": "good", "tags": []},
        {"role": "assistant", "content": "x", "signature": "s"},
        MESSAGE,
    ]
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": messages})
    assert reply.status == 200, reply.body
    assert reply.headers["x-gateway-warnings"].endswith("were ignored: mood, signature.")


@pytest.mark.parametrize("name", ["images", "files", "attachments", "parts"])
async def test_content_in_a_field_of_another_api_is_refused(shared_gateway: Gateway, name: str) -> None:
    body = {"messages": [MESSAGE | {name: ["iVBORw0KGgo="]}]}
    error = (await shared_gateway.post("/v1/chat/completions", body)).body["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", f"messages.0.{name}")


async def test_history_of_openais_tools_is_taken(gateway: Gateway) -> None:
    """Clients that change their server within a chat bring such items."""
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    body = {"input": [MESSAGE, search, CUSTOM_CALL, CUSTOM_RESULT, MESSAGE]}
    reply = await gateway.post("/v1/responses", body)
    assert reply.status == 200, reply.body
    assert "web_search_call" in reply.headers["x-gateway-warnings"]
    sent = gateway.simulator.requests[-1]["messages"]
    call = next(message["tool_calls"][0]["function"] for message in sent if message.get("tool_calls"))
    assert (call["name"], json.loads(call["arguments"])) == ("apply_patch", {"input": "*** Begin Patch"})
    assert "Done." in str(sent)


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "name": "f", "allowed_callers": ["direct"], "output_schema": {"type": "object"}},
        {"type": "mcp", "server_label": "tools", "allowed_callers": None, "connector_id": None, "tunnel_id": None},
    ],
)
async def test_fields_of_tools_that_change_nothing_are_taken(shared_gateway: Gateway, tool: dict[str, Any]) -> None:
    reply = await shared_gateway.post("/v1/responses", {"input": "Hello.", "tools": [tool]})
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("slash", ["", "/"])
async def test_server_is_selected_by_its_url_without_a_label(gateway: Gateway, tools_url: str, slash: str) -> None:
    tools = [{"type": "mcp", "server_url": f"{tools_url}{slash}", "allowed_tools": ["calculator"]}]
    reply = await gateway.post("/v1/responses", {"input": "What is 23*19?", "tools": tools})
    assert "437" in str(reply.body["output"]), reply.body


async def test_choice_of_a_server_requires_one_of_its_tools(gateway: Gateway) -> None:
    choice = {"type": "mcp", "server_label": "tools"}
    reply = await gateway.post("/v1/responses", {"input": "Hello.", "tool_choice": choice})
    assert reply.status == 200, reply.body
    assert gateway.simulator.requests[0]["tool_choice"] == "required"
    assert "mcp_call" in [item["type"] for item in reply.body["output"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"tool_choice": {"type": "function", "function": {"name": "absent"}}}),
        ("/v1/messages", {"max_tokens": 50, "tool_choice": {"type": "tool", "name": "absent"}}),
        ("/v1/responses", {"input": "Hello.", "tool_choice": {"type": "function", "name": "absent"}}),
    ],
)
async def test_choice_of_a_tool_that_is_not_on_offer_is_refused(
    shared_gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    reply = await shared_gateway.post(path, body if "input" in body else {"messages": [MESSAGE], **body})
    assert (reply.status, reply.body["error"]["param"]) == (400, "tool_choice")
    assert "absent" in reply.body["error"]["message"]


# --- Anthropic


async def test_long_names_of_tools_are_shortened_for_the_models_server_alone(
    gateway: Gateway, simulator: Simulator
) -> None:
    """Claude Code names tools of its MCP servers so."""
    tool: Any = {"name": LONG_NAME, "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    question: Any = {"role": "user", "content": "The weather in Oslo?"}
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key="none", max_retries=0) as client:
        ask: Any = client.messages.create
        choice = {"type": "tool", "name": LONG_NAME}
        asked = await ask(model="claude-x", max_tokens=500, messages=[question], tools=[tool], tool_choice=choice)
        assert [(block.type, block.name) for block in asked.content] == [("tool_use", LONG_NAME)]
        result = {"type": "tool_result", "tool_use_id": asked.content[0].id, "content": "It snows in Oslo."}
        history = [question, {"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
        answer = await ask(model="claude-x", max_tokens=500, messages=history, tools=[tool])
    assert "It snows in Oslo." in answer.content[-1].text
    short = simulator.requests[-1]["tools"][0]["function"]["name"]
    assert (len(short) <= 64, short != LONG_NAME) == (True, True)
    call = next(message["tool_calls"][0] for message in simulator.requests[-1]["messages"] if "tool_calls" in message)
    assert call["function"]["name"] == simulator.requests[0]["tool_choice"]["function"]["name"] == short


@pytest.mark.parametrize("name", ["thread", "compaction"])
async def test_state_at_anthropic_is_refused_by_name(shared_gateway: Gateway, name: str) -> None:
    body = {"messages": [MESSAGE], "max_tokens": 50, name: {"type": "continue"}}
    error = (await shared_gateway.post("/v1/messages", body)).body["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", name)


async def test_text_of_a_compaction_stands_for_the_messages_before_it(gateway: Gateway) -> None:
    block = {"type": "compaction", "content": "The user likes camels."}
    messages = [{"role": "assistant", "content": [block]}, MESSAGE]
    reply = await gateway.post("/v1/messages", {"messages": messages, "max_tokens": 50})
    assert reply.status == 200, reply.body
    assert "The user likes camels." in str(gateway.simulator.requests[-1]["messages"])


async def test_mapped_name_of_a_model_can_be_read(gateway: Gateway) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key="none", max_retries=0) as client:
        assert (await client.models.retrieve("claude-sonnet-5")).id == "claude-sonnet-5"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("no-such-model")

"""Variants of OpenAI's chat completions.

Fields of SDKs, Groq's clients, functions, and text completions.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

import groq
import openai
import pytest

from tests.stack import Gateway

MODEL = "openai/gpt-oss-120b"
USER: Any = {"role": "user", "content": "What is 23*19?"}
CALL_WEATHER: Any = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ADDED: dict[str, Any] = {
    "parsed": {"answer": 1},
    "provider_specific_fields": {"a": None},
    "cache_control": {"type": "ephemeral"},
    "reasoning_details": [{"type": "reasoning.text", "text": "x"}],
    "thinking_blocks": [{"type": "thinking", "thinking": "x", "signature": ""}],
    "id": "msg_1",
    "metadata": {"a": 1},
    "tool_calls": [],
    "function_call": None,
    "response_metadata": {"a": 1},
}


@pytest.fixture
async def client(shared_gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{shared_gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def groq_client(shared_gateway: Gateway) -> AsyncGenerator[groq.AsyncGroq]:
    async with groq.AsyncGroq(base_url=shared_gateway.base_url, api_key="none", max_retries=0) as client:
        yield client


async def create(client: Any, *messages: Any, **options: Any) -> Any:
    return await client.chat.completions.create(model=MODEL, messages=messages or [USER], **options)


async def test_fields_that_sdks_add_to_messages_are_taken(shared_gateway: Gateway) -> None:
    call = {
        "id": "call_1",
        "type": None,
        "index": 0,
        "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}', "parsed_arguments": {"city": "Oslo"}},
    }
    messages = [
        {"role": "system", "content": "Be kind.", **ADDED},
        {"role": "user", "content": "Weather?", **ADDED},
        {"role": "assistant", "content": None, **ADDED, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Snow.", **ADDED},
        {"role": "assistant", "content": "Snow.", **ADDED},
        USER | ADDED,
    ]
    reply = await shared_gateway.post("/v1/chat/completions", {"messages": messages})
    assert reply.status == 200, reply.body
    assert "437" in reply.body["choices"][0]["message"]["content"]


@pytest.mark.parametrize("empty", [None, []])
async def test_null_and_an_empty_list_are_no_value(shared_gateway: Gateway, empty: Any) -> None:
    document = (await shared_gateway.get("/openapi.json")).body
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    optional = {*fields, "max_tokens", "audio", "documents", "search_settings"} - {"messages"}
    body: dict[str, Any] = {"messages": [USER], **dict.fromkeys(optional, empty)}
    reply = await shared_gateway.post("/v1/chat/completions", body)
    assert reply.status == 200, reply.body


async def test_null_in_options_is_no_value(shared_gateway: Gateway) -> None:
    options = dict.fromkeys(["tools", "conversation_id", "parent_turn_id", "approval", "on_disconnect", "cache"])
    body: dict[str, Any] = {"messages": [USER], "x_gateway": options, "stream_options": {"include_usage": None}}
    assert (await shared_gateway.post("/v1/chat/completions", body)).status == 200


async def test_prediction_changes_nothing_and_web_search_is_left_out_with_a_warning(client: openai.AsyncOpenAI) -> None:
    prediction: Any = {"type": "content", "content": "437"}
    answer = await create(client, prediction=prediction, web_search_options={}, service_tier="flex")
    (warning,) = answer.model_extra["x_gateway"]["warnings"]
    assert "web_search_options" in warning


async def test_answers_have_a_service_tier(client: openai.AsyncOpenAI, groq_client: groq.AsyncGroq) -> None:
    assert (await create(client)).service_tier == "default"
    assert [chunk.service_tier async for chunk in await create(client, stream=True)][-1] == "default"
    assert (await create(groq_client)).service_tier == "on_demand"


async def test_stream_to_a_groq_client_has_usage_in_its_last_chunk(
    client: openai.AsyncOpenAI, groq_client: groq.AsyncGroq
) -> None:
    chunks = [chunk async for chunk in await create(groq_client, stream=True)]
    first, last = chunks[0].x_groq, chunks[-1].x_groq
    assert first.id == last.id
    assert first.id.startswith("req_")
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0
    assert [chunk for chunk in chunks[1:-1] if chunk.x_groq] == []
    by_header = [c async for c in await create(client, stream=True, extra_headers={"User-Agent": "ai-sdk/groq/4.0"})]
    assert by_header[-1].model_extra["x_groq"]["usage"]["total_tokens"] > 0
    others = [chunk async for chunk in await create(client, stream=True)]
    assert not any("x_groq" in chunk.model_extra for chunk in others)


@pytest.mark.parametrize("stream", [False, True])
async def test_function_is_called_and_its_result_is_read(client: openai.AsyncOpenAI, stream: bool) -> None:
    if stream:
        chunks = [c async for c in await create(client, CALL_WEATHER, functions=[WEATHER], stream=True)]
        (call,) = [c.choices[0].delta.function_call for c in chunks if c.choices[0].delta.function_call]
        reason = chunks[-1].choices[0].finish_reason
    else:
        (choice,) = (await create(client, CALL_WEATHER, functions=[WEATHER], function_call="auto")).choices
        call, reason = choice.message.function_call, choice.finish_reason
        assert choice.message.tool_calls is None
    assert (call.name, json.loads(call.arguments), reason) == ("get_weather", {"city": "Oslo"}, "function_call")
    message = {"role": "assistant", "content": None, "function_call": call.model_dump()}
    result = {"role": "function", "name": "get_weather", "content": "It snows."}
    answer = await create(client, CALL_WEATHER, message, result, functions=[WEATHER])
    assert "It snows." in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


async def test_function_call_that_is_named_is_made(client: openai.AsyncOpenAI) -> None:
    answer = await create(client, USER, functions=[WEATHER], function_call={"name": "get_weather"})
    assert answer.choices[0].message.function_call.name == "get_weather"


async def test_functions_and_tools_together_are_refused(shared_gateway: Gateway) -> None:
    tools = [{"type": "function", "function": WEATHER}]
    body = {"messages": [USER], "functions": [WEATHER], "tools": tools}
    error = (await shared_gateway.post("/v1/chat/completions", body)).body["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "functions")


async def test_result_without_a_function_call_is_refused(shared_gateway: Gateway) -> None:
    messages = [{"role": "function", "name": "f", "content": "x"}]
    error = (await shared_gateway.post("/v1/chat/completions", {"messages": messages})).body["error"]
    assert error["param"] == "messages.0.name"


# --- text completions


async def test_prompt_is_answered_as_a_turn(client: openai.AsyncOpenAI, shared_gateway: Gateway) -> None:
    answer = await client.completions.create(model=MODEL, prompt="What is 23*19?", echo=True)
    (choice,) = answer.choices
    assert choice.text.startswith("What is 23*19?")
    assert "437" in choice.text
    assert (answer.object, choice.finish_reason, choice.logprobs) == ("text_completion", "stop", None)
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    turn = await shared_gateway.get(f"/api/v1/turns/{answer.model_extra['x_gateway']['turn_id']}")  # pyright: ignore[reportOptionalSubscript]
    assert turn.body["prompt"] == "What is 23*19?"


async def test_streamed_text_equals_the_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model=MODEL, prompt=["What is 23*19?"])
    stream = await client.completions.create(
        model=MODEL, prompt="What is 23*19?", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert {(chunk.id, chunk.object) for chunk in chunks} == {(chunks[0].id, "text_completion")}
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", ["a", "b"]), ("prompt", [1, 2]), ("n", 2), ("best_of", 3), ("suffix", "x"), ("logprobs", 1)],
)
async def test_unsupported_field_of_a_text_completion_is_refused(
    shared_gateway: Gateway, field: str, value: Any
) -> None:
    reply = await shared_gateway.post("/v1/completions", {"prompt": "x", field: value})
    error = reply.body["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "unsupported_parameter", field)

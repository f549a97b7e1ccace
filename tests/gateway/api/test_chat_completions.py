"""`/v1/chat/completions` with common clients: the SDKs of OpenAI and Groq, and LangChain."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import groq
import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from gateway.simulator import Fault, Simulator
from tests.stack import Gateway, serve_gateway

USER: Any = {"role": "user", "content": "What is 23*19?"}
MODEL = "openai/gpt-oss-120b"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

ALL_TOOLS = {"X-Gateway-Tools": "all"}


@pytest.fixture
async def client(gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def create_completion(client: Any, *messages: Any, **options: Any) -> Any:
    return await client.chat.completions.create(model=MODEL, messages=messages or [USER], **options)


async def stream_chunks(client: Any, *messages: Any, **options: Any) -> list[Any]:
    return [chunk async for chunk in await create_completion(client, *messages, stream=True, **options)]


def join_text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_gateway_tool_calls_are_not_returned_as_tool_calls(client: openai.AsyncOpenAI) -> None:
    answer = await create_completion(client)
    message = answer.choices[0].message
    assert "437" in message.content
    assert message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    (tool_call,) = answer.model_extra["x_gateway"]["tool_calls"]
    assert (tool_call["tool"], tool_call["arguments"], tool_call["outcome"]) == (
        "calculator",
        {"expression": "23*19"},
        "ok",
    )


async def test_stream_chunks_share_one_id_and_equal_the_full_response(client: openai.AsyncOpenAI) -> None:
    chunks = await stream_chunks(client, stream_options={"include_usage": True})
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [c.delta.role for c in choices if c.delta.role] == ["assistant"]
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    assert not any(c.delta.tool_calls for c in choices)
    assert join_text(chunks) == (await create_completion(client)).choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert [c for c in chunks[:-1] if c.usage] == []
    event_types = [
        c.model_extra["x_gateway"]["event"]["type"] for c in chunks if "event" in c.model_extra.get("x_gateway", {})
    ]
    assert event_types == ["tool.call", "tool.result"]


async def test_turn_is_stored_unless_store_is_false(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    answer = await create_completion(client, user="a label", metadata={"case": "7"})
    turn = (await gateway.get(f"/api/v1/turns/{answer.model_extra['x_gateway']['turn_id']}")).body
    assert (turn["user_label"], turn["response"]) == ("a label", answer.choices[0].message.content)
    assert json.loads(await db.fetchval("SELECT options FROM turns"))["metadata"] == {"case": "7"}
    await create_completion(client, {"role": "user", "content": "a secret"}, store=False)
    assert await db.fetchval("SELECT count(*) FROM turns WHERE prompt LIKE '%secret%'") == 0


async def test_client_can_send_back_the_full_message_history(client: openai.AsyncOpenAI) -> None:
    first = await create_completion(client, {"role": "user", "content": "My name is Ada."})
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "My name is Ada."},
        first.choices[0].message.model_dump(),
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    assert "Ada" in (await create_completion(client, *messages)).choices[0].message.content


# --- client-side tools


async def test_client_side_tool_call_round_trip(client: openai.AsyncOpenAI) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await create_completion(client, prompt, tools=[WEATHER])
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "It snows."}
    second = await create_completion(client, prompt, first.choices[0].message.model_dump(), result, tools=[WEATHER])
    assert "It snows." in second.choices[0].message.content
    assert second.choices[0].finish_reason == "stop"


async def test_gateway_and_client_tools_in_one_step_keep_all_results(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    calls: Any = [
        {"name": "calculator", "arguments": {"expression": "23*19"}},
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
    ]
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))
    chunks = await stream_chunks(client, tools=[WEATHER], extra_headers=ALL_TOOLS)
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "get_weather")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert [tuple(row) for row in await db.fetch("SELECT tool, outcome FROM tool_calls ORDER BY tool")] == [
        ("calculator", "ok"),
        ("get_weather", "client"),
    ]
    assistant_message = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": call.function.model_dump()}],
    }
    await create_completion(
        client, USER, assistant_message, {"role": "tool", "tool_call_id": call.id, "content": "Snow."}, tools=[WEATHER]
    )
    sent = gateway.simulator.requests[-1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool"]
    assert [c["function"]["name"] for c in sent[2]["tool_calls"]] == ["calculator", "get_weather"]
    assert "437" in sent[3]["content"]
    assert sent[4]["content"] == "Snow."


async def test_tool_history_of_another_user_is_not_restored(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await create_completion(client, prompt, tools=[WEATHER])
    await db.execute("UPDATE turns SET owner = 'another user', messages = messages || '[{\"role\": \"assistant\"}]'")
    (call,) = first.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Snow."}
    await create_completion(client, prompt, first.choices[0].message.model_dump(), result, tools=[WEATHER])
    assert len(gateway.simulator.requests[-1]["messages"]) == 4


async def test_tool_call_without_a_result_is_reported_to_the_model(
    client: openai.AsyncOpenAI, gateway: Gateway
) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await create_completion(client, prompt, tools=[WEATHER])
    await create_completion(
        client, prompt, first.choices[0].message.model_dump(), {"role": "user", "content": "Never mind."}
    )
    assert "no result" in gateway.simulator.requests[-1]["messages"][-2]["content"]


@pytest.mark.parametrize(
    ("choice", "expected_call"),
    [
        ({"type": "function", "function": {"name": "get_weather"}}, "get_weather"),
        ({"type": "function", "function": {"name": "list_tasks"}}, None),
        ("none", None),
    ],
)
async def test_tool_choice_applies_to_client_and_gateway_tools(
    client: openai.AsyncOpenAI, choice: Any, expected_call: str | None
) -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": choice, "extra_headers": ALL_TOOLS}
    answer = await create_completion(client, {"role": "user", "content": "Hello"}, **options)
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ([expected_call] if expected_call else [])
    gateway_calls = answer.model_extra["x_gateway"].get("tool_calls", [])
    assert [call["tool"] for call in gateway_calls] == (["list_tasks"] if "list_tasks" in str(choice) else [])


@pytest.mark.parametrize(
    ("options", "expected_tools"),
    [
        ({"extra_headers": {"X-Gateway-Tools": "none"}}, set()),
        ({"extra_headers": {"X-Gateway-Tools": "calculator, list_tasks"}}, {"calculator", "list_tasks"}),
        ({"extra_body": {"x_gateway": {"tools": "none"}}}, set()),
        ({"extra_body": {"x_gateway": {"tools": ["calculator"]}}}, {"calculator"}),
        (
            {"extra_headers": {"X-Gateway-Tools": "none"}, "extra_body": {"x_gateway": {"tools": ["calculator"]}}},
            set(),
        ),
    ],
)
async def test_gateway_tools_are_selected_by_header_or_body(
    client: openai.AsyncOpenAI, gateway: Gateway, options: Any, expected_tools: set[str]
) -> None:
    await create_completion(client, **options)
    sent_tools = gateway.simulator.requests[-1].get("tools", [])
    assert {tool["function"]["name"] for tool in sent_tools} == expected_tools


async def test_client_tool_takes_precedence_over_a_gateway_tool_of_the_same_name(client: openai.AsyncOpenAI) -> None:
    client_tool = {"type": "function", "function": {**WEATHER["function"], "name": "calculator"}}
    answer = await create_completion(client, tools=[client_tool])
    assert answer.choices[0].message.tool_calls[0].function.name == "calculator"


# --- structured outputs


class SumAnswer(BaseModel):
    expression: str
    value: int


@pytest.mark.parametrize("tools", ["all", "none"])
async def test_answer_after_tool_calls_matches_the_schema(
    client: openai.AsyncOpenAI, gateway: Gateway, tools: str
) -> None:
    parsed = await client.chat.completions.parse(
        model=MODEL, messages=[USER], response_format=SumAnswer, extra_headers={"X-Gateway-Tools": tools}
    )
    assert isinstance(parsed.choices[0].message.parsed, SumAnswer)
    requests = list(gateway.simulator.requests)
    assert "response_format" in requests[-1]
    assert "tools" not in requests[-1]
    gateway_calls = (parsed.model_extra or {})["x_gateway"].get("tool_calls", [])
    assert [call["tool"] for call in gateway_calls] == (["calculator"] if tools == "all" else [])


async def test_stream_of_a_structured_answer_contains_only_the_json(client: openai.AsyncOpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SumAnswer.model_json_schema()}}
    assert SumAnswer.model_validate_json(join_text(await stream_chunks(client, response_format=schema)))
    assert json.loads(join_text(await stream_chunks(client, response_format={"type": "json_object"})))


async def test_valid_draft_is_not_requested_again(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="text", text='{"answer": 42}'))
    answer = await create_completion(
        client, {"role": "user", "content": "Hello"}, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == {"answer": 42}
    assert len(gateway.simulator.requests) == 1


async def test_invalid_structured_output_is_retried_once_and_then_fails(
    client: openai.AsyncOpenAI, gateway: Gateway
) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SumAnswer.model_json_schema()}}
    options: Any = {"response_format": schema, "extra_headers": {"X-Gateway-Tools": "none"}}
    gateway.simulator.faults.add_faults(Fault(kind="text", text='{"expression": 1}'))
    assert SumAnswer.model_validate_json((await create_completion(client, **options)).choices[0].message.content)
    gateway.simulator.faults.add_faults(Fault(kind="text", text="no JSON", times=2))
    with pytest.raises(openai.InternalServerError) as error_info:
        await create_completion(client, **options)
    assert error_info.value.code == "structured_output_invalid"


# --- errors


INVALID_REQUESTS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
    ({"messages": "hello"}, "messages"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"n": 2}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"max_tokens": 0}, "max_"),
    ({"logprobs": True}, "logprobs"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"stop": list("abcde")}, "stop"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
    ({"frequency_penalty": 1.5}, "frequency_penalty"),
    ({"top_k": 5}, "top_k"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}}, "response_format"),
]


@pytest.mark.parametrize(("body", "param"), INVALID_REQUESTS, ids=lambda value: str(value)[:60])
async def test_invalid_request_is_a_400_in_the_openai_format_that_names_the_field(
    shared_gateway: Gateway, body: dict[str, Any], param: str | None
) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", {"model": MODEL, "messages": [USER], **body})
    assert reply.status == 400
    error = reply.body["error"]
    assert set(error) - {"x_gateway"} == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param or "")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/api/v1/chat", "/stream", "/api/chat/stream"]
)
async def test_oversized_requests_are_rejected_in_the_format_of_each_api(shared_gateway: Gateway, path: str) -> None:
    huge = await shared_gateway.post(path, {"prompt": "x" * 5_000_000})
    assert (huge.status, huge.body["error"]["code"]) == (413, "payload_too_large")
    assert ("type" in huge.body["error"]) is path.startswith("/v1/")
    messages = [{"role": "user", "content": "x"}] * 501
    many = await shared_gateway.post(path, {"messages": messages, "input": messages})
    assert many.status == (400 if path.startswith("/v1/") else 422)


async def test_invalid_json_and_unknown_routes_return_openai_errors(gateway: Gateway) -> None:
    async with gateway.session.post(f"{gateway.base_url}/v1/chat/completions", data=b"{") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (400, "invalid_request_error")
    assert (await gateway.get("/v1/no/such/route")).body["error"]["type"] == "invalid_request_error"


async def test_sdk_raises_the_matching_error_class(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="no-such-model", messages=[USER])
    assert not_found.value.code == "model_not_found"
    gateway.simulator.faults.add_faults(
        Fault(kind="status", status=429, headers={"retry-after": "30"}, body={"error": {}})
    )
    with pytest.raises(openai.RateLimitError) as rate_limited:
        await create_completion(client)
    assert rate_limited.value.response.headers["retry-after"] == "30"


async def test_mid_stream_failure_raises_in_the_sdk(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="cut", after_chunks=40))
    with pytest.raises(openai.APIError) as error_info:
        await stream_chunks(client, {"role": "user", "content": "count to 200"})
    assert error_info.value.code == "model_stream_broken"


async def test_sdk_api_key_is_accepted_as_a_bearer_token(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, api_key=SecretStr("the-right-key-16")) as gateway:
        for key, accepted in (("the-right-key-16", True), ("wrong", False)):
            async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
                if accepted:
                    assert (await client.models.retrieve(MODEL)).id == MODEL
                else:
                    with pytest.raises(openai.AuthenticationError):
                        await client.models.list()


async def test_models_are_listed_and_retrieved(client: openai.AsyncOpenAI) -> None:
    model_ids = [model.id async for model in client.models.list()]
    assert MODEL in model_ids
    assert (await client.models.retrieve(MODEL)).owned_by == "OpenAI"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such/model")


async def test_client_disconnect_cancels_the_turn(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="stall", after_chunks=40))
    stream = await create_completion(client, {"role": "user", "content": "count to 1000"}, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await gateway.simulator.wait_until(lambda simulator: simulator.cancelled_streams == 1)


async def test_idempotency_key_returns_the_same_turn(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    options = {"extra_headers": {"Idempotency-Key": "k1"}}
    assert (await create_completion(client, **options)).id == (await create_completion(client, **options)).id
    assert join_text(await stream_chunks(client, **options))
    assert await db.fetchval("SELECT count(*) FROM turns") == 1


async def test_turn_waiting_for_approval_ends_the_response_with_input_required(client: openai.AsyncOpenAI) -> None:
    options = {"extra_body": {"x_gateway": {"approval": "always"}}}
    answer = await create_completion(client, **options)
    assert answer.model_extra["x_gateway"]["inputs"][0]["kind"] == "approval"
    chunks = await stream_chunks(client, **options)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["x_gateway"]["finish_reason"] == "input_required"


# --- other clients


async def test_groq_sdk_works_with_only_a_base_url(gateway: Gateway) -> None:
    async with groq.AsyncGroq(base_url=gateway.base_url, api_key="none") as client:
        assert "437" in (await create_completion(client)).choices[0].message.content
        assert "437" in join_text(await stream_chunks(client))
        assert MODEL in [model.id for model in (await client.models.list()).data]


async def test_langchain_supports_chat_streaming_tools_and_structured_output(gateway: Gateway) -> None:
    chat = ChatOpenAI(model=MODEL, base_url=f"{gateway.base_url}/v1", api_key=SecretStr("none"))
    assert "437" in str((await chat.ainvoke("What is 23*19?")).content)
    combined: AIMessageChunk | None = None
    async for chunk in chat.astream("What is 23*19?"):
        assert isinstance(chunk, AIMessageChunk)
        combined = chunk if combined is None else combined + chunk
    assert combined is not None
    assert "437" in str(combined.content)
    tool_message = await chat.bind_tools([WEATHER]).ainvoke([HumanMessage('call get_weather with {"city": "Oslo"}')])
    assert tool_message.tool_calls[0]["args"] == {"city": "Oslo"}
    structured = await chat.with_structured_output(SumAnswer).ainvoke("What is 23*19?")
    assert isinstance(structured, SumAnswer)

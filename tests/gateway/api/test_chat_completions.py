"""`/v1/chat/completions`, spoken by the clients that people have: openai, groq, LangChain."""

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


@pytest.fixture
async def client(gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def ask(client: Any, *messages: Any, **options: Any) -> Any:
    return await client.chat.completions.create(model=MODEL, messages=messages or [USER], **options)


async def chunks_of(client: Any, *messages: Any, **options: Any) -> list[Any]:
    return [chunk async for chunk in await ask(client, *messages, stream=True, **options)]


def text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_tools_run_inside_and_do_not_leak(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client)
    message = answer.choices[0].message
    assert "437" in message.content
    assert message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    (ran,) = answer.model_extra["x_gateway"]["tool_calls"]
    assert (ran["tool"], ran["arguments"], ran["outcome"]) == ("calculator", {"expression": "23*19"}, "ok")


async def test_stream_has_one_id_one_role_one_end_and_the_same_text(client: openai.AsyncOpenAI) -> None:
    chunks = await chunks_of(client, stream_options={"include_usage": True})
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [c.delta.role for c in choices if c.delta.role] == ["assistant"]
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    assert not any(c.delta.tool_calls for c in choices)
    assert text(chunks) == (await ask(client)).choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert [c for c in chunks[:-1] if c.usage] == []
    told = [
        c.model_extra["x_gateway"]["event"]["type"] for c in chunks if "event" in c.model_extra.get("x_gateway", {})
    ]
    assert told == ["tool.call", "tool.result"]


async def test_every_turn_is_kept(client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection) -> None:
    answer = await ask(client, user="a label", metadata={"case": "7"})
    turn = (await gateway.get(f"/api/v1/turns/{answer.model_extra['x_gateway']['turn_id']}")).body
    assert (turn["user_label"], turn["response"]) == ("a label", answer.choices[0].message.content)
    assert json.loads(await db.fetchval("SELECT options FROM turns"))["metadata"] == {"case": "7"}
    await ask(client, {"role": "user", "content": "a secret"}, store=False)
    assert await db.fetchval("SELECT count(*) FROM turns WHERE prompt LIKE '%secret%'") == 0


async def test_whole_chat_is_sent_back_with_what_answers_hold(client: openai.AsyncOpenAI) -> None:
    first = await ask(client, {"role": "user", "content": "My name is Ada."})
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "My name is Ada."},
        first.choices[0].message.model_dump(),
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    assert "Ada" in (await ask(client, *messages)).choices[0].message.content


# --- tools of the client


async def test_clients_tool_goes_back_to_the_client_and_its_result_comes_in(client: openai.AsyncOpenAI) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await ask(client, prompt, tools=[WEATHER])
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "It snows."}
    second = await ask(client, prompt, first.choices[0].message.model_dump(), result, tools=[WEATHER])
    assert "It snows." in second.choices[0].message.content
    assert second.choices[0].finish_reason == "stop"


async def test_gateways_and_clients_tools_work_in_one_step_and_no_result_is_lost(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    calls: Any = [
        {"name": "calculator", "arguments": {"expression": "23*19"}},
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
    ]
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))
    chunks = await chunks_of(client, tools=[WEATHER])
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "get_weather")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert [tuple(row) for row in await db.fetch("SELECT tool, outcome FROM tool_calls ORDER BY tool")] == [
        ("calculator", "ok"),
        ("get_weather", "client"),
    ]
    said = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": call.function.model_dump()}],
    }
    await ask(client, USER, said, {"role": "tool", "tool_call_id": call.id, "content": "Snow."}, tools=[WEATHER])
    sent = gateway.simulator.requests[-1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool"]
    assert [c["function"]["name"] for c in sent[2]["tool_calls"]] == ["calculator", "get_weather"]
    assert "437" in sent[3]["content"]
    assert sent[4]["content"] == "Snow."


async def test_hidden_work_of_another_user_stays_hidden(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await ask(client, prompt, tools=[WEATHER])
    await db.execute("UPDATE turns SET owner = 'somebody else', messages = messages || '[{\"role\": \"assistant\"}]'")
    (call,) = first.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Snow."}
    await ask(client, prompt, first.choices[0].message.model_dump(), result, tools=[WEATHER])
    assert len(gateway.simulator.requests[-1]["messages"]) == 4


async def test_call_without_a_result_is_told_to_the_model(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    prompt = {"role": "user", "content": 'call get_weather with {"city": "Oslo"}'}
    first = await ask(client, prompt, tools=[WEATHER])
    await ask(client, prompt, first.choices[0].message.model_dump(), {"role": "user", "content": "Never mind."})
    assert "no result" in gateway.simulator.requests[-1]["messages"][-2]["content"]


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "function", "function": {"name": "get_weather"}}, "get_weather"),
        ({"type": "function", "function": {"name": "list_tasks"}}, None),
        ("none", None),
    ],
)
async def test_tool_choice_works_over_both(client: openai.AsyncOpenAI, choice: Any, called: str | None) -> None:
    answer = await ask(client, {"role": "user", "content": "Hello"}, tools=[WEATHER], tool_choice=choice)
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ([called] if called else [])
    ran = answer.model_extra["x_gateway"].get("tool_calls", [])
    assert [call["tool"] for call in ran] == (["list_tasks"] if "list_tasks" in str(choice) else [])


@pytest.mark.parametrize(
    ("options", "offered"),
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
async def test_gateways_tools_are_chosen_by_header_or_body(
    client: openai.AsyncOpenAI, gateway: Gateway, options: Any, offered: set[str]
) -> None:
    await ask(client, **options)
    sent = gateway.simulator.requests[-1].get("tools", [])
    assert {tool["function"]["name"] for tool in sent} == offered


async def test_clients_tool_stands_before_one_of_ours_of_the_same_name(client: openai.AsyncOpenAI) -> None:
    own = {"type": "function", "function": {**WEATHER["function"], "name": "calculator"}}
    answer = await ask(client, tools=[own])
    assert answer.choices[0].message.tool_calls[0].function.name == "calculator"


# --- structured outputs


class Sum(BaseModel):
    expression: str
    value: int


@pytest.mark.parametrize("tools", ["all", "none"])
async def test_answer_fits_the_schema_after_the_tools_have_worked(
    client: openai.AsyncOpenAI, gateway: Gateway, tools: str
) -> None:
    parsed = await client.chat.completions.parse(
        model=MODEL, messages=[USER], response_format=Sum, extra_headers={"X-Gateway-Tools": tools}
    )
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    sent = list(gateway.simulator.requests)
    assert "response_format" in sent[-1]
    assert "tools" not in sent[-1]
    ran = (parsed.model_extra or {})["x_gateway"].get("tool_calls", [])
    assert [call["tool"] for call in ran] == (["calculator"] if tools == "all" else [])


async def test_stream_of_a_structured_answer_holds_nothing_but_it(client: openai.AsyncOpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "sum", "schema": Sum.model_json_schema()}}
    assert Sum.model_validate_json(text(await chunks_of(client, response_format=schema)))
    assert json.loads(text(await chunks_of(client, response_format={"type": "json_object"})))


async def test_draft_that_fits_already_is_not_asked_for_again(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="text", text='{"answer": 42}'))
    answer = await ask(client, {"role": "user", "content": "Hello"}, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"answer": 42}
    assert len(gateway.simulator.requests) == 1


async def test_answer_that_does_not_fit_is_asked_for_once_more_and_then_fails_with_its_code(
    client: openai.AsyncOpenAI, gateway: Gateway
) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "sum", "schema": Sum.model_json_schema()}}
    options: Any = {"response_format": schema, "extra_headers": {"X-Gateway-Tools": "none"}}
    gateway.simulator.faults.add_faults(Fault(kind="text", text='{"expression": 1}'))
    assert Sum.model_validate_json((await ask(client, **options)).choices[0].message.content)
    gateway.simulator.faults.add_faults(Fault(kind="text", text="no JSON", times=2))
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(client, **options)
    assert caught.value.code == "structured_output_invalid"


# --- errors


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages.0.mood"),
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


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:60])
async def test_bad_request_is_a_400_in_openais_shape_that_names_the_field(
    standing: Gateway, body: dict[str, Any], param: str | None
) -> None:
    reply = await standing.post("/v1/chat/completions", {"model": MODEL, "messages": [USER], **body})
    assert reply.status == 400
    error = reply.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param or "")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/api/v1/chat", "/stream", "/api/chat/stream"]
)
async def test_absurd_sizes_are_refused_in_each_formats_shape(standing: Gateway, path: str) -> None:
    huge = await standing.post(path, {"prompt": "x" * 5_000_000})
    assert (huge.status, huge.body["error"]["code"]) == (413, "payload_too_large")
    assert ("type" in huge.body["error"]) is path.startswith("/v1/")
    messages = [{"role": "user", "content": "x"}] * 501
    many = await standing.post(path, {"messages": messages, "input": messages})
    assert many.status == (400 if path.startswith("/v1/") else 422)


async def test_broken_json_and_unknown_routes_have_openais_shape(gateway: Gateway) -> None:
    async with gateway.session.post(f"{gateway.base_url}/v1/chat/completions", data=b"{") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (400, "invalid_request_error")
    assert (await gateway.get("/v1/no/such/route")).body["error"]["type"] == "invalid_request_error"


async def test_sdk_raises_the_error_that_fits(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="no-such-model", messages=[USER])
    assert missing.value.code == "model_not_found"
    gateway.simulator.faults.add_faults(
        Fault(kind="status", status=429, headers={"retry-after": "30"}, body={"error": {}})
    )
    with pytest.raises(openai.RateLimitError) as limited:
        await ask(client)
    assert limited.value.response.headers["retry-after"] == "30"


async def test_failure_in_the_middle_raises_in_the_sdk(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="cut", after_chunks=40))
    with pytest.raises(openai.APIError) as caught:
        await chunks_of(client, {"role": "user", "content": "count to 200"})
    assert caught.value.code == "model_stream_broken"


async def test_key_goes_as_bearer(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, api_key=SecretStr("the-right-key-16")) as gateway:
        for key, right in (("the-right-key-16", True), ("wrong", False)):
            async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
                if right:
                    assert (await client.models.retrieve(MODEL)).id == MODEL
                else:
                    with pytest.raises(openai.AuthenticationError):
                        await client.models.list()


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert MODEL in listed
    assert (await client.models.retrieve(MODEL)).owned_by == "OpenAI"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such/model")


async def test_client_that_leaves_cancels_the_turn(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="stall", after_chunks=40))
    stream = await ask(client, {"role": "user", "content": "count to 1000"}, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await gateway.simulator.wait_until(lambda simulator: simulator.cancelled == 1)


async def test_idempotency_key_answers_with_the_same_turn(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    options = {"extra_headers": {"Idempotency-Key": "k1"}}
    assert (await ask(client, **options)).id == (await ask(client, **options)).id
    assert text(await chunks_of(client, **options))
    assert await db.fetchval("SELECT count(*) FROM turns") == 1


async def test_turn_that_waits_for_approval_ends_the_answer_and_says_so(client: openai.AsyncOpenAI) -> None:
    options = {"extra_body": {"x_gateway": {"approval": "always"}}}
    answer = await ask(client, **options)
    assert answer.model_extra["x_gateway"]["inputs"][0]["kind"] == "approval"
    chunks = await chunks_of(client, **options)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["x_gateway"]["finish_reason"] == "input_required"


# --- other clients


async def test_groqs_own_sdk_works_by_base_url_alone(gateway: Gateway) -> None:
    async with groq.AsyncGroq(base_url=gateway.base_url, api_key="none") as client:
        assert "437" in (await ask(client)).choices[0].message.content
        assert "437" in text(await chunks_of(client))
        assert MODEL in [model.id for model in (await client.models.list()).data]


async def test_langchain_chats_streams_and_brings_tools(gateway: Gateway) -> None:
    chat = ChatOpenAI(model=MODEL, base_url=f"{gateway.base_url}/v1", api_key=SecretStr("none"))
    assert "437" in str((await chat.ainvoke("What is 23*19?")).content)
    whole: AIMessageChunk | None = None
    async for chunk in chat.astream("What is 23*19?"):
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert "437" in str(whole.content)
    asked = await chat.bind_tools([WEATHER]).ainvoke([HumanMessage('call get_weather with {"city": "Oslo"}')])
    assert asked.tool_calls[0]["args"] == {"city": "Oslo"}
    structured = await chat.with_structured_output(Sum).ainvoke("What is 23*19?")
    assert isinstance(structured, Sum)

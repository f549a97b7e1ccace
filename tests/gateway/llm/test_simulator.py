"""The simulator, called by Groq's SDK: wire format, checks and faults."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import groq
import pytest

from gateway.simulator import Fault, Simulator

MODEL = "openai/gpt-oss-120b"
USER = {"role": "user", "content": "What is 23*19?"}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1"}'}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.fixture
async def client(simulator: Simulator) -> AsyncGenerator[groq.AsyncGroq]:
    async with groq.AsyncGroq(api_key="gsk_test", base_url=simulator.base_url, max_retries=0) as client:
        yield client


async def ask(client: groq.AsyncGroq, **body: Any) -> Any:
    return await client.chat.completions.create(**{"model": MODEL, "messages": [USER], **body})


async def test_suitable_tool_is_called(client: groq.AsyncGroq) -> None:
    answer = await ask(client, tools=[CALCULATOR])
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("calculator", {"expression": "23*19"})
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream_has_one_role_one_finish_and_the_usage_in_x_groq(client: groq.AsyncGroq) -> None:
    chunks = [chunk async for chunk in await ask(client, stream=True)]
    assert len({chunk.id for chunk in chunks}) == 1
    assert next(chunk.choices[0].delta.role for chunk in chunks if chunk.choices) == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].x_groq.usage.completion_tokens > 0


async def test_repeated_prompt_counts_as_cached(client: groq.AsyncGroq) -> None:
    messages = [{"role": "system", "content": "camel " * 2000}, USER]
    first = await ask(client, messages=messages)
    second = await ask(client, messages=messages)
    assert (first.usage.prompt_tokens_details is None) or first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens > 1000


async def test_token_limit_truncates_the_answer_with_reason_length(client: groq.AsyncGroq) -> None:
    for limit in (5, 40):  # less and more than it reasons
        answer = await ask(client, messages=[{"role": "user", "content": "count to 500"}], max_completion_tokens=limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == limit


ODD_PROMPTS = [
    "use calculator {not json",
    "call calculator with {" + '"a":{' * 5_000,
    "call calculator with {}{}",
    'use calculator {"expression": 1',
    "use calculator {[1, 2]}",
    "my schema: " + "{" * 5_000,
    "show my tasks and mark the third",
    "count to 999999",
    "9" * 5_000 + "**" + "9" * 500,
    "sqrt(" * 2_000,
    "\u0000 \ud7ff \U0001f600",
    "",
]


@pytest.mark.parametrize("prompt", ODD_PROMPTS, ids=range(len(ODD_PROMPTS)))
async def test_no_prompt_breaks_the_simulator(client: groq.AsyncGroq, prompt: str) -> None:
    answer = await ask(client, messages=[{"role": "user", "content": prompt}], tools=[CALCULATOR], max_tokens=2_000)
    message = answer.choices[0].message
    assert message.content or message.tool_calls or message.reasoning


ODD_SCHEMAS: list[tuple[Any, Any]] = [
    (
        {"$defs": {"City": {"type": "object", "properties": {"city": {"type": "string"}}}}, "$ref": "#/$defs/City"},
        {"city": "Oslo"},
    ),
    ({"properties": {"a/b": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"enum": ["one"]}}}, {"a/b": "one"}),
    ({"properties": {"next": {"$ref": "#"}}, "required": ["next"]}, None),
    ({"type": "object", "properties": None, "required": "all", "minItems": "x"}, {}),
    ({"type": [], "enum": {}, "anyOf": {}, "maxLength": "x"}, None),
    ({"properties": {"n": {"type": "array", "minItems": -3, "items": {"$ref": "#/nowhere"}}}}, {"n": []}),
]


@pytest.mark.parametrize(("schema", "expected"), ODD_SCHEMAS, ids=range(len(ODD_SCHEMAS)))
async def test_arguments_follow_any_schema(client: groq.AsyncGroq, schema: Any, expected: Any) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    answer = await ask(client, messages=[{"role": "user", "content": "The weather in Oslo?"}], tools=[tool])
    arguments = json.loads(answer.choices[0].message.tool_calls[0].function.arguments)
    assert expected is None or arguments == expected


async def test_tool_that_the_prompt_names_is_called_once(client: groq.AsyncGroq) -> None:
    properties = {"city": {"type": "string"}}
    tool = {"type": "function", "function": {"name": "getWeather", "parameters": {"properties": properties}}}
    messages: list[Any] = [{"role": "user", "content": "What is the weather in New York?"}]
    [call] = (await ask(client, messages=messages, tools=[tool])).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "New York"}
    messages += [{"role": "assistant", "tool_calls": [call.to_dict()]}]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
    assert "It rains." in (await ask(client, messages=messages, tools=[tool])).choices[0].message.content


async def test_required_call_is_made_after_a_result_too(client: groq.AsyncGroq) -> None:
    messages = [USER, ASSISTANT, {"role": "tool", "tool_call_id": "c1", "content": "437"}]
    answer = await ask(client, messages=messages, tools=[CALCULATOR], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_schema_in_the_prompt_is_followed(client: groq.AsyncGroq) -> None:
    schema = {"properties": {"city": {"type": "string"}, "people": {"type": "integer", "minimum": 5}}}
    example = {"properties": {"foo": {"type": "array"}}}
    prompt = f"Answer as JSON of the schema. An example: {json.dumps(example)} The schema: ```{json.dumps(schema)}```"
    answer = await ask(client, messages=[{"role": "user", "content": prompt}])
    assert json.loads(answer.choices[0].message.content).keys() == {"city", "people"}


async def test_schema_behind_a_long_example_in_the_prompt_is_followed(client: groq.AsyncGroq) -> None:
    """Each object is read once: those inside an example take no attempt."""
    schema = {"properties": {"city": {"type": "string"}}}
    example = [{"items": [{"name": str(number)} for number in range(100)]}]
    prompt = f"An example: {json.dumps(example)} The schema: {json.dumps(schema)}"
    answer = await ask(client, messages=[{"role": "user", "content": prompt}])
    assert json.loads(answer.choices[0].message.content).keys() == {"city"}


MALFORMED: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {}}]},
    {"tools": [{"type": "function", "function": {"name": 5}}]},
    {"tool_choice": {"function": {"name": []}}},
    {"tool_choice": {}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": "x"}},
    {"messages": [{"role": ["user"], "content": "x"}]},
    {"messages": [{"role": "user", "content": [None]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
    {"messages": [USER, {"role": "assistant", "tool_calls": 5}]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": None}]}]},
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_request_is_the_clients_error(client: groq.AsyncGroq, body: dict[str, Any]) -> None:
    """An error of the server would open the gateway's circuit breaker."""
    with pytest.raises(groq.BadRequestError):
        await ask(client, **body)


REJECTED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "no-such-model"}, 404, "does not exist"),
    ({"model": "llama-3.3-70b-versatile"}, 400, "decommissioned"),
    ({"messages": []}, 400, "minimum number of items"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "allowed values"),
    ({"messages": [USER | {"mood": "good"}]}, 400, "'mood' is unsupported"),
    ({"messages": [USER | {"content": None}]}, 400, "must not be null"),
    ({"messages": [USER, ASSISTANT]}, 400, "have no results"),
    ({"messages": [USER, ASSISTANT, USER]}, 400, "have no results"),
    ({"messages": [USER, {"role": "tool", "content": "1", "tool_call_id": "c1"}]}, 400, "answers no tool call"),
    ({"messages": [USER, {"role": "tool", "content": "1"}]}, 400, "must not be empty"),
    ({"tools": [CALCULATOR] * 129}, 400, "maximum number of items is 128"),
    ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, 400, "does not match"),
    ({"tool_choice": "required"}, 400, "there are no tools"),
    ({"temperature": 2.1}, 400, "'temperature'"),
    ({"top_p": 1.5}, 400, "'top_p'"),
    ({"n": 2}, 400, "'n'"),
    ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    ({"max_completion_tokens": 70_000}, 400, "max_completion_tokens"),
    ({"stop": list("abcde")}, 400, "'stop'"),
    ({"reasoning_effort": "none"}, 400, "reasoning_effort"),
    ({"reasoning_format": "raw", "tools": [CALCULATOR]}, 400, "reasoning_format"),
    ({"include_reasoning": True, "reasoning_format": "parsed"}, 400, "exclude each other"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, "tools": [CALCULATOR]},
        400,
        "do not go with tools",
    ),
]


@pytest.mark.parametrize(("body", "status", "message"), REJECTED, ids=lambda value: str(value)[:50])
async def test_request_that_groq_rejects_is_rejected(
    client: groq.AsyncGroq, body: Any, status: int, message: str
) -> None:
    if body.get("max_completion_tokens") == 0:
        body = {"max_tokens": -1}
    with pytest.raises(groq.APIStatusError, match=message) as caught:
        await ask(client, **body)
    assert caught.value.status_code == status


async def test_invalid_key_is_a_401(simulator: Simulator) -> None:
    async with groq.AsyncGroq(api_key="invalid", base_url=simulator.base_url) as client:
        with pytest.raises(groq.AuthenticationError, match="Invalid API Key"):
            await ask(client)


async def raw_stream(simulator: Simulator, prompt: str = "count to 50") -> bytes:
    """Return the bytes of a response until it ends or breaks."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True}
    url, headers = f"{simulator.base_url}/openai/v1/chat/completions", {"Authorization": "Bearer k"}
    received = b""
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        try:
            async for piece in response.content.iter_any():
                received += piece
        except aiohttp.ClientPayloadError:
            received += b"<aborted>"
    return received


@pytest.mark.parametrize(
    ("fault", "marker", "is_complete"),
    [
        (Fault(kind="mid_stream_error", after_chunks=2, error={"error": {"message": "oh"}}), b"event: error", False),
        (Fault(kind="data_error", after_chunks=2, error={"error": {"message": "oh"}}), b'data: {"error"', False),
        (Fault(kind="x_groq_error"), b'"error":"stopped early"', False),
        (Fault(kind="cut", after_chunks=2), b"data: {", False),
        (Fault(kind="abort", after_chunks=2), b"<aborted>", False),
        (Fault(kind="garbage"), b"data: {this is not JSON", True),
        (Fault(kind="text", text="Words of the test."), b"Words", True),
        (Fault(kind="split_frames"), b"50", True),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
async def test_fault_affects_one_stream(simulator: Simulator, fault: Fault, marker: bytes, is_complete: bool) -> None:
    simulator.faults.add_faults(fault)
    received = await raw_stream(simulator)
    assert marker in received
    assert received.endswith(b"data: [DONE]\n\n") is is_complete
    second = await raw_stream(simulator)
    assert second.endswith(b"data: [DONE]\n\n")
    assert marker not in second or fault.kind in ("cut", "split_frames")


@pytest.mark.parametrize("status", [400, 401, 413, 422, 429, 498, 500, 502, 503])
async def test_status_fault_is_sent_with_its_body_and_headers(
    client: groq.AsyncGroq, simulator: Simulator, status: int
) -> None:
    body = {"error": {"message": "as told", "type": "x"}}
    simulator.faults.add_faults(Fault(kind="status", status=status, body=body, headers={"retry-after": "7"}))
    with pytest.raises(groq.APIStatusError, match="as told") as caught:
        await ask(client)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (status, "7")


async def test_fault_affects_only_matching_prompts(client: groq.AsyncGroq, simulator: Simulator) -> None:
    simulator.faults.add_faults(Fault(kind="text", text="Hit.", match="camel"))
    assert "Hit" not in (await ask(client)).choices[0].message.content
    hit = await ask(client, messages=[{"role": "user", "content": "a camel"}])
    assert "Hit" in hit.choices[0].message.content


async def test_disconnect_of_the_client_stops_the_stream(client: groq.AsyncGroq, simulator: Simulator) -> None:
    stream = await ask(client, messages=[{"role": "user", "content": "count to 100000"}], stream=True)
    await anext(aiter(stream))
    await stream.close()
    await simulator.wait_until(lambda s: s.cancelled_streams == 1 and s.open_streams == 0)

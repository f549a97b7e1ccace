"""Tests of odd streams of model servers, from bytes to client."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.gateway.api.test_upstream_errors import PROVIDERS, find_calls
from tests.scripted_model import (
    USAGE,
    ScriptedAnswer,
    ScriptedModelServer,
    refuse_call,
    serve_scripted_model,
    stream_chunks,
    stream_deltas,
    stream_text,
)
from tests.stack import Gateway, Reply, ServeSharedGateway, serve_gateway

PURGE = {
    "type": "function",
    "function": {
        "name": "purge",
        "description": "Remove entries; all of them without a filter.",
        "parameters": {"type": "object", "properties": {"filter": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module", params=PROVIDERS)
async def gateway(
    request: pytest.FixtureRequest, serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer
) -> Gateway:
    settings: dict[str, Any] = PROVIDERS[request.param](model.url)
    return await serve_shared_gateway(**settings)


async def complete(gateway: Gateway, *, expect: int = 200, **body: Any) -> Any:
    """Ask for a chat completion without the gateway's tools."""
    request = {"messages": [{"role": "user", "content": "Run it."}], **body}
    reply = await gateway.post("/v1/chat/completions", request, headers={"X-Gateway-Tools": "none"})
    assert reply.status == expect, reply.body
    return reply.body


async def stream_completion(gateway: Gateway, **body: Any) -> list[Any]:
    """Return the chunks of a streamed chat completion."""
    request = {"messages": [{"role": "user", "content": "Run it."}], "stream": True, **body}
    headers = {"X-Gateway-Tools": "none"}
    async with gateway.session.post(f"{gateway.base_url}/v1/chat/completions", json=request, headers=headers) as reply:
        lines = (await reply.text()).splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def join_content(chunks: list[Any], name: str = "content") -> str:
    return "".join(chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks if chunk.get("choices"))


def part(
    index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: str | None = None
) -> Any:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    fields = (("index", index), ("id", call_id), ("function", function or None))
    return {key: value for key, value in fields if value is not None}


def stream_parts(*parts: Any, finish_reason: str = "tool_calls") -> ScriptedAnswer:
    """Stream parts of calls: a list goes into one chunk."""
    deltas = ({"tool_calls": each if isinstance(each, list) else [each]} for each in parts)
    return stream_deltas(*deltas, finish_reason=finish_reason)


A, B = '{"filter":"a"}', '{"filter":"b"}'
JOINED: dict[str, tuple[list[Any], list[str]]] = {
    "begun in one chunk": (
        [
            [part(0, "A", "purge", ""), part(1, "B", "purge", "")],
            [part(0, arguments='{"filter":'), part(1, arguments='{"filter":')],
            [part(0, arguments='"a"}'), part(1, arguments='"b"}')],
        ],
        [A, B],
    ),
    "interleaved": (
        [part(0, "A", "purge", ""), part(1, "B", "purge", ""), part(0, arguments=A), part(1, arguments=B)],
        [A, B],
    ),
    "backwards": (
        [part(1, "B", "purge", '{"filter":'), part(0, "A", "purge", A), part(1, arguments='"b"}')],
        [B, A],
    ),
    "no index, interleaved by id": (
        [
            part(None, "A", "purge", ""),
            part(None, "B", "purge", ""),
            part(None, "A", None, A),
            part(None, "B", None, B),
        ],
        [A, B],
    ),
    "new id with each part": (
        [part(0, "A1", "purge", ""), part(0, "A2", "purge", '{"filter":'), part(0, "A3", "purge", '"a"}')],
        [A],
    ),
    "new id without a name": ([part(0, "A1", "purge", '{"filter":'), part(0, "A2", None, '"a"}')], [A]),
    "rising index": ([part(0, "A", "purge", ""), part(1, arguments='{"filter":'), part(2, arguments='"a"}')], [A]),
    "no index": ([part(None, "A", "purge", '{"filter":'), part(None, None, None, '"a"}')], [A]),
    "no index, two calls": ([part(None, "A", "purge", A), part(None, "B", "purge", B)], [A, B]),
    "same index, two calls": ([part(0, "A", "purge", A), part(0, "B", "purge", B)], [A, B]),
    "same index, no ids": ([part(0, None, "purge", A), part(0, None, "purge", B)], [A, B]),
    "same id for all": (
        [part(0, "X", "purge", ""), part(0, "X", None, A), part(1, "X", "purge", ""), part(1, "X", None, B)],
        [A, B],
    ),
    "whole call again": ([part(0, "A", "purge", A), part(0, "A", "purge", A)], [A]),
    "whole call again at another index": ([part(0, "A", "purge", A), part(1, "A", "purge", A)], [A]),
    "name again": (
        [part(0, "A", "purge", '{"filter":'), part(0, "A", "purge", '"a"}'), part(0, "A", "purge", "")],
        [A],
    ),
    "neither name nor arguments": ([part(0, "A", "purge", A), part(1, "B", "", "")], [A]),
    "behind the finish": ([part(0, "A", "purge", '{"filter":')], [A]),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("parts", "expected"), JOINED.values(), ids=JOINED)
async def test_parts_of_calls_are_joined_as_they_were_meant(
    gateway: Gateway, model: ScriptedModelServer, parts: list[Any], expected: list[str], is_streamed: bool
) -> None:
    answer = stream_parts(*parts)
    if parts == JOINED["behind the finish"][0]:
        late = stream_deltas({"tool_calls": [part(0, arguments='"a"}')]}, finish_reason=None)
        answer = ScriptedAnswer(answer.body.removesuffix(b"data: [DONE]\n\n") + late.body)
    model.script_answers(answer)
    if is_streamed:
        chunks = await stream_completion(gateway, tools=[PURGE])
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or []]
    else:
        calls = (await complete(gateway, tools=[PURGE]))["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == expected


async def test_interleaved_calls_of_the_gateways_tools_run_with_their_arguments(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    first, second = '{"expression":"1+1"}', '{"expression":"2+2"}'
    model.script_answers(
        stream_parts(
            part(0, "A", "calculator", ""),
            part(1, "B", "calculator", ""),
            part(0, arguments=first),
            part(1, arguments=second),
        )
    )
    reply = await gateway.chat_stream("Run it.")
    assert find_calls(reply) == [("calculator", {"expression": "1+1"}), ("calculator", {"expression": "2+2"})]


CUT = {
    "inside an argument": '{"expression":"1+',
    "behind its members": '{"expression":"1+1"',
    "behind its name": "",
    "with an empty object": "{}",
}


@pytest.mark.parametrize("finish_reason", ["length", "max_tokens", "model_context_window_exceeded", "content_filter"])
@pytest.mark.parametrize("arguments", CUT.values(), ids=CUT)
async def test_call_that_was_cut_never_runs_and_the_model_is_told(
    gateway: Gateway, model: ScriptedModelServer, arguments: str, finish_reason: str
) -> None:
    model.script_answers(stream_parts(part(0, "A", "calculator", arguments), finish_reason=finish_reason))
    reply = await gateway.chat_stream("Run it.")
    assert find_calls(reply) == []
    assert reply.text == "All done."
    assert "cut off" in str(model.requests[1]["messages"])


@pytest.mark.parametrize("arguments", CUT.values(), ids=CUT)
async def test_cut_call_of_a_clients_tool_never_reaches_the_client_and_the_model_is_told(
    gateway: Gateway, model: ScriptedModelServer, arguments: str
) -> None:
    cut = stream_parts(part(0, "A", "purge", arguments), finish_reason="length")
    call = {"tool_calls": [part(0, "A", "purge", arguments)]}
    spoken = stream_deltas({"content": "Look:"}, call, finish_reason="length")
    for answer, text in (cut, "All done."), (spoken, "Look:\n\nAll done."):
        model.script_answers(answer)
        choice = (await complete(gateway, tools=[PURGE]))["choices"][0]
        assert "tool_calls" not in choice["message"]
        assert choice["message"]["content"] == text
        assert "cut off" in str(model.requests[1]["messages"])
        model.script_answers(answer)
        chunks = await stream_completion(gateway, tools=[PURGE])
        assert join_content(chunks) == text
        assert not any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)


async def test_client_keeps_the_whole_call_beside_one_that_was_cut(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    parts = [[part(0, "A", "purge", A), part(1, "B", "purge", '{"filter":"b"')]]
    model.script_answers(stream_parts(*parts, finish_reason="length"))
    choice = (await complete(gateway, tools=[PURGE]))["choices"][0]
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == [A]
    assert choice["finish_reason"] == "tool_calls"


BROKEN = ["error", "network_error", "abort", "insufficient_system_resource", "upstream_error"]


@pytest.mark.parametrize("reason", BROKEN)
async def test_finish_reason_of_a_failure_breaks_the_stream(
    gateway: Gateway, model: ScriptedModelServer, reason: str
) -> None:
    model.script_answers(stream_deltas({"content": "Half an ans"}, finish_reason=reason))
    assert (await complete(gateway, expect=502))["error"]["code"] == "model_stream_broken"
    model.script_answers(stream_deltas({}, finish_reason=reason))
    assert (await complete(gateway))["choices"][0]["message"]["content"] == "All done."


FINISHED = {
    "max_tokens": "length",
    "MAX_TOKENS": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "SAFETY": "content_filter",
    "tool_calls": "stop",
    "end_turn": "stop",
    "STOP": "stop",
    "eos": "stop",
}


@pytest.mark.parametrize(("reason", "expected"), FINISHED.items())
async def test_finish_reason_is_understood(
    gateway: Gateway, model: ScriptedModelServer, reason: str, expected: str
) -> None:
    model.script_answers(stream_deltas({"content": "Half"}, finish_reason=reason))
    assert (await complete(gateway))["choices"][0]["finish_reason"] == expected


async def test_finish_reason_null_as_text_is_none(gateway: Gateway, model: ScriptedModelServer) -> None:
    choices = [
        {"delta": {"content": "A"}, "finish_reason": "null"},
        {"delta": {"content": "B"}, "finish_reason": "stop"},
    ]
    model.script_answers(stream_chunks([{"choices": [choice]} for choice in choices]))
    assert (await complete(gateway))["choices"][0]["message"]["content"] == "AB"


async def test_malformed_function_call_is_asked_again(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(stream_deltas({}, finish_reason="MALFORMED_FUNCTION_CALL"))
    reply = await gateway.chat_stream("Run it.")
    assert [retry["reason"] for retry in reply.get_event_data("model.retry")] == ["tool_call_unreadable"]
    assert reply.text == "All done."


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_content_filter_makes_a_response_incomplete(
    gateway: Gateway, model: ScriptedModelServer, is_streamed: bool
) -> None:
    model.script_answers(stream_deltas({"content": "Part"}, finish_reason="content_filter"))
    body = {"input": "Run it.", "stream": is_streamed, "x_gateway": {"tools": "none"}}
    async with gateway.session.post(f"{gateway.base_url}/v1/responses", json=body) as reply:
        text = await reply.text()
    if is_streamed:
        response = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["response"]
    else:
        response = json.loads(text)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})


def stream_usage(*chunks: dict[str, Any], choice: dict[str, Any] | None = None) -> ScriptedAnswer:
    text = {"choices": [{"index": 0, "delta": {"content": "word " * 100}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **(choice or {})}]}
    return stream_chunks([text, end, *chunks])


FIGURES = {"prompt_tokens": 100, "completion_tokens": 500}
USAGES: dict[str, tuple[ScriptedAnswer, int]] = {
    "no total": (stream_usage({"choices": [], "usage": FIGURES}), 600),
    "in the choice": (stream_usage(choice={"usage": FIGURES}), 600),
    "zeros behind": (
        stream_usage(
            {"choices": [], "usage": FIGURES}, {"choices": [], "usage": dict.fromkeys([*FIGURES, "total_tokens"], 0)}
        ),
        600,
    ),
    "in two halves": (
        stream_usage(
            {"choices": [], "usage": {"prompt_tokens": 100}}, {"choices": [], "usage": {"completion_tokens": 500}}
        ),
        600,
    ),
    "texts": (stream_usage({"choices": [], "usage": {"prompt_tokens": "100", "completion_tokens": "500"}}), 600),
    "other names": (stream_usage({"choices": [], "usage": {"input_tokens": 100, "output_tokens": 500}}), 600),
    "cached beside": (
        stream_usage({"choices": [], "usage": FIGURES | {"prompt_tokens_details": {"cached_tokens": 1000}}}),
        1600,
    ),
    "odd details": (stream_usage({"choices": [], "usage": FIGURES | {"prompt_tokens_details": []}}), 600),
}


@pytest.mark.parametrize(("answer", "total"), USAGES.values(), ids=USAGES)
async def test_usage_is_read_in_every_form(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer, total: int
) -> None:
    model.script_answers(answer)
    end = (await gateway.chat_stream("Run it.")).get_event_data("turn.completed")[0]
    assert end["usage"]["total_tokens"] == total
    assert end["cost_usd"] is None or end["cost_usd"] >= 0


async def test_usage_that_is_not_reported_is_estimated(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(stream_usage())
    usage = (await gateway.chat_stream("Run it.")).get_event_data("turn.completed")[0]["usage"]
    assert usage["completion_tokens"] == 125
    assert usage["prompt_tokens"] > 0


def insert_line(line: bytes) -> ScriptedAnswer:
    """Insert a line between the texts A and B."""
    first, second = (stream_deltas({"content": text}, finish_reason=None, usage=None).body for text in "AB")
    end = stream_deltas(finish_reason="stop").body
    return ScriptedAnswer(
        b"".join([first.replace(b"data: [DONE]\n\n", b""), line, second.replace(b"data: [DONE]\n\n", b""), end])
    )


ODD: dict[str, tuple[ScriptedAnswer, str]] = {
    "content as parts": (
        stream_deltas(
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": [{"type": "text", "text": "Hi"}]},
        ),
        "Hi",
    ),
    "content as one part": (stream_deltas({"content": {"type": "text", "text": "Hi"}}), "Hi"),
    "reasoning as an object": (stream_deltas({"reasoning": {"text": "hm"}}, {"content": "Hi"}), "Hi"),
    "finish reason of a failure behind the finish": (
        stream_chunks(
            [
                {"choices": [{"delta": {"content": "A"}, "finish_reason": "stop"}]},
                {"choices": [{"delta": {}, "finish_reason": "error"}]},
            ]
        ),
        "A",
    ),
    "halves of a pair": (stream_deltas({"content": "a\ud83d"}, {"content": "\ude00b"}), "a\U0001f600b"),
    "half of a pair": (stream_deltas({"content": "a\ud83d"}, {"content": "b"}), "a\ufffdb"),
    "odd details of usage": (stream_deltas({"content": "A"}, usage=USAGE | {"prompt_tokens_details": []}), "A"),
    "message in place of delta": (
        stream_chunks([{"choices": [{"message": {"role": "assistant", "content": "A"}, "finish_reason": "stop"}]}]),
        "A",
    ),
    "odd role": (stream_deltas({"role": 3, "content": "A", "tool_calls": "none", "refusal": {}}), "A"),
    "keep-alive text": (insert_line(b"data: : keepalive\n\n"), "AB"),
    "ping": (insert_line(b"data: ping\n\n"), "AB"),
    "keep-alive number": (insert_line(b"data: 1\n\n"), "AB"),
    "empty object": (insert_line(b"data: {}\n\n"), "AB"),
    "error behind the finish": (
        ScriptedAnswer(
            stream_text("A").body.removesuffix(b"data: [DONE]\n\n")
            + b'data: {"error": {"message": "x", "code": 500}}\n\n'
        ),
        "A",
    ),
    "nonsense behind the finish": (
        ScriptedAnswer(stream_text("A").body.removesuffix(b"data: [DONE]\n\n") + b"data: {nonsense\n\n"),
        "A",
    ),
}


@pytest.mark.parametrize(("answer", "text"), ODD.values(), ids=ODD)
async def test_one_odd_field_does_not_cost_the_answer(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer, text: str
) -> None:
    model.script_answers(answer)
    reply = await gateway.chat_stream("Run it.")
    assert reply.text == text
    assert reply.get_event_data("turn.completed")


async def test_thoughts_in_parts_are_reasoning(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(ODD["content as parts"][0])
    reply = await gateway.chat_stream("Run it.")
    assert [delta["text"] for delta in reply.get_event_data("reasoning.delta")] == ["hm"]


REFUSAL = stream_deltas({"content": None, "refusal": ""}, {"refusal": "I cannot "}, {"refusal": "help."})
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize("body", [{}, {"response_format": FORM}], ids=["text", "form"])
async def test_refusal_is_told_as_each_format_tells_refusals(
    gateway: Gateway, model: ScriptedModelServer, body: dict[str, Any]
) -> None:
    model.script_answers(REFUSAL)
    message = (await complete(gateway, **body))["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I cannot help.")
    model.script_answers(REFUSAL)
    chunks = await stream_completion(gateway, **body)
    assert (join_content(chunks), join_content(chunks, "refusal")) == ("", "I cannot help.")
    assert len(model.requests) == 1
    model.script_answers(REFUSAL)
    text_format = {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}} if body else {}
    reply = await gateway.post("/v1/responses", {"input": "Run it.", "x_gateway": {"tools": "none"}, **text_format})
    parts = [part for item in reply.body["output"] for part in item.get("content", [])]
    assert parts == [{"type": "refusal", "refusal": "I cannot help."}]
    model.script_answers(REFUSAL)
    native = await gateway.chat_stream("Run it.")
    assert [delta.get("refusal") for delta in native.get_event_data("text.delta")] == [True, True]
    assert native.text == "I cannot help."


def count_retries(reply: Reply) -> list[str]:
    return [retry["reason"] for retry in reply.get_event_data("model.retry")]


async def test_reasoning_alone_is_asked_again_once_and_then_told(gateway: Gateway, model: ScriptedModelServer) -> None:
    thoughts = stream_deltas({"reasoning": "hm"})
    model.script_answers(thoughts)
    reply = await gateway.chat_stream("Run it.")
    assert (count_retries(reply), reply.text) == (["empty_answer"], "All done.")
    model.script_answers(thoughts, thoughts)
    reply = await gateway.chat_stream("Run it.")
    assert (count_retries(reply), reply.text) == (["empty_answer"], "")
    assert "empty" in reply.get_event_data("step.completed")[0]["warning"]
    assert reply.get_event_data("turn.completed")


SPOKEN_THEN_UNREADABLE = ScriptedAnswer(
    stream_deltas({"content": "Let me check. "}, finish_reason=None, usage=None).body.removesuffix(b"data: [DONE]\n\n")
    + b'data: {"error": {"code": "tool_use_failed", "failed_generation": "<function=calculator{expr"}}\n\n'
)


async def test_streamed_text_equals_the_whole_answer_also_after_a_retry(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    model.script_answers(SPOKEN_THEN_UNREADABLE)
    streamed = join_content(await stream_completion(gateway))
    model.script_answers(SPOKEN_THEN_UNREADABLE)
    whole = (await complete(gateway))["choices"][0]["message"]["content"]
    assert streamed == whole == "Let me check. \n\nAll done."


@pytest.mark.parametrize("first", [SPOKEN_THEN_UNREADABLE, stream_deltas({"reasoning": "hm"}), refuse_call("{{{")])
async def test_output_indexes_of_a_response_only_grow(
    gateway: Gateway, model: ScriptedModelServer, first: ScriptedAnswer
) -> None:
    model.script_answers(first)
    body = {"input": "Run it.", "stream": True, "x_gateway": {"tools": "none"}}
    async with gateway.session.post(f"{gateway.base_url}/v1/responses", json=body) as reply:
        events = [json.loads(line[6:]) for line in (await reply.text()).splitlines() if line.startswith("data: {")]
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    assert added == list(range(len(added)))
    output = events[-1]["response"]["output"]
    done = {
        event["output_index"]: event["item"]["id"] for event in events if event["type"] == "response.output_item.done"
    }
    assert [item["id"] for item in output] == [done[index] for index in range(len(added))]


async def test_one_system_message_goes_upstream(gateway: Gateway, model: ScriptedModelServer) -> None:
    roles = ("system", "user", "developer", "system", "user")
    messages = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    model.script_answers()
    await gateway.post("/v1/chat/completions", {"messages": messages})
    sent = model.requests[0]["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "user"]
    assert all(text in sent[0]["content"] for text in ("system 0", "developer 2", "system 3"))


@pytest.mark.parametrize("effort", ["minimal", "xhigh", "max"])
async def test_effort_beyond_the_list_is_replaced_with_a_warning(
    gateway: Gateway, model: ScriptedModelServer, effort: str
) -> None:
    model.script_answers()
    body = await complete(gateway, reasoning_effort=effort)
    sent = model.requests[0]["reasoning_effort"]
    assert sent == {"minimal": "low"}.get(effort, "high")
    assert effort in body["x_gateway"]["warnings"][0]


async def test_long_ids_of_calls_are_shortened_for_the_models_server(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    long_id, own_id = "call_" + "x" * 60, "functions.purge:0"
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "purge", "arguments": "{}"}}
        for call_id in (long_id, own_id)
    ]
    results = [{"role": "tool", "tool_call_id": call_id, "content": "done"} for call_id in (long_id, own_id)]
    messages = [{"role": "user", "content": "Run it."}, {"role": "assistant", "tool_calls": calls}, *results]
    model.script_answers()
    await complete(gateway, messages=messages, tools=[PURGE])
    sent = model.requests[0]["messages"][-3:]
    ids = [call["id"] for call in sent[0]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in sent[1:]]
    assert len(ids[0]) <= 40
    assert ids[1] == own_id


async def test_only_limits_that_a_server_told_are_enforced(
    database_url: str, simulator: Simulator, model: ScriptedModelServer
) -> None:
    long_prompt = [{"role": "user", "content": "word " * 70_000}] * 2
    model.models = [{"id": "a-small-model", "context_window": 131_072}, {"id": "a-model-of-nobody"}]
    settings: dict[str, Any] = PROVIDERS["openai"](model.url)
    async with serve_gateway(database_url, simulator, None, **settings) as gateway:
        model.script_answers()
        await complete(gateway, model="a-model-of-nobody", max_tokens=320_000, messages=long_prompt)
        assert model.requests[0]["messages"][-2:] == long_prompt
        assert model.requests[0]["max_tokens"] == 320_000
        error = await complete(gateway, model="a-small-model", messages=long_prompt, expect=400)
        assert error["error"]["code"] == "context_length_exceeded"
        assert len(model.requests) == 1

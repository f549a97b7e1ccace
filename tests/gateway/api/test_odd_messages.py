"""Tests of messages in odd shapes, and of output around retries."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.gateway.api.test_odd_stream_forms import find_wrong_calls
from tests.gateway.api.test_odd_streams import (
    PURGE,
    SPOKEN_THEN_UNREADABLE,
    A,
    B,
    complete,
    join_content,
    part,
    stream_completion,
    stream_parts,
)
from tests.gateway.api.test_upstream_errors import PROVIDERS
from tests.scripted_model import ScriptedAnswer, ScriptedModelServer, serve_scripted_model, stream_chunks, stream_deltas
from tests.stack import Gateway, ServeSharedGateway


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer) -> Gateway:
    settings: dict[str, Any] = PROVIDERS["openai"](model.url)
    return await serve_shared_gateway(model_retry_delay=0.001, **settings)


def stream_choices(*choices: dict[str, Any]) -> ScriptedAnswer:
    return stream_chunks([{"choices": [choice]} for choice in choices])


def text_delta(text: str) -> dict[str, Any]:
    return {"delta": {"content": text}}


def message(finish_reason: str | None = None, delta: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"message": fields, "finish_reason": finish_reason} | ({} if delta is None else {"delta": delta})


TEXTS: dict[str, ScriptedAnswer] = {
    "message behind its deltas": stream_choices(text_delta("A"), text_delta("B"), message("stop", content="AB")),
    "message and delta behind the deltas": stream_choices(text_delta("AB"), message("stop", {}, content="AB")),
    "message beside an empty delta": stream_choices(message("stop", {}, content="AB")),
    "message beside an empty text": stream_choices(message("stop", {"content": ""}, content="AB")),
    "messages with the next part each": stream_choices(message(content="A"), message(content="B"), message("stop")),
    "messages with all parts so far": stream_choices(
        message(content="A"), message(content="AB"), message("stop", content="AB")
    ),
    "texts of the older API": stream_choices({"text": "A"}, {"text": "B", "finish_reason": "stop"}),
}


async def test_each_shape_of_a_message_is_read_once(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, answer in TEXTS.items():
        model.script_answers(answer, answer)
        whole = (await complete(gateway))["choices"][0]["message"]["content"]
        streamed = join_content(await stream_completion(gateway))
        if (whole, streamed) != ("AB", "AB") or len(model.requests) > 2:
            wrong[name] = whole, streamed
    assert wrong == {}


def stream_legacy_calls(*parts: dict[str, Any]) -> ScriptedAnswer:
    return stream_deltas(*({"function_call": part} for part in parts), finish_reason="function_call")


CALL = {"id": "A", "type": "function", "function": {"name": "purge", "arguments": A}}
CALLS: dict[str, tuple[ScriptedAnswer, list[str]]] = {
    "legacy call in pieces": (
        stream_legacy_calls({"name": "purge", "arguments": ""}, {"arguments": A[:5]}, {"arguments": A[5:]}),
        [A],
    ),
    "legacy call with null and empty names": (
        stream_legacy_calls({"name": "purge"}, {"name": None, "arguments": A[:5]}, {"name": "", "arguments": A[5:]}),
        [A],
    ),
    "legacy call with an object": (stream_legacy_calls({"name": "purge", "arguments": {"filter": "a"}}), [A]),
    "legacy call beside the same": (
        stream_deltas({"function_call": CALL["function"], "tool_calls": [part(0, "A", "purge", A)]}),
        [A],
    ),
    "legacy call in a message": (stream_choices(message("function_call", function_call=CALL["function"])), [A]),
    "message behind its call": (
        stream_choices({"delta": {"tool_calls": [part(0, "A", "purge", A)]}}, message("tool_calls", tool_calls=[CALL])),
        [A],
    ),
    "message with another id behind its call": (
        stream_choices(
            {"delta": {"tool_calls": [part(0, "X", "purge", A)]}}, message("tool_calls", {}, tool_calls=[CALL])
        ),
        [A],
    ),
    "message with the call behind its text": (
        stream_choices(text_delta("Look."), message("tool_calls", {}, content="Look.", tool_calls=[CALL])),
        [A],
    ),
    "one index for all, interleaved by id": (
        stream_parts(
            part(0, "A", "purge", ""), part(0, "B", "purge", ""), part(0, "A", None, A), part(0, "B", None, B)
        ),
        [A, B],
    ),
    "numbers as ids": (
        stream_parts(
            {"id": 7, "function": {"name": "purge"}},
            {"id": 8, "function": {"name": "purge"}},
            {"id": 7, "function": {"arguments": A}},
            {"id": 8, "function": {"arguments": B}},
        ),
        [A, B],
    ),
    "all arguments so far with each part": (
        stream_parts(part(0, "A", "purge", A[:3]), part(0, "A", "purge", A[:9]), part(0, "A", "purge", A)),
        [A],
    ),
    "whole arguments behind their parts": (
        stream_parts(part(0, "A", "purge", A[:5]), part(0, arguments=A[5:]), part(0, "A", "purge", A)),
        [A],
    ),
    "name so far with each part": (
        stream_parts(part(0, "A", "pur", ""), part(0, "A", "purge", ""), part(0, arguments=A)),
        [A],
    ),
    "empty object behind the arguments": (stream_parts(part(0, "A", "purge", A), part(0, "A", "purge", "{}")), [A]),
    "name, then an empty object behind the arguments": (
        stream_parts(part(0, "A", "purge", A), part(0, "A", "purge", ""), part(0, arguments="{}")),
        [A],
    ),
}


async def test_each_shape_of_a_call_is_read_once(gateway: Gateway, model: ScriptedModelServer) -> None:
    assert await find_wrong_calls(gateway, model, CALLS) == {}


async def test_cut_list_of_calls_never_runs(gateway: Gateway, model: ScriptedModelServer) -> None:
    uses = '{"tool_uses": [{"recipient_name": "functions.purge", "parameters": {"filter": "a"}}'
    model.script_answers(stream_parts(part(0, "A", "multi_tool_use.parallel", uses), finish_reason="length"))
    choice = (await complete(gateway, tools=[PURGE]))["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert "cut off" in str(model.requests[1]["messages"])


THOUGHTS = stream_deltas({"reasoning": "hm"})
UNKNOWN_TOOL = stream_deltas({"reasoning": "hm"}, {"tool_calls": [part(0, "A", "unknown", "{}")]})
ANSWER = stream_deltas({"reasoning": "so"}, {"content": "B"})


@pytest.mark.parametrize(
    ("answers", "reasoning", "text"),
    [
        ([THOUGHTS, ANSWER], "hm\nso", "B"),
        ([UNKNOWN_TOOL, UNKNOWN_TOOL, ANSWER], "hm\nhm\nso", "B"),
        ([SPOKEN_THEN_UNREADABLE, ANSWER], "so", "Let me check. \n\nB"),
    ],
    ids=["empty answer", "unknown tool", "text before the retry"],
)
async def test_streamed_and_whole_answer_are_equal_after_retries(
    gateway: Gateway, model: ScriptedModelServer, answers: list[ScriptedAnswer], reasoning: str, text: str
) -> None:
    model.script_answers(*answers)
    chunks = await stream_completion(gateway, tools=[PURGE])
    model.script_answers(*answers)
    whole = (await complete(gateway, tools=[PURGE]))["choices"][0]["message"]
    assert (join_content(chunks, "reasoning"), join_content(chunks)) == (reasoning, text)
    assert (whole["reasoning"], whole["content"]) == (reasoning, text)


async def test_text_before_a_retry_is_no_part_of_a_form(gateway: Gateway, model: ScriptedModelServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    model.script_answers(SPOKEN_THEN_UNREADABLE, stream_deltas({"content": '{"a": 1}'}))
    reply = await gateway.chat_stream("Run it.", response_format=response_format)
    assert reply.text == '{"a": 1}'
    assert len(model.requests) == 2

"""Tests of odd lines and names in streams and errors of model servers.

One test sends all forms of a kind through one gateway, from bytes to client.
"""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.gateway.api.test_odd_streams import complete, count_retries, join_content, stream_completion
from tests.gateway.api.test_upstream_errors import PROVIDERS
from tests.scripted_model import (
    USAGE,
    ScriptedAnswer,
    ScriptedModelServer,
    serve_scripted_model,
    stream_chunks,
    stream_deltas,
)
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
    return stream_chunks([*({"choices": [choice]} for choice in choices), {"choices": [], "usage": USAGE}])


def say(text: str, **choice: Any) -> dict[str, Any]:
    return {"delta": {"content": text}, **choice}


PLAIN = stream_deltas({"content": "A"}, {"content": "B"}).body
ANSWERS: dict[str, ScriptedAnswer] = {
    "BOM": ScriptedAnswer(b"\xef\xbb\xbf" + PLAIN),
    "BOM before a whole answer": ScriptedAnswer(b'\xef\xbb\xbf{"choices":[{"message":{"content":"AB"}}]}'),
    "CR": ScriptedAnswer(PLAIN.replace(b"\n", b"\r")),
    "CRLF": ScriptedAnswer(PLAIN.replace(b"\n", b"\r\n")),
    "several lines": ScriptedAnswer(PLAIN.replace(b', "', b'\ndata: , "')),
    "second choice": stream_choices(
        say("A", index=0), say("x", index=1), say("B", index=0, finish_reason="stop"), say("", index=1)
    ),
    "choice with another number": stream_choices(say("A", index=1), say("B", index=1, finish_reason="stop")),
    "stop_reason": stream_choices(say("A"), say("B", finish_reason=None, stop_reason="end_turn")),
    "finish_details": stream_choices(say("A"), say("B", finish_details={"type": "stop", "stop_tokens": [1]})),
    "finishReason": stream_choices(say("A"), say("B", finishReason="STOP")),
}


async def test_each_form_of_lines_choices_and_ends_is_read(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, answer in ANSWERS.items():
        model.script_answers(answer)
        reply = await gateway.chat_stream("Run it.", store=False)
        if reply.text != "AB" or not reply.get_event_data("turn.completed") or len(model.requests) > 1:
            wrong[name] = reply.text, reply.body, reply.events[-2:]
    assert wrong == {}


@pytest.mark.parametrize("end", [{"stop_reason": "max_tokens"}, {"finish_details": {"type": "max_tokens"}}])
async def test_end_under_another_name_is_understood(
    gateway: Gateway, model: ScriptedModelServer, end: dict[str, Any]
) -> None:
    model.script_answers(stream_choices(say("AB", **end)))
    assert (await complete(gateway))["choices"][0]["finish_reason"] == "length"


REASONING: dict[str, dict[str, Any]] = {
    "thinking": {"thinking": "hm"},
    "thinking in an object": {"thinking": {"type": "thinking", "thinking": "hm"}},
    "details with text": {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"text": "m"}]},
    "details with a summary": {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
    "details with parts of a summary": {"reasoning_details": [{"summary": [{"text": "h"}, {"text": "m"}]}]},
    "details beside encrypted ones": {
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "eA=="}, {"text": "hm"}]
    },
    "one detail": {"reasoning_details": {"text": "hm"}},
}


async def test_reasoning_under_each_name_is_reasoning(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, delta in REASONING.items():
        model.script_answers(stream_deltas(delta, {"content": "AB", "reasoning_details": []}))
        reply = await gateway.chat_stream("Run it.", store=False)
        reasoning = "".join(event["text"] for event in reply.get_event_data("reasoning.delta"))
        if (reasoning, reply.text) != ("hm", "AB"):
            wrong[name] = reasoning, reply.text
    assert wrong == {}


async def test_reasoning_before_blank_text_is_asked_again(gateway: Gateway, model: ScriptedModelServer) -> None:
    blank = stream_deltas({"reasoning": "hm"}, {"content": "\n"}, {"content": " \n"})
    model.script_answers(blank)
    reply = await gateway.chat_stream("Run it.", store=False)
    assert (count_retries(reply), reply.text) == (["empty_answer"], "All done.")
    model.script_answers(blank, blank)
    reply = await gateway.chat_stream("Run it.", store=False)
    assert "empty" in reply.get_event_data("step.completed")[0]["warning"]


async def test_blank_text_before_an_answer_belongs_to_it(gateway: Gateway, model: ScriptedModelServer) -> None:
    text = stream_deltas({"content": "\n"}, {"content": "\n"}, {"content": "A"}, {"content": "\n"}, {"content": "B"})
    model.script_answers(text, text)
    assert (await complete(gateway))["choices"][0]["message"]["content"] == "\n\nA\nB"
    assert join_content(await stream_completion(gateway)) == "\n\nA\nB"


def end_with(**members: Any) -> ScriptedAnswer:
    return stream_chunks([{"choices": [say("AB", finish_reason="stop")]}, {"choices": [], **members}])


USAGES: dict[str, tuple[ScriptedAnswer, tuple[int, int, int]]] = {
    "cache of Anthropic": (
        end_with(
            usage={
                "input_tokens": 100,
                "output_tokens": 500,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 30,
            }
        ),
        (150, 500, 20),
    ),
    "written cache of Anthropic alone": (
        end_with(usage={"input_tokens": 100, "output_tokens": 500, "cache_creation_input_tokens": 30}),
        (130, 500, 0),
    ),
    "written cache within the total": (
        end_with(
            usage={
                "prompt_tokens": 100,
                "completion_tokens": 500,
                "total_tokens": 600,
                "cache_creation_input_tokens": 30,
            }
        ),
        (100, 500, 0),
    ),
    "camel case": (end_with(usage={"promptTokens": 100, "completionTokens": 500, "totalTokens": 600}), (100, 500, 0)),
    "camel case with details": (
        end_with(usage={"inputTokens": 100, "outputTokens": 500, "inputTokensDetails": {"cachedTokens": 20}}),
        (100, 500, 20),
    ),
    "Gemini": (
        end_with(
            usageMetadata={
                "promptTokenCount": 100,
                "candidatesTokenCount": 400,
                "thoughtsTokenCount": 100,
                "cachedContentTokenCount": 20,
                "totalTokenCount": 600,
            }
        ),
        (100, 500, 20),
    ),
    "Gemini without a total": (
        end_with(usageMetadata={"promptTokenCount": 100, "candidatesTokenCount": 400, "thoughtsTokenCount": 100}),
        (100, 500, 0),
    ),
    "Gemini beside null": (
        end_with(usage=None, usageMetadata={"promptTokenCount": 100, "candidatesTokenCount": 500}),
        (100, 500, 0),
    ),
    "Ollama": (end_with(prompt_eval_count=100, eval_count=500, done=True), (100, 500, 0)),
    "Ollama in usage": (end_with(usage={"prompt_eval_count": 100, "eval_count": 500}), (100, 500, 0)),
}


async def test_usage_under_each_name_is_read(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, (answer, expected) in USAGES.items():
        model.script_answers(answer)
        usage = (await gateway.chat_stream("Run it.", store=False)).get_event_data("turn.completed")[0]["usage"]
        told = usage["prompt_tokens"], usage["completion_tokens"], usage["cached_tokens"]
        if told != expected or usage["total_tokens"] != expected[0] + expected[1]:
            wrong[name] = usage
    assert wrong == {}

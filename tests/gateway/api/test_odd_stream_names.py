"""Tests of odd lines and names in streams of model servers.

One test sends all forms of a kind through one gateway, from bytes to client.
"""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.gateway.api.test_odd_streams import complete, count_retries, join_content, stream_completion
from tests.gateway.api.test_upstream_errors import PROVIDERS
from tests.scripted_model import (
    USAGE,
    ScriptedAnswer,
    ScriptedModelServer,
    json_answer,
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
BODY = {"choices": [{"message": {"content": "AB"}, "finish_reason": "stop"}], "usage": USAGE}
PRETTY = json.dumps(BODY, indent=2).encode()
DELTAS = [{"choices": [say("A")]}, {"choices": [say("B")]}, {"choices": [say("", finish_reason="stop")]}]
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
    "several deltas in a choice": stream_choices(
        {"delta": [{"content": "A"}, {"content": "B"}]}, say("", finish_reason="stop")
    ),
    "pretty body": ScriptedAnswer(PRETTY),
    "pretty body as JSON": ScriptedAnswer(PRETTY + b"\n", headers={"Content-Type": "application/json"}),
    "pretty body of Windows": ScriptedAnswer(PRETTY.replace(b"\n", b"\r\n")),
    "pretty body with CR": ScriptedAnswer(PRETTY.replace(b"\n", b"\r")),
    "BOM before a pretty body": ScriptedAnswer(b"\xef\xbb\xbf" + PRETTY),
    "body with a line end": ScriptedAnswer(json.dumps(BODY).encode() + b"\n"),
    "body behind comments": ScriptedAnswer(b": waiting\n\n" + PRETTY),
    "body before the end of a stream": ScriptedAnswer(PRETTY + b"\n\ndata: [DONE]\n\n"),
    "body before a stream": ScriptedAnswer(b'{"status": "queued"}\n' + PLAIN),
    "body in a list": ScriptedAnswer(b"[" + PRETTY + b"]"),
    "list of chunks": ScriptedAnswer(json.dumps(DELTAS, indent=1).encode()),
    "line of JSON each": ScriptedAnswer(b"".join(json.dumps(chunk).encode() + b"\n" for chunk in DELTAS)),
}


async def test_each_form_of_bodies_lines_choices_and_ends_is_read(gateway: Gateway, model: ScriptedModelServer) -> None:
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


def refuse(status: int, **error: Any) -> ScriptedAnswer:
    return json_answer({"error": {"message": "Refused.", **error}}, status=status)


async def test_wait_of_a_rate_limit_is_read_under_each_name(gateway: Gateway, model: ScriptedModelServer) -> None:
    reset = str(int((time.time() + 4000) * 1000))
    forms: list[ScriptedAnswer] = [
        refuse(429, retry_after_ms=3_600_000),
        json_answer({"error": "Refused.", "retry_after_ms": "3600000"}, status=429),
        refuse(429, retry_after_seconds=3600),
        refuse(429, metadata={"headers": {"Retry-After": "3600"}}),
        refuse(429, metadata={"headers": {"retry-after-ms": "3600000"}}),
        refuse(429, code=429, metadata={"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}}),
        ScriptedAnswer(b"{}", 429, {"retry-after-ms": "3600000"}),
    ]
    wrong: list[Any] = []
    for number, answer in enumerate(forms):
        model.script_answers(answer)
        reply = await gateway.chat("Hello.", model=f"limited-{number}", store=False)
        wait = int(reply.headers.get("Retry-After", 0))
        if reply.status != 429 or not 3000 <= wait <= 4000 or len(model.requests) > 1:
            wrong.append((number, reply.status, wait, reply.body))
    assert wrong == []


LIMITED = "Rate limit reached. Please try again in 0.01s."
NOTICES: dict[str, bytes] = {
    "object": json.dumps({"object": "error", "message": LIMITED, "code": 429}).encode(),
    "bare": json.dumps({"message": LIMITED, "code": 429}).encode(),
    "text code": json.dumps({"code": "Throttling.RateQuota", "message": LIMITED}).encode(),
    "detail": json.dumps({"detail": LIMITED}).encode(),
    "problem": json.dumps({"status": 429, "title": "Too Many Requests", "detail": "retry in 0.01s"}).encode(),
    "list": json.dumps({"errors": [{"message": LIMITED, "code": "429"}]}).encode(),
    "text": LIMITED.encode(),
    "choice": json.dumps(
        {"choices": [say("", finish_reason="error", error={"code": 429, "message": LIMITED})]}
    ).encode(),
}


@pytest.mark.faults
async def test_error_of_a_stream_is_read_in_each_form(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, notice in NOTICES.items():
        for body in (b"event: error\ndata: " + notice + b"\n\n", b"data: " + notice + b"\n\ndata: [DONE]\n\n"):
            model.script_answers(ScriptedAnswer(body))
            reply = await gateway.chat_stream("Hello.", model=f"limited-{name}", store=False)
            if (count_retries(reply), reply.text) != (["model_rate_limited"], "All done."):
                wrong[name] = count_retries(reply), reply.body, reply.events[-1:]
    assert wrong == {}


async def test_error_in_a_pretty_body_is_read(gateway: Gateway, model: ScriptedModelServer) -> None:
    error = {"error": {"message": LIMITED, "code": "rate_limit_exceeded"}}
    model.script_answers(ScriptedAnswer(json.dumps(error, indent=2).encode()))
    reply = await gateway.chat_stream("Hello.", model="limited-pretty", store=False)
    assert (count_retries(reply), reply.text) == (["model_rate_limited"], "All done.")


async def test_notice_in_a_stream_costs_no_answer(gateway: Gateway, model: ScriptedModelServer) -> None:
    for notice in NOTICES.values():
        if b"finish_reason" not in notice:
            model.script_answers(ScriptedAnswer(b"data: " + notice + b"\n\n" + PLAIN))
            assert (await gateway.chat_stream("Hello.", store=False)).text == "AB"


CALL = '{"name": "calculator", "arguments": {"expression": "1+1"}}'
ABOUT_ERRORS = (
    '{"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded", "status_code": 429}}',
    "data: [DONE]",
    'data: {"error": {"message": "prompt is too long"}}\n\n',
    "[ERROR] Too many requests. Please try again in 5s.",
    f"Failed to parse tool call: raw='{CALL}', err=unexpected end",
    f"The server says tool_use_failed, with the failed_generation {CALL}",
    "finish_reason: abort",
    "null",
)


@pytest.mark.parametrize("member", ["content", "reasoning", "refusal"])
async def test_answer_that_is_about_an_error_stays_an_answer(
    gateway: Gateway, model: ScriptedModelServer, member: str
) -> None:
    for text in ABOUT_ERRORS:
        rest: list[dict[str, Any]] = [{"content": "."}] if member == "reasoning" else []
        model.script_answers(stream_deltas({member: text}, *rest))
        reply = await gateway.chat_stream("Why?", store=False)
        kind = "reasoning.delta" if member == "reasoning" else "text.delta"
        assert "".join(event["text"] for event in reply.get_event_data(kind)) == text
        assert reply.get_event_data("turn.completed")
        assert not reply.get_event_data("tool.call")
        assert len(model.requests) == 1


async def test_cut_body_is_asked_again(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(ScriptedAnswer(PRETTY[:-20]))
    reply = await gateway.chat_stream("Hello.", store=False)
    assert (count_retries(reply), reply.text) == (["model_stream_broken"], "All done.")


async def test_short_wait_in_milliseconds_is_waited(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(refuse(429, retry_after_ms=5))
    reply = await gateway.chat_stream("Hello.", model="limited-shortly", store=False)
    assert (count_retries(reply), reply.text) == (["model_rate_limited"], "All done.")


async def test_403_about_the_model_is_not_told_as_one_about_the_key(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    text = "Project `p` does not have access to model `m`"
    model.script_answers(refuse(403, code="model_not_found", message=text))
    error = (await gateway.chat("Hello.", store=False)).body["error"]
    assert (error["code"], error["message"]) == ("model_not_permitted", text)


async def test_text_that_is_too_long_for_a_field_stays_a_refusal(gateway: Gateway, model: ScriptedModelServer) -> None:
    text = "Invalid 'user': string too long. Expected a string with maximum length 64."
    model.script_answers(refuse(400, message=text))
    error = (await gateway.chat("Hello.", store=False)).body["error"]
    assert error["code"] == "model_request_refused"
    assert text in error["message"]

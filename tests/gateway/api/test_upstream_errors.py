"""Tests of errors of model servers, from bytes to client."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.simulator import Simulator
from tests.scripted_model import (
    ScriptedAnswer,
    ScriptedModelServer,
    json_answer,
    refuse_call,
    serve_scripted_model,
    stream_chunks,
    stream_deltas,
)
from tests.stack import Gateway, Reply, ServeSharedGateway, serve_gateway

CALL = '<function=calculator>{"expression":"1+1"}</function>'
PROVIDERS = {
    "groq": lambda url: {"groq_base_url": url},
    "openai": lambda url: {"groq_api_key": None, "openai_api_key": SecretStr("k" * 20), "openai_base_url": f"{url}/v1"},
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


def stream_error(error: object) -> ScriptedAnswer:
    """Begin a stream with reasoning, then send an error."""
    begin = stream_deltas({"role": "assistant"}, {"reasoning": "hm"}, finish_reason=None, usage=None)
    end = stream_chunks([{"error": error}])
    return ScriptedAnswer(begin.body.removesuffix(b"data: [DONE]\n\n") + b"event: error\n" + end.body)


def find_calls(reply: Reply) -> list[Any]:
    return [(call["tool"], call["arguments"]) for call in reply.get_event_data("tool.call")]


READABLE = {
    "text": refuse_call(CALL),
    "object": refuse_call({"name": "calculator", "arguments": {"expression": "1+1"}}),
    "list": refuse_call([{"name": "calculator", "arguments": {"expression": "1+1"}}]),
    "without a code": refuse_call(CALL, code=None),
    "an unknown code": refuse_call(CALL, code="something_new", type=None),
    "an odd code": refuse_call(CALL, code={"a": 1}, message=["x"]),
    "a string of llama.cpp": json_answer(
        {"error": {"code": 500, "message": f"Failed to parse: raw='{CALL}'"}}, status=500
    ),
    "a string of ollama": json_answer({"error": f"error parsing tool call: raw='{CALL}', err=unexpected"}, status=500),
    "in a stream": stream_error({"message": "x", "code": "output_parse_failed", "failed_generation": CALL}),
    "an object in a stream": stream_error(
        {"failed_generation": {"name": "calculator", "arguments": {"expression": "1+1"}}}
    ),
}


@pytest.mark.parametrize("answer", READABLE.values(), ids=READABLE)
async def test_readable_call_in_an_error_runs(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer
) -> None:
    model.script_answers(answer)
    reply = await gateway.chat_stream("Run it.")
    assert find_calls(reply) == [("calculator", {"expression": "1+1"})]
    assert reply.text == "All done."


UNREADABLE = {
    "prose": stream_error(
        {"code": "output_parse_failed", "failed_generation": "We need to answer", "status_code": 400}
    ),
    "no text": json_answer(
        {"error": {"code": 500, "message": "Failed to parse tool call arguments as JSON"}}, status=500
    ),
    "vLLM": json_answer({"object": "error", "message": "Error parsing function call", "code": 400}, status=400),
    "cut": refuse_call('<function=calculator>{"expression":"1+'),
    "one of two": refuse_call(f"<tool_call>{CALL}</tool_call><tool_call>and so on</tool_call>"),
    "unknown one of two": refuse_call(
        '[{"name": "calculator", "arguments": {"expression": "1+1"}}, {"name": "no_such_tool", "arguments": {}}]'
    ),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_unreadable_output_is_asked_again_and_never_opens_the_circuit(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer
) -> None:
    for _ in range(8):
        model.script_answers(answer)
        reply = await gateway.chat_stream("Run it.", store=False)
        assert [retry["reason"] for retry in reply.get_event_data("model.retry")] == ["tool_call_unreadable"]
        assert reply.text == "All done."
        assert "could not be made" in str(model.requests[1]["messages"])


ERRORS: dict[str, tuple[int, Any, tuple[int, str, str]]] = {
    "blocked model": (
        403,
        {"error": {"message": "The model `m` is blocked", "code": "model_permission_blocked_project"}},
        (403, "model_not_permitted", "The model `m` is blocked"),
    ),
    "blocked key": (403, {"error": {"message": "no", "code": "forbidden"}}, (502, "model_key_refused", "_API_KEY")),
    "validation in a message": (
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}},
        (400, "model_request_refused", "body.stream_options: Extra inputs"),
    ),
    "validation list": (
        422,
        {"detail": [{"loc": ["body", "n"], "msg": "Too large"}, {"loc": ["body"], "msg": "x"}]},
        (400, "model_request_refused", "body.n: Too large"),
    ),
    "wrong address": (404, "<html>Not Found</html>", (502, "model_error", "_BASE_URL")),
    "wrong address of FastAPI": (404, None, (502, "model_error", "_BASE_URL")),
    "unknown model": (
        404,
        {"error": {"message": "no such model", "code": "model_not_found"}},
        (404, "model_not_found", ""),
    ),
    "context of OpenAI": (
        400,
        {"error": {"message": "x", "code": "context_length_exceeded"}},
        (422, "prompt_too_long", ""),
    ),
    "context of vLLM": (
        400,
        {"object": "error", "message": "This model's maximum context length is 8192 tokens.", "code": 400},
        (422, "prompt_too_long", ""),
    ),
    "context of llama.cpp": (
        500,
        {"error": {"code": 500, "message": "the request exceeds the available context size (4096 tokens)"}},
        (422, "prompt_too_long", ""),
    ),
    "context in a string": (
        400,
        {"error": "prompt is too long: 210000 tokens > 200000 maximum"},
        (422, "prompt_too_long", ""),
    ),
}


@pytest.mark.parametrize(("status", "body", "expected"), ERRORS.values(), ids=ERRORS)
async def test_error_is_told_in_its_class(
    gateway: Gateway, model: ScriptedModelServer, status: int, body: Any, expected: tuple[int, str, str]
) -> None:
    model.script_answers(*[json_answer(body, status=status)] * 5)
    reply = await gateway.chat("Hello.")
    assert (reply.status, reply.body["error"]["code"]) == expected[:2]
    assert expected[2] in reply.body["error"]["message"]


async def test_fallback_answers_for_a_model_that_the_key_may_not_use(
    database_url: str, simulator: Simulator, tools_url: str, model: ScriptedModelServer
) -> None:
    body, _ = ERRORS["blocked model"][1:]
    async with serve_gateway(
        database_url, simulator, tools_url, groq_base_url=model.url, model_fallbacks=("openai/gpt-oss-20b",)
    ) as gateway:
        model.script_answers(json_answer(body, status=403))
        reply = await gateway.chat_stream("Hello.")
    assert reply.text == "All done."
    assert [request["model"] for request in model.requests] == ["openai/gpt-oss-120b", "openai/gpt-oss-20b"]


async def test_rate_limit_in_a_stream_waits_as_its_message_says(gateway: Gateway, model: ScriptedModelServer) -> None:
    error = {
        "message": "Please try again in 15ms.",
        "type": "tokens",
        "code": "rate_limit_exceeded",
        "status_code": 429,
    }
    model.script_answers(stream_error(error))
    reply = await gateway.chat_stream("Hello.")
    assert [retry["reason"] for retry in reply.get_event_data("model.retry")] == ["model_rate_limited"]
    assert reply.text == "All done."

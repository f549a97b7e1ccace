"""Tests of many forms of odd streams and errors.

One test sends all forms of a kind through one gateway, from bytes to client.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.gateway.api.test_odd_streams import (
    PURGE,
    A,
    B,
    complete,
    insert_line,
    join_content,
    part,
    stream_completion,
    stream_parts,
    stream_usage,
)
from tests.gateway.api.test_upstream_errors import CALL, PROVIDERS, find_calls, stream_error
from tests.scripted_model import (
    ScriptedAnswer,
    ScriptedModelServer,
    json_answer,
    serve_scripted_model,
    stream_chunks,
    stream_deltas,
)
from tests.stack import Gateway, Reply, ServeSharedGateway


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer) -> Gateway:
    settings: dict[str, Any] = PROVIDERS["openai"](model.url)
    return await serve_shared_gateway(model_retry_delay=0.001, **settings)


def stream_raw(*lines: str) -> ScriptedAnswer:
    """Stream lines as they are, then the end of an answer."""
    return ScriptedAnswer("".join(f"{line}\n\n" for line in lines).encode() + stream_deltas().body)


def flat_call(arguments: str) -> dict[str, Any]:
    return {"index": 0, "id": "A", "name": "purge", "arguments": arguments}


HALF_CALLS = [
    f'data: {{"choices":[{{"delta":{{"tool_calls":[{json.dumps(start)[:-1]},"function":{{{function}}}}}]}}}}]}}'
    for start, function in (
        ({"index": 0, "id": "A"}, '"name":"purge","arguments":"{\\"filter\\":\\"a\\ud83d"'),
        ({"index": 0}, '"arguments":"\\ude00\\"}"'),
    )
]
PARTS: dict[str, tuple[ScriptedAnswer, list[str]]] = {
    "index as text": (stream_parts(part(0, "A", "purge", ""), {"index": "0", "function": {"arguments": A}}), [A]),
    "indexes from one": (
        stream_parts(part(1, "A", "purge", ""), part(2, "B", "purge", ""), part(1, arguments=A), part(2, arguments=B)),
        [A, B],
    ),
    "name in pieces": (
        stream_parts(part(0, "A", "pur", ""), part(0, name="ge", arguments=""), part(0, arguments=A)),
        [A],
    ),
    "name behind the arguments": (stream_parts(part(0, "A", arguments=A), part(0, name="purge")), [A]),
    "unknown index behind a whole call": (
        stream_parts(part(0, "A", "purge", '{"filter":'), part(1, "B", "purge", B), part(7, arguments='"a"}')),
        [A, B],
    ),
    "no index behind a whole call": (
        stream_parts(part(0, "A", "purge", '{"filter":'), part(1, "B", "purge", B), part(arguments='"a"}')),
        [A, B],
    ),
    "index, id and name with each part": (
        stream_parts(part(0, "A", "purge", ""), part(1, "B", "purge", '{"filter":'), part(2, "C", "purge", '"a"}')),
        [A],
    ),
    "index, id and name with each part of two calls": (
        stream_parts(
            *(part(n, f"I{n}", "purge", text) for n, text in enumerate(['{"fil', 'ter":"a"}', '{"fil', 'ter":"b"}']))
        ),
        [A, B],
    ),
    "index and name with each part": (
        stream_parts(part(0, name="purge", arguments='{"fil'), part(1, name="purge", arguments='ter":"a"}')),
        [A],
    ),
    "id and name with each part": (
        stream_parts(
            part(None, "A", "purge", ""), part(None, "B", "purge", '{"filter":'), part(None, "C", "purge", '"a"}')
        ),
        [A],
    ),
    "interleaved by id with names": (
        stream_parts(
            part(None, "A", "purge", '{"filter":'),
            part(None, "B", "purge", '{"filter":'),
            part(None, "A", "purge", '"a"}'),
            part(None, "B", arguments='"b"}'),
        ),
        [A, B],
    ),
    "name alone before the second call": (
        stream_parts(part(0, name="purge", arguments=A), part(0, name="purge", arguments=""), part(0, arguments=B)),
        [A, B],
    ),
    "new id and name alone before the second call": (
        stream_parts(part(0, "A", "purge", A), part(0, "B", "purge", ""), part(0, arguments=B)),
        [A, B],
    ),
    "empty object first": (stream_parts(part(0, "A", "purge", "{}"), part(0, "A", "purge", A)), [A]),
    "empty object, then parts": (
        stream_parts(part(0, "A", "purge", "{}"), part(0, arguments='{"filter":'), part(0, arguments='"a"}')),
        [A],
    ),
    "same call with other blanks": (
        stream_parts(part(0, "A", "purge", A), part(1, "A", "purge", '{ "filter": "a" }')),
        [A],
    ),
    "same arguments of another id": (stream_parts(part(0, "A", "purge", A), part(1, "B", "purge", A)), [A, A]),
    "same arguments of another id without an index": (
        stream_parts(part(None, "A", "purge", A), part(None, "B", "purge", A)),
        [A, A],
    ),
    "empty part, then the whole arguments at the next index": (
        stream_parts(part(0, "A", "purge", ""), part(1, name="purge", arguments=A)),
        [A],
    ),
    "empty part, then the whole arguments at the next index, without ids": (
        stream_parts(part(0, name="purge"), part(1, name="purge", arguments=A)),
        [A],
    ),
    "empty object behind a repeated name": (
        stream_parts(part(name="purge", arguments=A), part(name="purge", arguments=""), part(arguments="{}")),
        [A],
    ),
    "one index, interleaved by id": (
        stream_parts(
            part(0, "A", "purge", ""),
            part(0, "A", arguments='{"filter":'),
            part(0, "B", "purge", ""),
            part(0, "B", arguments='{"filter":'),
            part(0, "A", arguments='"a"}'),
            part(0, "B", arguments='"b"}'),
        ),
        [A, B],
    ),
    "without a function": (stream_parts([flat_call(A)]), [A]),
    "one call without a list": (stream_deltas({"tool_calls": part(0, "A", "purge", A)}), [A]),
    "null beside a call": (stream_deltas({"tool_calls": [None, part(0, "A", "purge", A)]}), [A]),
    "halves of a pair": (stream_raw(*HALF_CALLS), ['{"filter":"a\U0001f600"}']),
    "other finish reason": (stream_parts(part(0, "A", "purge", A), finish_reason="stop"), [A]),
}


async def find_wrong_calls(
    gateway: Gateway, model: ScriptedModelServer, forms: dict[str, tuple[ScriptedAnswer, list[str]]]
) -> dict[str, Any]:
    """Return the unexpected calls that a client gets, whole and streamed."""
    wrong: dict[str, Any] = {}
    for name, (answer, expected) in forms.items():
        model.script_answers(answer, answer)
        whole = (await complete(gateway, tools=[PURGE]))["choices"][0]["message"].get("tool_calls", [])
        chunks = await stream_completion(gateway, tools=[PURGE])
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
        streamed = [call for delta in deltas for call in delta.get("tool_calls") or []]
        found = [[call["function"]["arguments"] for call in calls] for calls in (whole, streamed)]
        if found != [expected, expected]:
            wrong[name] = found
    return wrong


async def test_each_form_of_parts_becomes_the_calls_that_were_meant(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    assert await find_wrong_calls(gateway, model, PARTS) == {}


PIECES: dict[str, ScriptedAnswer] = {
    "cut": stream_parts(part(0, "A", "purge", ""), part(1, "B", "purge", '{"filter":'), finish_reason="length"),
    "not whole together": stream_parts(part(0, "A", "purge", ""), part(1, "B", "purge", '{"filter":')),
}


@pytest.mark.parametrize("answer", PIECES.values(), ids=PIECES)
async def test_call_beside_pieces_of_its_arguments_never_runs_without_them(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer
) -> None:
    model.script_answers(answer)
    message = (await complete(gateway, tools=[PURGE]))["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"] == "All done."


FINISHED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("max_completion_tokens", "MAX_LENGTH", "token_limit_reached", "context_length_exceeded", "truncated"),
            *("REASON_MAX_LEN", "max_context", "max_output", "out_of_tokens", "ERROR_LIMIT", "incomplete"),
        ),
        "length",
    ),
    **dict.fromkeys(
        (
            "content-filter",
            "content_filtered",
            "IMAGE_SAFETY",
            "moderation",
            "BLOCKLIST",
            "guardrail_intervened",
            "toxic",
        ),
        "content_filter",
    ),
    **dict.fromkeys(("eos_found", "pause_turn", "OTHER", "Stop Sequence"), "stop"),
    **dict.fromkeys(
        (
            "engine_overloaded",
            "upstream-error",
            "preempted",
            "timed_out",
            "connection_lost",
            "Exception",
            "failed",
            "oom",
            "REASON_TIME_LIMIT",
            "deadline",
            "engine_dead",
        ),
        "model_stream_broken",
    ),
}


async def test_each_finish_reason_is_understood(gateway: Gateway, model: ScriptedModelServer) -> None:
    told: dict[str, str] = {}
    for reason in FINISHED:
        model.script_answers(stream_deltas({"content": "Half"}, finish_reason=reason))
        request = {"model": f"model-of-{len(told)}", "messages": [{"role": "user", "content": "Run it."}]}
        body = (await gateway.post("/v1/chat/completions", request, headers={"X-Gateway-Tools": "none"})).body
        told[reason] = body["error"]["code"] if "error" in body else body["choices"][0]["finish_reason"]
    assert told == FINISHED


@pytest.mark.parametrize(
    "reason",
    [
        "MALFORMED_TOOL_CALL",
        "invalid_tool_call",
        "UNEXPECTED_TOOL_CALL",
        "tool_parse_error",
        "missing_thought_signature",
    ],
)
async def test_each_finish_reason_of_a_malformed_call_is_asked_again(
    gateway: Gateway, model: ScriptedModelServer, reason: str
) -> None:
    model.script_answers(stream_deltas({}, finish_reason=reason))
    reply = await gateway.chat_stream("Run it.")
    assert [retry["reason"] for retry in reply.get_event_data("model.retry")] == ["tool_call_unreadable"]
    assert reply.text == "All done."


def usage_answer(**figures: Any) -> ScriptedAnswer:
    return stream_usage({"choices": [], "usage": figures})


PROMPT, ANSWER = {"prompt_tokens": 100}, {"completion_tokens": 500}
USAGES: dict[str, tuple[ScriptedAnswer, tuple[int | None, int, int]]] = {
    "no tokens of the answer": (usage_answer(**PROMPT, completion_tokens=0, total_tokens=100), (100, 125, 0)),
    "no tokens of the prompt": (usage_answer(prompt_tokens=0, **ANSWER, total_tokens=500), (None, 500, 0)),
    "negative tokens of the prompt": (usage_answer(prompt_tokens=-5, **ANSWER), (None, 500, 0)),
    "prompt and total": (usage_answer(**PROMPT, total_tokens=600), (100, 500, 0)),
    "total alone": (usage_answer(total_tokens=600), (475, 125, 0)),
    "cached beside by the total": (
        usage_answer(**PROMPT, **ANSWER, total_tokens=680, prompt_tokens_details={"cached_tokens": 80}),
        (180, 500, 80),
    ),
    "cached as Anthropic tells": (
        usage_answer(input_tokens=100, output_tokens=500, cache_read_input_tokens=1000),
        (1100, 500, 1000),
    ),
    "cached as DeepSeek tells": (
        usage_answer(**PROMPT, **ANSWER, total_tokens=600, prompt_cache_hit_tokens=64),
        (100, 500, 64),
    ),
    "reasoning beside": (
        usage_answer(
            **PROMPT, completion_tokens=20, total_tokens=600, completion_tokens_details={"reasoning_tokens": 480}
        ),
        (100, 500, 0),
    ),
    "growing": (
        stream_usage(*({"choices": [], "usage": PROMPT | {"completion_tokens": n}} for n in (1, 250, 500, 0))),
        (100, 500, 0),
    ),
}


async def test_each_form_of_usage_is_read_or_estimated(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, (answer, (prompt, completion, cached)) in USAGES.items():
        model.script_answers(answer)
        usage = (await gateway.chat_stream("Run it.", store=False)).get_event_data("turn.completed")[0]["usage"]
        is_right = (usage["completion_tokens"], usage["cached_tokens"]) == (completion, cached)
        is_right = is_right and usage["total_tokens"] == usage["prompt_tokens"] + completion
        if not is_right or not usage["prompt_tokens"] or prompt not in (None, usage["prompt_tokens"]):
            wrong[name] = usage
    assert wrong == {}


def half(field: str) -> ScriptedAnswer:
    return stream_deltas({field: "a\ud83d"}, {field: "\ude00b"}, {"content": "" if field == "refusal" else "AB"})


TEXTS: dict[str, ScriptedAnswer] = {
    **{
        f"line {line!r}": insert_line(line + b"\n\n")
        for line in (
            b"data:",
            b": comment",
            b"data: [ping]",
            b"data: []",
            b"data: true",
            b'data: "x"',
            b"data: <keep-alive>",
            b'event: ping\ndata: {"type":"ping"}',
            b'data: {"choices":null}',
            b'data: {"choices":[null]}',
            b'data: {"choices":[{"delta":null}]}',
            b'data: {"choices":[{"delta":"x"}]}',
            b'data: {"choices":[{"delta":{"content":{}},"finish_reason":{}}]}',
            b'data: {"choices":[{"delta":{"executed_tools":"none","tool_calls":7,"reasoning":[]}}]}',
        )
    },
    "choice without a list": stream_chunks(
        [{"choices": {"delta": {"content": text}, "finish_reason": end}} for text, end in (("A", None), ("B", "stop"))]
    ),
    "chunk in a list": ScriptedAnswer(b'data: [{"choices":[{"delta":{"content":"AB"},"finish_reason":"stop"}]}]\n\n'),
    "finish reason as an object": stream_chunks(
        [{"choices": [{"delta": {"content": "AB"}, "finish_reason": {"type": "stop"}}]}]
    ),
    "line ends of Windows": ScriptedAnswer(stream_deltas({"content": "AB"}).body.replace(b"\n", b"\r\n")),
    "halves in reasoning": half("reasoning"),
    "more text behind the finish": stream_chunks(
        [
            {"choices": [{"delta": {"content": "A"}, "finish_reason": "stop"}]},
            {"choices": [{"delta": {"content": "B"}}]},
        ]
    ),
    "cut connection behind the finish": ScriptedAnswer(stream_deltas({"content": "AB"}).body, is_cut=True),
}


async def test_no_odd_part_costs_the_answer(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: dict[str, Any] = {}
    for name, answer in TEXTS.items():
        model.script_answers(answer)
        reply = await gateway.chat_stream("Run it.", store=False)
        if reply.text != "AB" or not reply.get_event_data("turn.completed") or len(model.requests) > 1:
            wrong[name] = reply.text, reply.body, reply.events[-2:]
    assert wrong == {}


@pytest.mark.parametrize(
    "content", [half("refusal"), stream_deltas({"content": [{"type": "refusal", "refusal": "a\U0001f600b"}]})]
)
async def test_refusal_in_an_odd_form_is_told_as_one(
    gateway: Gateway, model: ScriptedModelServer, content: ScriptedAnswer
) -> None:
    model.script_answers(content, content)
    message = (await complete(gateway))["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "a\U0001f600b")
    assert join_content(await stream_completion(gateway), "refusal") == "a\U0001f600b"


async def test_invalid_bytes_cost_one_character(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(
        ScriptedAnswer(b'data: {"choices":[{"delta":{"content":"a\xffb"},"finish_reason":"stop"}]}\n\n')
    )
    assert (await gateway.chat_stream("Run it.")).text == "a\ufffdb"


GENERATION = {"failed_generation": CALL}
READABLE: dict[str, ScriptedAnswer] = {
    "beside the error": json_answer({"error": {"message": "x"}, **GENERATION}, status=400),
    "without an error object": json_answer(GENERATION, status=422),
    "in an error of an error": json_answer({"error": {"error": GENERATION}}, status=400),
    "in a detail": json_answer({"detail": GENERATION}, status=500),
    "in a proxy's message": json_answer(
        {"error": {"message": "BadRequestError: GroqException - " + json.dumps({"error": GENERATION})}}, status=400
    ),
    "another status": json_answer({"error": {"code": "tool_use_failed", **GENERATION}}, status=503),
    "raw, then the reason": json_answer(
        {"error": f"error parsing tool call: raw='{CALL}', err=invalid character '}}' after top-level value"},
        status=500,
    ),
    "behind a position": json_answer({"error": {"message": f"Failed to parse input at pos 7: {CALL}"}}, status=500),
    "in a list in a stream": stream_chunks([[{"error": GENERATION}]]),  # type: ignore[list-item]
}
UNREADABLE = {
    "empty": json_answer({"error": {"failed_generation": "", "message": "x"}}, status=400),
    "null": json_answer({"error": {"failed_generation": None, "code": "tool_use_failed"}}, status=400),
    "unable": json_answer({"error": {"message": "Unable to parse function call: x"}}, status=500),
    "failed": json_answer({"error": {"message": "Tool call parsing failed"}}, status=500),
    "Harmony": json_answer({"error": {"message": "unexpected tokens remaining in message header: x"}}, status=500),
    "llama.cpp": json_answer({"error": {"message": "Invalid diff: now finding less tool calls!"}}, status=500),
    "another tool": json_answer({"error": {"message": "attempted to call tool 'x' not in request.tools"}}, status=400),
    "validation": json_answer({"error": {"message": "tool call validation failed: no such parameter"}}, status=400),
    "character": json_answer({"error": {"message": "invalid character 'x' in tool call arguments"}}, status=500),
    "OpenRouter": json_answer(
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":"Failed to parse tool call"}'}}},
        status=502,
    ),
    "no generation": json_answer({"error": {"message": "Failed to call a function. Adjust your prompt."}}, status=400),
}


def list_retries(reply: Reply) -> list[str]:
    return [retry["reason"] for retry in reply.get_event_data("model.retry")]


async def test_each_form_of_a_rejected_call_runs_or_is_asked_again(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    wrong: dict[str, Any] = {}
    for name, answer in (READABLE | UNREADABLE).items():
        model.script_answers(answer)
        reply = await gateway.chat_stream("Run it.", store=False)
        expected = [("calculator", {"expression": "1+1"})] if name in READABLE else []
        if find_calls(reply) != expected or reply.text != "All done.":
            wrong[name] = find_calls(reply), reply.body, reply.events[-2:]
        if (list_retries(reply) == ["tool_call_unreadable"]) == (name in READABLE):
            wrong[name] = list_retries(reply)
    assert wrong == {}


def message(text: str) -> dict[str, Any]:
    return {"error": {"message": text}}


LONG = (422, "prompt_too_long", "")
REFUSAL = (400, "model_request_refused", "")
REFUSED, NO_ADDRESS, NO_MODEL = (
    (400, "model_request_refused"),
    (502, "model_error", "_BASE_URL"),
    (404, "model_not_found", ""),
)
ERRORS: list[tuple[int, Any, tuple[int, str, str]]] = [
    *(
        (400, message(text), LONG)
        for text in (
            "Range of input length should be [1, 129024]",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            "Your request exceeded model token limit: 262144",
            "Input is too long for requested model.",
            "`inputs` must have less than 1024 tokens. Given: 2000",
            "Input tokens exceed the configured limit of 272000 tokens.",
            "sequence length is longer than the specified maximum (40000 > 32768)",
            "input too large: max seq len is 8192 tokens",
            "400 context overflow",
            "input length and `max_tokens` exceed context limit: 195000 + 8192 > 200000",
            "The total number of tokens (150000) is larger than the model's limit (128000)",
            "Request is too long: 150000 tokens, this model accepts at most 131072",
            "messages resulted in 150000 tokens, but the maximum is 131072",
            "Prompt has 40000 tokens which is more than the context of 32768",
            "the prompt does not fit into the context",
            "\u8f93\u5165\u8d85\u8fc7\u6700\u5927\u957f\u5ea6",
            "'max_tokens' is too large: 32000. This model's maximum context length is 32768 tokens",
        )
    ),
    *(
        (400, message(text), (*REFUSED, text))
        for text in (
            "max_tokens (32000) exceeds the maximum output tokens of this model (16384)",
            "The value of max_tokens exceeds the model's maximum of 4096",
            "max_completion_tokens exceeds the limit of 65536 tokens",
            "thinking budget exceeds the maximum of 32768 tokens",
            "max_tokens is too large: 32000. This model supports at most 16384 completion tokens",
            "Tool name exceeds the maximum length of 64",
            "Image input exceeds the maximum size of 5 MB",
            "Error parsing JSON body: unexpected token while parsing tool call definitions",
            "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'",
            "Function call is missing a thought_signature in functionCall parts",
        )
    ),
    (400, message("Failed to parse arguments as JSON in messages[1]"), (*REFUSED, "as JSON in messages[0]")),
    (
        400,
        {"error": {"code": "string_above_max_length", "message": "'messages[1].tool_calls[0].id' too long"}},
        REFUSAL,
    ),
    (400, {"error": {"code": "string_above_max_length", "message": "'messages[1].content' too long"}}, LONG),
    (
        400,
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"n_ctx is 4096"}}'}}},
        LONG,
    ),
    (
        400,
        message("`max_tokens` must be less than or equal to `8192`, less than the `context_window`"),
        (*REFUSED, "8192"),
    ),
    (404, {"detail": "Not Found"}, NO_ADDRESS),
    (404, "404 page not found", NO_ADDRESS),
    (404, {"error": "Not Found", "path": "/v1/chat/completions"}, NO_ADDRESS),
    (404, message("Invalid URL (POST /v1/chat/completions)"), NO_ADDRESS),
    (404, message("Not Found"), NO_ADDRESS),
    (404, {"error": {}}, NO_ADDRESS),
    (405, {"detail": "Method Not Allowed"}, NO_ADDRESS),
    (404, message("No endpoints found that support tool use."), (*NO_MODEL[:2], "support tool use")),
    (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, NO_MODEL),
    (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}, NO_MODEL),
    (422, {"detail": [{"loc": ["body", "messages", 1], "msg": "Bad"}]}, (*REFUSED, "body.messages.0: Bad")),
    (422, {"error": {"detail": [{"loc": ["body", "n"], "msg": "Bad"}]}}, (*REFUSED, "body.n: Bad")),
    (422, {"errors": [{"loc": ["n"], "msg": "Bad"}]}, (*REFUSED, "n: Bad")),
    (422, {"detail": [{"msg": "Bad"}]}, (*REFUSED, "Bad")),
    (422, {"detail": '[{"loc": ["n"], "msg": "Bad"}]'}, (*REFUSED, "n: Bad")),
    (400, {"object": "error", "message": "[{'loc': ('body', 'n'), 'msg': 'Bad', 'x': True}]"}, (*REFUSED, "y.n: Bad")),
    (400, message("Invalid parameter: temperature exceeds maximum 2"), (*REFUSED, "temperature")),
    (422, {"detail": {"loc": ["n"], "msg": "Bad"}}, (*REFUSED, "n: Bad")),
    (
        403,
        {"error": {"type": "model_permission_blocked_org", "message": "M is blocked"}},
        (403, "model_not_permitted", "M is"),
    ),
    (403, message("You are not allowed to sample from this model"), (403, "model_not_permitted", "to sample")),
]


async def test_each_error_is_told_in_its_class(gateway: Gateway, model: ScriptedModelServer) -> None:
    wrong: list[Any] = []
    for number, (status, body, expected) in enumerate(ERRORS):
        answers = [json_answer(body, status=status)]
        if isinstance(body, dict) and expected != NO_ADDRESS:  # the same inside a stream
            answers.append(stream_chunks([{"error": {"status_code": status, **body}}]))
        for answer in answers:
            model.script_answers(*[answer] * 5)
            reply = await gateway.chat("Hello.", model=f"model-{number}", store=False)
            told = reply.status, reply.body["error"]["code"], reply.body["error"]["message"]
            if told[:2] != expected[:2] or expected[2] not in told[2]:
                wrong.append((body, told))
    assert wrong == []


WAITS = {
    "Please try again in 12ms.": True,
    "Please retry after 0.01 seconds.": True,
    "Please wait 5 milliseconds": True,
    "Try again in 1m26.4s": False,
    "Limit resets in 2 minutes and 5 seconds": False,
}


@pytest.mark.faults
async def test_each_wait_of_a_rate_limit_is_read(gateway: Gateway, model: ScriptedModelServer) -> None:
    waited: dict[str, bool] = {}
    for text in WAITS:
        model.script_answers(stream_error({"message": text, "code": 429}), stream_error(f"Rate limit reached. {text}"))
        reply = await gateway.chat_stream("Hello.", model=f"model-{len(waited)}", store=False)
        waited[text] = reply.text == "All done."
    assert waited == WAITS

"""The stream decoder, with reads cut at every position."""

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.errors import (
    ModelAnswerTooLong,
    ModelRateLimited,
    ModelRequestRefused,
    ModelStreamBroken,
    ModelUnavailable,
)
from gateway.domain.messages import ToolCall
from gateway.llm.chunks import read_usage
from gateway.llm.stream import ChunkReader, read_whole_answer


class Sink:
    def __init__(self) -> None:
        self.output: list[object] = []
        self.accepted_count = 0

    def on_accepted(self) -> None:
        self.accepted_count += 1

    def on_text(self, text: str) -> None:
        self._join("text", text)

    def on_reasoning(self, text: str) -> None:
        self._join("reasoning", text)

    def on_tool_call(self, call: ToolCall) -> None:
        self.output.append(call)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self.output.append((call.name, call.arguments, output))

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None: ...

    @property
    def capacity(self) -> "Sink":
        return self

    def has_capacity(self) -> bool:
        return True

    async def wait_for_capacity(self) -> None: ...

    def _join(self, kind: str, text: str) -> None:
        last = self.output[-1] if self.output else None
        if isinstance(last, tuple) and last[0] == kind:
            self.output[-1] = (kind, last[1] + text)
        else:
            self.output.append((kind, text))


def sse(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks)


def delta(finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"id": "c", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def part(index: int, arguments: str, name: str | None = None, call_id: str | None = None) -> dict[str, object]:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


STREAM = (
    sse(delta(role="assistant", content=""), delta(reasoning="Ich prüfe "), delta(reasoning="das…"))
    + sse(delta(content="Grüße 👋"))
    + b": a comment\n\n"
    + sse(
        delta(tool_calls=[part(0, '{"expr', "calculator", "a")]),
        delta(tool_calls=[part(0, 'ession":"1+1"}')]),
        delta(tool_calls=[part(1, "{}", "list_tasks", "b")]),
        delta(finish="tool_calls"),
        {
            "choices": [],
            "x_groq": {
                "usage": {
                    "prompt_tokens": 7,
                    "completion_tokens": 3,
                    "total_tokens": 10,
                    "prompt_tokens_details": {"cached_tokens": 4},
                }
            },
        },
    )
    + b"data: [DONE]\n\n"
)
EXPECTED_OUTPUT = [
    ("reasoning", "Ich prüfe das…"),
    ("text", "Grüße 👋"),
    ToolCall("a", "calculator", '{"expression":"1+1"}'),
    ToolCall("b", "list_tasks", "{}"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_output_does_not_depend_on_the_size_of_reads(size: int) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    for start in range(0, len(STREAM), size):
        reader.feed_bytes(STREAM[start : start + size])
    answer = reader.finish_answer()
    assert sink.output == EXPECTED_OUTPUT
    assert sink.accepted_count == 1
    assert answer.finish_reason == "tool_calls"
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens, answer.usage.total_tokens) == (7, 4, 10)
    assert reader.is_done


def test_text_of_one_read_is_one_delta() -> None:
    texts: list[str] = []
    sink = Sink()
    sink.on_text = texts.append  # type: ignore[method-assign]
    ChunkReader(sink).feed_bytes(sse(*(delta(content=word) for word in "abc")))
    assert texts == ["abc"]


ODD_LINES: dict[str, bytes] = {
    "BOM": b"\xef\xbb\xbf" + STREAM,
    "CR": STREAM.replace(b"\n", b"\r"),
    "CRLF": STREAM.replace(b"\n", b"\r\n"),
    "CR among LF": STREAM.replace(b"\n\n", b"\r\r", 3),
    "several lines": STREAM.replace(b', "', b'\nid: 1\ndata: , "'),
    "several lines with CRLF": STREAM.replace(b', "', b'\ndata: , "').replace(b"\n", b"\r\n"),
    "several lines with CR": STREAM.replace(b', "', b'\ndata: , "').replace(b"\n", b"\r"),
    "several lines behind an empty object": STREAM.replace(b"data: {", b"data: {\ndata: "),
}


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("stream", ODD_LINES.values(), ids=ODD_LINES)
def test_lines_in_odd_forms_are_read_whatever_the_size_of_reads(stream: bytes, size: int) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    for start in range(0, len(stream), size):
        reader.feed_bytes(stream[start : start + size])
    answer = reader.finish_answer()
    assert sink.output == EXPECTED_OUTPUT
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, reader.is_done) == (7, 10, True)


def test_endless_event_of_several_lines_breaks_the_stream() -> None:
    reader = ChunkReader(Sink())
    for _ in range(3):
        reader.feed_bytes(b"data: {" + b"x" * 80_000 + b"\n")
    with pytest.raises(ModelStreamBroken, match="event that is too long"):
        reader.feed_bytes(b"data: {" + b"x" * 80_000 + b"\n")


def choose(index: int | None, text: str, finish: str | None = None) -> dict[str, object]:
    choice: dict[str, object] = {"delta": {"content": text}, "finish_reason": finish}
    return {"choices": [choice if index is None else choice | {"index": index}]}


@pytest.mark.parametrize(
    "chunks",
    [
        [choose(0, "A"), choose(1, "x"), choose(0, "B"), choose(1, "y", "length"), choose(0, "", "stop")],
        [{"choices": []}, choose(1, "A"), choose(0, "x"), choose(1, "B"), choose(0, "y"), choose(1, "", "stop")],
        [choose(2, "A"), choose(2, "B"), choose(None, "", "stop")],
        [choose(None, "A"), choose(0, "B"), choose(None, "", "stop")],
        [{"choices": [{"index": 1, "delta": {"content": "x"}}, {"index": 0, "delta": {"content": "y"}}]}],
    ],
    ids=["second behind the first", "first behind the second", "another number", "no number", "together"],
)
def test_only_the_first_choice_is_read(chunks: list[dict[str, object]]) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse(*chunks))
    assert sink.output == [("text", "AB" if len(chunks) > 1 else "x")]
    if len(chunks) > 1:
        assert reader.finish_answer().finish_reason == "stop"


def test_windows_line_ends_are_accepted() -> None:
    sink = Sink()
    ChunkReader(sink).feed_bytes(sse(delta(content="x")).replace(b"\n", b"\r\n"))
    assert sink.output == [("text", "x")]


def test_stream_without_a_finish_reason_is_broken() -> None:
    reader = ChunkReader(Sink())
    reader.feed_bytes(sse(delta(content="half an ans")))
    with pytest.raises(ModelStreamBroken):
        reader.finish_answer()


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"data: {not json}\n\n", ModelStreamBroken),
        (b'event: error\ndata: {"error":{"message":"m","code":"tool_use_failed"}}\n\n', ModelRequestRefused),
        (b'data: {"error":{"message":"m","code":"rate_limit_exceeded"}}\n\n', ModelRateLimited),
        (b'data: {"error":{"message":"m","status_code":503}}\n\n', ModelUnavailable),
        (b'data: {"error":{"message":"m","code":"capacity_exceeded"}}\n\n', ModelUnavailable),
        (b'data: {"choices":[],"x_groq":{"error":"stopped early"}}\n\n', ModelStreamBroken),
        (b'data: {"error":"x"}\n\n', ModelStreamBroken),
    ],
)
def test_error_inside_the_stream_is_raised_after_the_text_before_it(frame: bytes, error: type[Exception]) -> None:
    sink = Sink()
    with pytest.raises(error):
        ChunkReader(sink).feed_bytes(sse(delta(content="before")) + frame)
    assert sink.output == [("text", "before")]


@pytest.mark.parametrize(
    "payload", [b'{"choices":[{"delta":{"content":"\xff"}}', b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
)
def test_invalid_json_and_deep_nesting_break_the_stream(payload: bytes) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    with pytest.raises(ModelStreamBroken):
        reader.feed_bytes(sse(delta(content="a")) + b"data: " + payload + b"\n\n")
    assert sink.output == [("text", "a")]
    with pytest.raises(ModelStreamBroken):
        read_whole_answer(payload, sink)


def test_endless_line_breaks_the_stream() -> None:
    reader = ChunkReader(Sink())
    with pytest.raises(ModelStreamBroken, match="too long"):
        any(map(reader.feed_bytes, [b"data: " + b"x" * 64 * 1024] * 100))


def test_null_fields_are_ignored() -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    nulls = {"prompt_tokens": 7, "completion_tokens": None, "total_tokens": None, "prompt_tokens_details": None}
    reader.feed_bytes(
        sse(
            {"choices": [{"delta": None, "finish_reason": None}], "usage": None, "error": None},
            delta(content="a", tool_calls=None),
            delta(content=None, tool_calls=[{"index": None, "id": "x", "function": {"name": "f", "arguments": None}}]),
            {"choices": [{"delta": None, "finish_reason": "tool_calls"}]},
            {"choices": None, "usage": nulls},
        )
    )
    answer = reader.finish_answer()
    assert sink.output == [("text", "a"), ToolCall("x", "f", "")]
    assert (answer.finish_reason, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("tool_calls", 7, 7)
    assert read_whole_answer(b'{"choices":[{"message":{"content":null}}],"usage":null}', sink).usage.total_tokens == 0


@pytest.mark.parametrize(
    "parts",
    [
        [part(0, "{}", "f", "a"), part(0, '{"x":1}', "g", "b")],
        [part(0, "{}", "f", "a"), part(1, '{"x"', "g", "b"), part(1, ":1}", "g", "b")],
        [part(0, "{}", "f", "a"), {"index": 1, "id": "b", "function": {"name": "g", "arguments": {"x": 1}}}],
        [part(0, "{}", "f", "a"), part(1, '{"x"', "g", "b"), part(1, ":1}", None, "b")],
    ],
    ids=["no-count", "named-again", "arguments-as-object", "id-again"],
)
def test_tool_calls_in_formats_of_other_servers_are_separated(parts: list[dict[str, object]]) -> None:
    expected: list[object] = [ToolCall("a", "f", "{}"), ToolCall("b", "g", '{"x":1}')]
    for chunks in ([delta(tool_calls=[each]) for each in parts], [delta(tool_calls=parts)]):
        sink = Sink()
        reader = ChunkReader(sink)
        reader.feed_bytes(sse(*chunks, delta(finish="tool_calls")))
        reader.finish_answer()
        assert sink.output == expected


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_in_a_chunk_with_text_is_emitted(name: str) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse(delta(**{name: "So."}, content="Yes")))
    assert sink.output == [("reasoning", "So."), ("text", "Yes")]


def test_line_without_data_is_ignored() -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse(delta(content="a")) + b"data:\n\ndata: \r\n\r\n" + sse(delta(finish="stop", content="b")))
    assert (sink.output, reader.finish_answer().finish_reason) == ([("text", "ab")], "stop")


def test_hosted_tool_call_is_emitted_once_when_complete() -> None:
    def executed(**fields: object) -> dict[str, object]:
        tool = {"index": 0, "type": "search", "arguments": '{"query": "camels"}', **fields}
        return {"choices": [{"delta": {"executed_tools": [tool]}}]}

    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse(executed(), executed(output="two humps"), executed(output="two humps")))
    reader.feed_bytes(sse({"choices": [{"delta": {"content": "Two."}, "finish_reason": "stop"}]}))
    assert sink.output == [("search", '{"query": "camels"}', "two humps"), ("text", "Two.")]


def test_reasoning_content_of_other_servers_is_emitted() -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse({"choices": [{"delta": {"reasoning_content": "Hm."}}]}))
    assert sink.output == [("reasoning", "Hm.")]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x" * 10},
        {"reasoning": "x" * 10},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "t", "arguments": "x" * 10}}]},
        {"executed_tools": [{"index": 0, "arguments": "", "output": "x" * 100}]},
    ],
    ids=["text", "reasoning", "arguments", "server tools"],
)
def test_answer_is_refused_when_it_is_too_long(delta: dict[str, object]) -> None:
    reader = ChunkReader(Sink(), max_chars=95)
    payload = b"data: " + msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"
    for _ in range(9 if "executed_tools" not in delta else 0):
        reader.feed_bytes(payload)
    with pytest.raises(ModelAnswerTooLong):
        reader.feed_bytes(payload)


def build_call_deltas(count: int) -> dict[str, object]:
    return {
        "tool_calls": [{"index": n, "id": f"c{n}", "function": {"name": "t", "arguments": "{}"}} for n in range(count)]
    }


def build_server_calls(count: int) -> dict[str, object]:
    return {"executed_tools": [{"index": n, "arguments": "{}", "output": "x"} for n in range(count)]}


@pytest.mark.parametrize("build_delta", [build_call_deltas, build_server_calls], ids=["tool calls", "server tools"])
def test_answer_is_refused_when_it_has_too_many_tool_calls(build_delta: Callable[[int], dict[str, object]]) -> None:
    sink = Sink()
    reader = ChunkReader(sink)
    reader.feed_bytes(sse({"choices": [{"delta": build_delta(128), "finish_reason": "tool_calls"}]}))
    reader.finish_answer()
    assert len(sink.output) == 128
    with pytest.raises(ModelAnswerTooLong, match="contains more than 128 tool calls"):
        ChunkReader(Sink()).feed_bytes(sse({"choices": [{"delta": build_delta(129)}]}))


def test_reasoning_under_two_names_is_emitted_once() -> None:
    sink = Sink()
    details = [{"type": "reasoning.summary", "summary": "hm"}]
    ChunkReader(sink).feed_bytes(sse(delta(reasoning="hm", reasoning_details=details, thinking="hm")))
    assert sink.output == [("reasoning", "hm")]


_COUNTS = st.one_of(st.integers(0, 20), st.integers(0, 10**6))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a loaded machine
@given(prompt=_COUNTS, completion=_COUNTS, total=_COUNTS, cached=st.none() | _COUNTS, reasoning=st.none() | _COUNTS)
def test_usage_of_the_usual_form_is_read_as_that_of_any_other(
    prompt: int, completion: int, total: int, cached: int | None, reasoning: int | None
) -> None:
    """Figures that are strings are not of the usual form."""
    usage: dict[str, object] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "queue_time": 0.25,
    }
    assert read_usage(usage) == read_usage(usage | {"completion_tokens": str(completion)})

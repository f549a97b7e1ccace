"""Decodes a chat-completions stream from raw bytes.

All chunks of one read are decoded together. See docs/adr/0003.
"""

from typing import Any

import msgspec

from gateway.domain.errors import ModelAnswerTooLong, ModelStreamBroken
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, ToolCall, Usage
from gateway.llm.upstream_errors import make_stream_error
from gateway.ports.model import ModelAnswer, ModelSink


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | JsonObject | None = None


class _ToolCallDelta(msgspec.Struct, gc=False):
    index: int | None = 0
    id: str | None = None
    function: _Function | None = None


class _ServerToolCall(msgspec.Struct, gc=False):
    index: int = 0
    type: str = "tool"
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCallDelta] | None = None
    executed_tools: list[_ServerToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptTokensDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionTokensDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _WireUsage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    total_tokens: int | None = 0
    queue_time: float | None = None
    completion_time: float | None = None
    total_time: float | None = None
    prompt_tokens_details: _PromptTokensDetails | None = None
    completion_tokens_details: _CompletionTokensDetails | None = None

    def to_usage(self) -> Usage:
        prompt_details, completion_details = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            prompt_tokens=self.prompt_tokens or 0,
            completion_tokens=self.completion_tokens or 0,
            total_tokens=self.total_tokens or 0,
            cached_tokens=(prompt_details and prompt_details.cached_tokens) or 0,
            reasoning_tokens=(completion_details and completion_details.reasoning_tokens) or 0,
            queue_time=self.queue_time or 0.0,
            model_time=self.total_time or 0.0,
            generation_time=self.completion_time or 0.0,
        )


class _XGroq(msgspec.Struct, gc=False):
    usage: _WireUsage | None = None
    error: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _WireUsage | None = None
    x_groq: _XGroq | None = None
    error: Any = None


_MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_ANSWER_CHARS = 2_000_000
"""Length at which an answer is refused.

It is several times that of the longest answer that a model can write.
"""
MAX_ANSWER_CALLS = 128
"""Number of tool calls beyond which an answer is refused."""
_EMPTY_DELTA = _Delta()
_decode = msgspec.json.Decoder(_Chunk, strict=False).decode


class _PartialCall:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def is_ended_by(self, delta: _ToolCallDelta) -> bool:
        """Whether the delta begins another call.

        Some servers send no index, or repeat the name in each delta.
        """
        return bool(self.id and delta.id and delta.id != self.id and delta.function and delta.function.name)

    def add_delta(self, delta: _ToolCallDelta) -> int:
        """Add a part of the call; return its length in characters."""
        self.id = delta.id or self.id
        if (function := delta.function) is None:
            return 0
        name = function.name if function.name and function.name != self.name else ""
        self.name += name
        arguments = function.arguments or ""
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        self.arguments.append(text)
        return len(name) + len(text)

    def to_tool_call(self) -> ToolCall:
        return ToolCall(self.id, self.name, "".join(self.arguments))


class ChunkReader:
    """Incremental parser of one stream.

    It passes the model's output to a sink. A tool call reaches the sink when the next call begins or the model
    finishes: then its arguments are complete.
    Text, reasoning and arguments have at most `max_chars` characters together, and the answer has at most
    `MAX_ANSWER_CALLS` tool calls.
    """

    def __init__(self, sink: ModelSink, *, max_chars: int = MAX_ANSWER_CHARS) -> None:
        self._sink = sink
        self._remaining_chars = max_chars
        self._max_chars = max_chars
        self._call_count = 0
        self._incomplete_line = b""
        self._is_accepted = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _PartialCall] = {}
        self._emitted_server_calls: set[int] = set()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.is_done = False

    def feed_bytes(self, data: bytes) -> None:
        """Process the bytes of one read; chunks may be cut anywhere.

        Raises:
            ModelAnswerTooLong: the answer exceeds `max_chars` or `MAX_ANSWER_CALLS`.
            ModelError: the stream contains an error or an invalid chunk.
        """
        lines = (self._incomplete_line + data).split(b"\n") if self._incomplete_line else data.split(b"\n")
        self._incomplete_line = lines.pop()
        if len(self._incomplete_line) > _MAX_LINE_BYTES:
            raise ModelStreamBroken("The model's server sent a line that is too long.")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_payload(line[5:])
        self._flush_text()

    @property
    def is_complete(self) -> bool:
        """Whether the model has finished.

        Later errors of the connection do not matter.
        """
        return self.is_done or self._finish_reason is not None

    @property
    def has_usage(self) -> bool:
        return self._usage is not None

    @property
    def is_accepted(self) -> bool:
        """Whether the first valid chunk has arrived."""
        return self._is_accepted

    def finish_answer(self) -> ModelAnswer:
        """Return the end of the answer.

        Raises:
            ModelStreamBroken: the stream ended without a finish reason.
        """
        if self._incomplete_line.startswith(b"data:"):
            self._read_payload(self._incomplete_line[5:])
            self._flush_text()
        if self._finish_reason is None:
            raise ModelStreamBroken
        return ModelAnswer(self._finish_reason, self._usage or Usage())

    def _read_payload(self, payload: bytes) -> None:
        try:
            chunk = _decode(payload)
        except JSON_DECODE_ERRORS:
            match payload.strip():
                case b"[DONE]":
                    self.is_done = True
                    return
                case b"":
                    return
                case _:
                    self._flush_text()
                    raise ModelStreamBroken("The model's server sent an invalid stream chunk.") from None
        if self._is_accepted and chunk.x_groq is None and chunk.usage is None and chunk.error is None and chunk.choices:
            self._read_choice(chunk.choices[0])  # nearly all chunks: skips the checks for errors and usage
        else:
            self._read_chunk(chunk)

    def _read_chunk(self, chunk: _Chunk) -> None:
        extra = chunk.x_groq
        error = chunk.error or (extra and extra.error)
        if error is not None:
            self._flush_text()
            raise make_stream_error(error)
        if not self._is_accepted:
            self._is_accepted = True
            self._sink.on_accepted()
        if extra is not None and extra.usage is not None:
            self._usage = extra.usage.to_usage()
        elif chunk.usage is not None:
            self._usage = chunk.usage.to_usage()
        if chunk.choices:
            self._read_choice(chunk.choices[0])

    def _read_choice(self, choice: _Choice) -> None:
        delta = choice.delta or _EMPTY_DELTA
        if delta.content:
            self._text.append(delta.content)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        elif delta.reasoning_content:
            self._reasoning.append(delta.reasoning_content)
        if delta.tool_calls:
            self._flush_text()
            for call_delta in delta.tool_calls:
                self._add_call_delta(call_delta)
        if delta.executed_tools:
            self._flush_text()
            for server_call in delta.executed_tools:
                self._emit_server_tool_call(server_call)
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            self._flush_text()
            self._complete_calls()

    def _add_call_delta(self, delta: _ToolCallDelta) -> None:
        index = delta.index or 0
        call = self._calls.get(index)
        if call is None or call.is_ended_by(delta):
            self._count_call()
            self._complete_calls()
            call = self._calls[index] = _PartialCall()
        self._count_chars(call.add_delta(delta))

    def _emit_server_tool_call(self, call: _ServerToolCall) -> None:
        """Emit a server-side tool's call once, with its output.

        The call is emitted when the output has arrived.
        """
        if call.output is not None and call.index not in self._emitted_server_calls:
            self._emitted_server_calls.add(call.index)
            self._count_call()
            self._count_chars(len(call.arguments or "") + len(call.output))
            self._sink.on_server_tool_call(ToolCall("", call.name or call.type, call.arguments or "{}"), call.output)

    def _complete_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for _, call in sorted(calls.items()):
            self._sink.on_tool_call(call.to_tool_call())

    def _flush_text(self) -> None:
        """Pass the collected output to the sink.

        Reasoning comes before text, as the model writes them.
        """
        if self._reasoning:
            reasoning = "".join(self._reasoning)
            self._reasoning.clear()
            self._count_chars(len(reasoning))
            self._sink.on_reasoning(reasoning)
        if self._text:
            text = "".join(self._text)
            self._text.clear()
            self._count_chars(len(text))
            self._sink.on_text(text)

    def _count_call(self) -> None:
        self._call_count += 1
        check_call_count(self._call_count)

    def _count_chars(self, count: int) -> None:
        self._remaining_chars -= count
        if self._remaining_chars < 0:
            raise ModelAnswerTooLong(f"The model's answer is longer than {self._max_chars:,} characters.")


def check_call_count(calls: int) -> None:
    """Check the number of tool calls in an answer.

    Raises:
        ModelAnswerTooLong: there are more than `MAX_ANSWER_CALLS`.
    """
    if calls > MAX_ANSWER_CALLS:
        raise ModelAnswerTooLong(f"The model's answer contains more than {MAX_ANSWER_CALLS} tool calls.")


class _WholeMessage(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _WholeChoice(msgspec.Struct, gc=False):
    message: _WholeMessage
    finish_reason: str | None = None


class _WholeAnswer(msgspec.Struct, gc=False):
    choices: list[_WholeChoice]
    usage: _WireUsage | None = None


def read_whole_answer(body: bytes, sink: ModelSink) -> ModelAnswer:
    """Pass an answer that was not streamed to the sink.

    Raises:
        ModelStreamBroken: the body is not a valid answer.
    """
    try:
        answer = msgspec.json.decode(body, type=_WholeAnswer)
        choice = answer.choices[0]
    except (*JSON_DECODE_ERRORS, IndexError):
        raise ModelStreamBroken from None
    sink.on_accepted()
    if reasoning := choice.message.reasoning or choice.message.reasoning_content:
        sink.on_reasoning(reasoning)
    if choice.message.content:
        sink.on_text(choice.message.content)
    return ModelAnswer(choice.finish_reason or "stop", answer.usage.to_usage() if answer.usage else Usage())

"""Decodes a chat-completions stream from raw bytes.

All chunks of one read are decoded together. See docs/adr/0003.
"""

import re
from collections.abc import Iterator

from gateway.domain.errors import ModelAnswerTooLong, ModelStreamBroken, ToolCallUnreadable
from gateway.domain.messages import JSON_DECODE_ERRORS, ToolCall, Usage
from gateway.llm.call_parts import CallJoiner
from gateway.llm.chunks import (
    Choice,
    Chunk,
    Delta,
    ServerToolCall,
    ToolCallDelta,
    decode_chunk,
    decode_chunks,
    read_odd_chunk,
)
from gateway.llm.finish_reasons import classify_finish_reason
from gateway.llm.tool_repair.json_repair import join_surrogates
from gateway.llm.upstream_errors import decode_error_body, make_stream_error
from gateway.llm.usage import merge_usage, read_usage
from gateway.ports.model import ModelAnswer, ModelSink

_MAX_LINE_BYTES = 4 * 1024 * 1024
_MAX_WAITING_EVENT_BYTES = 256 * 1024
"""Limit of an event of several lines.

It is decoded again with each read.
"""
MAX_ANSWER_CHARS = 2_000_000
"""Length at which an answer is refused.

It is several times that of the longest answer that a model can write.
"""
MAX_ANSWER_CALLS = 128
"""Number of tool calls beyond which an answer is refused."""
_EMPTY_DELTA = Delta()
_BOM = b"\xef\xbb\xbf"
_BODY_START = re.compile(rb"(?:\s+|:[^\n]*\n)*+[{\[]")
"""Start of a body in place of a stream, behind comments."""


class ChunkReader:
    """Incremental parser of one stream.

    It passes the model's output to a sink. The tool calls reach it at the end: before, any part may still belong to any
    call. Text, reasoning and arguments have at most `max_chars` characters together, and the answer has at most
    `MAX_ANSWER_CALLS` tool calls.
    """

    def __init__(self, sink: ModelSink, *, max_chars: int = MAX_ANSWER_CHARS) -> None:
        self._sink = sink
        self._remaining_chars = max_chars
        self._max_chars = max_chars
        self._call_count = 0
        self._incomplete_line = b""
        self._notice: bytes | None = None
        self.feed_bytes = self._feed_first_bytes
        self._lines: Iterator[bytes] = iter(())
        self._is_accepted = self._is_usual = False
        self._choice_index: int | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls = CallJoiner()
        self._halves = {"text": "", "reasoning": "", "refusal": ""}
        self._may_have_halves = False
        self._has_text = self._has_reasoning = self._has_refusal = self._has_message_calls = False
        self._message_texts: dict[str, str] = {}
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
        lines = (self._incomplete_line + data if self._incomplete_line else data).split(b"\n")
        self._incomplete_line = lines.pop()
        if self._incomplete_line:
            lines += self._check_incomplete_line()
        self._read_lines(lines)
        self._flush_text()

    def _feed_first_bytes(self, data: bytes) -> None:
        """Process the bytes of a read before the first chunk.

        A whole body in place of a stream waits for its end as an incomplete line.
        """
        data = (self._incomplete_line + data).removeprefix(_BOM)
        self._incomplete_line = b""
        if _BODY_START.match(data):
            self._incomplete_line = data
            self._check_line_length()
            return
        ChunkReader.feed_bytes(self, data)
        if self._is_accepted:
            self.__dict__.pop("feed_bytes", None)

    def _check_line_length(self) -> None:
        if len(self._incomplete_line) > _MAX_LINE_BYTES:
            raise ModelStreamBroken("The model's server sent a line that is too long.")

    def _check_incomplete_line(self) -> list[bytes]:
        """Return the lines of a server that ends lines with CR alone.

        A CR at the end of a read may be half of a line end.
        """
        self._check_line_length()
        if b"\r" not in self._incomplete_line[:-1]:
            return []
        lines = self._incomplete_line.split(b"\r")
        self._incomplete_line = lines.pop()
        return lines

    def _read_lines(self, lines: list[bytes]) -> None:
        self._lines = iter(lines)  # an event may take further lines of it
        for line in self._lines:
            if line[:5] != b"data:":
                continue
            payload = line[5:]
            try:
                chunk = decode_chunk(payload)
            except JSON_DECODE_ERRORS:
                self._read_odd_payload(payload.strip())
                continue
            if (
                self._is_usual
                and chunk.x_groq is None
                and chunk.usage is None
                and chunk.error is None
                and chunk.choices
            ):
                self._read_choice(chunk.choices[0])  # nearly all chunks: skips the checks for errors and usage
            else:
                self._read_chunk(chunk, payload)

    def read_whole_body(self, body: bytes) -> None:
        """Read an answer that was not streamed.

        One message without a finish reason has stopped.

        Raises:
            ModelStreamBroken: the body is not a valid answer.
            ModelError: the body is an error.
        """
        chunks, rest = decode_chunks(body)
        if len(chunks) == 1 and not (chunks[0].choices or chunks[0].error) and not rest.strip():
            raise make_stream_error(decode_error_body(body))
        self._may_have_halves = True
        for chunk in chunks:
            self._read_chunk(chunk)
        self._read_lines([*rest.splitlines(), b""])
        if len(chunks) == 1 and chunks[0].choices:
            self._finish_reason = self._finish_reason or "stop"

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
        """Emit the calls, and return the end of the answer.

        Raises:
            ModelStreamBroken: the stream ended without a finish reason, or with one that means a failure.
            ToolCallUnreadable: the server could not read the model's call.
        """
        if self._incomplete_line and not self._is_accepted and _BODY_START.match(self._incomplete_line):
            self.read_whole_body(self._incomplete_line)  # instead of a stream
        elif self._incomplete_line:
            self._read_lines([*self._incomplete_line.splitlines(), b""])
        self._flush_text(is_end=True)
        reason = self._finish_reason
        if reason is None or reason == "broken":
            raise ModelStreamBroken if self._notice is None else make_stream_error(decode_error_body(self._notice))
        if reason == "malformed_call":
            raise ToolCallUnreadable
        calls = self._calls.take_calls(is_cut=reason in ("length", "content_filter"))
        for call in calls:
            self._sink.on_tool_call(call)
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if calls else "stop"
        return ModelAnswer(reason, self._usage or Usage())

    def _read_odd_payload(self, payload: bytes) -> None:
        """Read a payload of an unexpected form.

        It may also be the end, a text that keeps the connection alive, or anything odd behind the finish reason.

        Raises:
            ModelStreamBroken: it is invalid JSON.
        """
        if payload == b"[DONE]":
            self.is_done = True
            return
        if b"\r" in payload:  # ends lines among LF
            later_lines = self._lines
            self._read_lines([*(b"data:" + payload).split(b"\r"), b""])
            self._lines = later_lines
            return
        chunk = read_odd_chunk(payload)
        if chunk is None and payload.startswith(b"{"):
            chunk = self._read_event(payload)
        elif chunk is None:
            self._notice = payload
        self._may_have_halves = True
        if chunk is not None:
            self._read_chunk(chunk, payload)

    def _read_event(self, payload: bytes) -> Chunk | None:
        """Read an event of several lines from its first one.

        None: its end has not arrived, and it waits as an incomplete line.

        Raises:
            ModelStreamBroken: it is invalid JSON, before the finish reason.
        """
        payloads = [payload]
        for line in self._lines:
            if line.startswith(b"data:"):
                payloads.append(line[5:].strip())
            elif not line.strip():
                break
        else:
            event = b" ".join(payloads)
            if len(event) > _MAX_WAITING_EVENT_BYTES:
                raise ModelStreamBroken("The model's server sent an event that is too long.")
            self._incomplete_line = b"data:%b\n%b" % (event, self._incomplete_line)
            return None
        chunk = read_odd_chunk(b" ".join(payloads))
        if chunk is None and not self.is_complete:
            self._flush_text()
            raise ModelStreamBroken("The model's server sent an invalid stream chunk.")
        self.is_done = self.is_done or b"[DONE]" in payloads
        return chunk

    def _read_chunk(self, chunk: Chunk, payload: bytes = b"") -> None:
        extra = chunk.x_groq
        error = chunk.error or (extra and extra.error)
        if error and not self.is_complete:
            self._flush_text()
            raise make_stream_error(error)
        if not self._is_accepted:
            self._is_accepted = True
            self._sink.on_accepted()
        choice = self._choose_choice(chunk.choices) if chunk.choices else None
        if extra is not None or chunk.usage is not None:
            self._usage = merge_usage(self._usage, read_usage(extra and extra.usage, chunk.usage))
        elif not chunk.choices and payload:
            self._notice = payload  # tells why the stream broke off, if it does
        if choice is not None:
            self._read_choice(choice)

    def _choose_choice(self, choices: list[Choice]) -> Choice | None:
        """Return the choice with the first index seen."""
        if self._choice_index is None:
            self._choice_index = choices[0].index
        self._is_usual = not self._choice_index
        if choices[0].index in (None, self._choice_index):
            return choices[0]
        return next((choice for choice in choices if choice.index in (None, self._choice_index)), None)

    def _read_choice(self, choice: Choice) -> None:
        delta = choice.delta or _EMPTY_DELTA
        if choice.message is not None:
            delta = self._merge_message(delta, choice.message, is_last=choice.finish_reason is not None)
        if delta.content:
            self._text.append(delta.content)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        elif delta.reasoning_content:
            self._reasoning.append(delta.reasoning_content)
        if delta.refusal:
            self._flush_text()
            self._has_refusal = True
            for text in self._join_halves("refusal", [delta.refusal]) if self._may_have_halves else [delta.refusal]:
                self._count_chars(len(text))
                self._sink.on_refusal(text)
        if delta.tool_calls:
            self._flush_text()
            for part in delta.tool_calls:
                self._add_call_part(part)
        if delta.executed_tools:
            self._flush_text()
            for server_call in delta.executed_tools:
                self._emit_server_tool_call(server_call)
        if choice.finish_reason or choice.usage is not None:
            self._read_end(choice)

    def _merge_message(self, delta: Delta, message: Delta, *, is_last: bool) -> Delta:
        """Return a delta with the new parts of a whole message.

        Some servers repeat the whole answer behind its deltas. Others send messages in place of deltas.
        """
        self._flush_text()
        calls = message.tool_calls if self._has_message_calls or not len(self._calls) else None
        self._has_message_calls = self._has_message_calls or bool(calls)
        return Delta(
            content=delta.content or self._get_new_text("text", message.content, self._has_text, is_last),
            reasoning=delta.reasoning
            or delta.reasoning_content
            or self._get_new_text(
                "reasoning", message.reasoning or message.reasoning_content, self._has_reasoning, is_last
            ),
            refusal=delta.refusal or self._get_new_text("refusal", message.refusal, self._has_refusal, is_last),
            tool_calls=delta.tool_calls or calls,
            executed_tools=delta.executed_tools or message.executed_tools,
        )

    def _get_new_text(self, kind: str, text: str | None, has_output: bool, is_last: bool) -> str | None:
        """Return the part of a message's text that is new.

        Messages in place of deltas have the next part each, or all parts so far.
        """
        earlier_text = self._message_texts.get(kind)
        if not text or (has_output and earlier_text is None):
            return None
        earlier_text = earlier_text or ""
        is_repeated = text.startswith(earlier_text) and (is_last or len(text) > len(earlier_text))
        new_text = text.removeprefix(earlier_text) if is_repeated else text
        self._message_texts[kind] = earlier_text + new_text
        return new_text

    def _read_end(self, choice: Choice) -> None:
        if choice.usage is not None:
            self._usage = merge_usage(self._usage, read_usage(choice.usage))
        reason = classify_finish_reason(choice.finish_reason or "")
        if reason and not (reason == "broken" and self._finish_reason):  # the answer was complete before
            self._finish_reason = reason
            self._flush_text()

    def _add_call_part(self, part: ToolCallDelta) -> None:
        count = len(self._calls)
        self._count_chars(self._calls.add_part(part))
        if len(self._calls) > count:
            self._count_call()

    def _emit_server_tool_call(self, call: ServerToolCall) -> None:
        """Emit a server-side tool's call once, with its output.

        The call is emitted when the output has arrived.
        """
        if call.output is not None and call.index not in self._emitted_server_calls:
            self._emitted_server_calls.add(call.index)
            self._count_call()
            self._count_chars(len(call.arguments or "") + len(call.output))
            self._sink.on_server_tool_call(ToolCall("", call.name or call.type, call.arguments or "{}"), call.output)

    def _flush_text(self, *, is_end: bool = False) -> None:
        """Pass the collected output to the sink.

        Reasoning comes before text, as the model writes them.
        """
        if self._may_have_halves:
            self._reasoning = self._join_halves("reasoning", self._reasoning, is_end=is_end)
            self._text = self._join_halves("text", self._text, is_end=is_end)
        if self._reasoning:
            reasoning = "".join(self._reasoning)
            self._reasoning.clear()
            self._has_reasoning = True
            self._count_chars(len(reasoning))
            self._sink.on_reasoning(reasoning)
        if self._text:
            text = "".join(self._text)
            self._text.clear()
            self._has_text = True
            self._count_chars(len(text))
            self._sink.on_text(text)

    def _join_halves(self, kind: str, texts: list[str], *, is_end: bool = False) -> list[str]:
        """Join the halves of a surrogate pair that two chunks contain.

        The first half waits for the second one.
        """
        text = self._halves[kind] + "".join(texts)
        half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" and not is_end else ""
        self._halves[kind] = half
        text = join_surrogates(text.removesuffix(half))
        return [text] if text else []

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


def read_whole_answer(body: bytes, sink: ModelSink) -> ModelAnswer:
    """Pass an answer that was not streamed to the sink.

    Raises:
        ModelStreamBroken: the body is not a valid answer.
        ModelError: the body is an error.
    """
    reader = ChunkReader(sink)
    if _BODY_START.match(body.removeprefix(_BOM)):
        reader.read_whole_body(body)
    else:
        reader.feed_bytes(body)  # some servers always stream
    return reader.finish_answer()

"""Property test of one turn in all formats."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo
from gateway.domain.messages import Usage
from gateway.ports.listener import EventListener
from gateway.wire.a2a.tasks import TaskHead, TaskWriter
from gateway.wire.ag_ui.stream import RunWriter, format_events
from gateway.wire.anthropic.answers import MessageWriter
from gateway.wire.chatkit.items import ItemHead, ItemWriter
from gateway.wire.legacy import stream_legacy_frames, stream_plain_text
from gateway.wire.native import build_chat_response, stream_events
from gateway.wire.openai.completions import TextChunkWriter, build_text_completion
from gateway.wire.openai_chat_answers import ChunkWriter, build_completion
from gateway.wire.openai_response_items import ResponseContext, ResponseWriter
from gateway.wire.turn_summary import TurnSummary
from gateway.wire.ui_messages.stream import UIMessageWriter

TURN_ID = "0199b1c0-0000-7000-8000-000000000001"
TEXTS = st.text(alphabet="abcäö€🐪{}\"'<>&;", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "b", "ü"]), TEXTS | st.integers(-5, 5) | st.lists(TEXTS, max_size=2))
Call = tuple[str, Any]


@dataclass
class Reading:
    """Text, calls and end of a turn, as a format tells them.

    Of calls None: the format does not tell them in a stream.
    """

    text: str = ""
    calls: list[Call] | None = field(default_factory=list[Call])
    end: str = ""


@st.composite
def build_logs(draw: st.DrawFn) -> list[e.Event]:
    """Build the log of a turn with texts, reasoning and calls."""
    log: list[e.Event] = [e.TurnStarted(turn_id=TURN_ID, conversation_id=None, model="m")]
    step_count = draw(st.integers(1, 3))
    has_client_calls = draw(st.booleans())
    for step in range(1, step_count + 1):
        kinds = draw(st.lists(st.sampled_from([e.TextDelta, e.ReasoningDelta]), max_size=5))
        log += [kind(step=step, text=draw(TEXTS)) for kind in kinds]
        if draw(st.integers(0, 4)) == 0:
            log.append(e.ModelRetry(step=step, reason="overloaded", attempt=1, discard=True))
            log.append(e.TextDelta(step=step, text=draw(TEXTS)))
        is_client = step == step_count and has_client_calls
        calls = [draw(ARGUMENTS) for _ in range(draw(st.integers(0, 2)))]
        ids = [f"call_{UUID(TURN_ID).hex}_{step}_{number}" for number in range(len(calls))]
        for call_id, arguments in zip(ids, calls, strict=True):
            server = None if is_client else "tools"
            log.append(
                e.ToolCallStarted(
                    step=step, call_id=call_id, server=server, tool=f"t{step}", arguments=arguments, client=is_client
                )
            )
        log.append(e.StepCompleted(step=step, finish_reason="stop", usage=Usage()))
        for call_id in () if is_client else draw(st.permutations(ids)):
            content = [{"type": "text", "text": draw(TEXTS)}]
            log.append(e.ToolFinished(call_id=call_id, outcome=draw(st.sampled_from(["ok", "error"])), content=content))
    return [*log, draw(build_ends(has_client_calls=has_client_calls))]


def build_ends(*, has_client_calls: bool) -> st.SearchStrategy[e.Event]:
    error = ErrorInfo(code="turn_timeout", message="Too long.")
    reasons = ["tool_calls"] if has_client_calls else ["stop", "length", "content_filter"]
    completed = [
        e.TurnCompleted(finish_reason=reason, usage=Usage(), steps=1, duration_ms=1, cost_usd=None)
        for reason in reasons
    ]
    return st.sampled_from(
        [*completed, e.TurnFailed(error=error, saved="text"), e.TurnCancelled(error=error, saved="text")]
    )


def read_log(log: list[e.Event]) -> Reading:
    """Read the log itself."""
    reading = Reading()
    for event in log:
        match event:
            case e.TextDelta(text=text):
                reading.text += text
            case e.ToolCallStarted(tool=tool, arguments=arguments):
                add_call(reading, tool, arguments)
            case e.TurnCompleted(finish_reason=reason):
                reading.end = reason
            case e.TurnFailed():
                reading.end = "failed"
            case e.TurnCancelled():
                reading.end = "cancelled"
            case _:
                pass
    return reading


def add_call(reading: Reading, tool: str, arguments: Any) -> None:
    assert reading.calls is not None
    reading.calls.append((tool, json.loads(arguments) if isinstance(arguments, str) else arguments))


def write_all(writer: Any, log: list[e.Event]) -> Iterator[dict[str, Any]]:
    for event in log:
        for written in writer.write_event(event):
            yield json.loads(msgspec.json.encode(written))


def read_chat(log: list[e.Event]) -> Reading:
    reading = Reading()
    for chunk in write_all(ChunkWriter(), log):
        if "error" in chunk:
            reading.end = "error"
            continue
        [choice] = chunk["choices"]
        reading.text += (choice["delta"].get("content") or "").replace("\n", "")
        for call in choice["delta"].get("tool_calls", ()):
            add_call(reading, call["function"]["name"], call["function"]["arguments"])
        event = chunk.get("x_gateway", {}).get("event", {})
        if event.get("type") == "tool.call":
            add_call(reading, event["tool"], event["arguments"])
        reading.end = choice["finish_reason"] or reading.end
    return reading


def read_text_completion(log: list[e.Event]) -> Reading:
    reading = Reading(calls=None)
    for chunk in write_all(TextChunkWriter(), log):
        if "error" in chunk:
            reading.end = "error"
            continue
        [choice] = chunk["choices"]
        reading.text += choice["text"].replace("\n", "")
        reading.end = choice["finish_reason"] or reading.end
    return reading


def find_no_tool(name: str) -> None:
    """Find no tool of any name."""


def read_response(log: list[e.Event]) -> Reading:
    reading = Reading()
    for event in write_all(ResponseWriter(UUID(TURN_ID), ResponseContext({}, find_no_tool)), log):
        match event["type"]:
            case "response.output_text.delta":
                reading.text += event["delta"]
            case "response.output_item.added" if event["item"]["type"] in ("function_call", "mcp_call"):
                add_call(reading, event["item"]["name"], None)
            case "response.function_call_arguments.done" | "response.mcp_call_arguments.done":
                assert reading.calls
                index = next(number for number, (_, arguments) in enumerate(reading.calls) if arguments is None)
                reading.calls[index] = (reading.calls[index][0], json.loads(event["arguments"]))
            case "response.completed" | "response.incomplete" | "response.failed":
                response = event["response"]
                reading.end = (response.get("incomplete_details") or {}).get("reason") or response["status"]
            case _:
                pass
    return reading


def read_message(log: list[e.Event]) -> Reading:
    reading = Reading()
    for event in write_all(MessageWriter(shows_thinking=True), log):
        match event:
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}:
                reading.text += text
            case {"type": "content_block_start", "content_block": {"type": "tool_use" | "mcp_tool_use", "name": name}}:
                add_call(reading, name, {})
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": text}}:
                assert reading.calls
                reading.calls[-1] = (reading.calls[-1][0], json.loads(text))
            case {"type": "message_delta", "delta": {"stop_reason": reason}}:
                reading.end = reason
            case {"type": "error"}:
                reading.end = "error"
            case _:
                pass
    return reading


def read_ui_message(log: list[e.Event]) -> Reading:
    reading = Reading()
    open_part = ""
    for chunk in write_all(UIMessageWriter("m"), log):
        match chunk["type"]:
            case "text-start" | "reasoning-start":
                assert not open_part
                open_part = chunk["id"]
            case "text-end" | "reasoning-end":
                assert open_part == chunk["id"]
                open_part = ""
            case "text-delta":
                assert open_part == chunk["id"]
                reading.text += chunk["delta"]
            case "tool-input-available":
                add_call(reading, chunk["toolName"], chunk["input"])
            case "finish":
                reading.end = chunk["finishReason"]
            case "error" | "abort":
                reading.end = chunk["type"]
            case _:
                pass
    assert not open_part
    return reading


def read_run(log: list[e.Event]) -> Reading:
    reading = Reading()
    writer = RunWriter("t", "r")
    frames = b"".join(format_events(writer.write_event(event)) for event in log)
    for frame in frames.removesuffix(b"\n\n").split(b"\n\n"):
        event: dict[str, Any] = json.loads(frame.removeprefix(b"data: "))
        match event["type"]:
            case "TEXT_MESSAGE_CONTENT":
                reading.text += event["delta"]
            case "TOOL_CALL_START":
                add_call(reading, event["toolCallName"], {})
            case "TOOL_CALL_ARGS":
                assert reading.calls
                reading.calls[-1] = (reading.calls[-1][0], json.loads(event["delta"]))
            case "RUN_FINISHED":
                metadata = event["metadata"]["gateway"]
                reading.end = metadata.get("finish_reason", event["outcome"]["type"])
            case "RUN_ERROR":
                reading.end = "error"
            case _:
                pass
    return reading


def read_task(log: list[e.Event]) -> Reading:
    reading = Reading()
    writer = TaskWriter(TaskHead(TURN_ID, "x"))
    for update in write_all(writer, log):
        for part in (update.get("statusUpdate", {}).get("status", {}).get("message") or {}).get("parts", ()):
            data = part.get("data") or {}
            if data.get("type") == "tool.call":
                add_call(reading, data["tool"], data["arguments"])
    task = writer.build_task()
    reading.text = "".join(part["text"] for artifact in task["artifacts"] for part in artifact["parts"])
    reading.end = cast(str, task["metadata"].get("finish_reason") or task["status"]["state"])
    return reading


def read_thread(log: list[e.Event]) -> Reading:
    reading = Reading(end="done")
    writer = ItemWriter(ItemHead(UUID(TURN_ID), "t", "x"))
    texts: dict[str, str] = {}
    for event in write_all(writer, log):
        match event:
            case {"update": {"type": "assistant_message.content_part.text_delta", "delta": delta}, "item_id": item_id}:
                texts[item_id] = texts.get(item_id, "") + delta
            case {"type": "thread.item.removed", "item_id": item_id}:
                del texts[item_id]
            case {"update": {"type": "workflow.task.added", "task": {"title": tool, "content": arguments}}}:
                add_call(reading, tool, arguments)
            case {"type": "thread.item.done", "item": {"type": "client_tool_call"} as item}:
                add_call(reading, item["name"], json.dumps(item["arguments"]))
            case {"type": "error"}:
                reading.end = "error"
            case _:
                pass
    messages = [item for item in writer.items if item["type"] == "assistant_message"]
    reading.text = "".join(part["text"] for item in messages for part in item["content"])
    assert reading.text == "".join(texts.values())
    return reading


class LogListener:
    """Listener that has the whole log at once."""

    close_reason = None

    def __init__(self, log: list[e.Event]) -> None:
        self._entries = [e.JournalEntry(number, event, None) for number, event in enumerate(log, start=1)]

    async def __aiter__(self) -> AsyncIterator[list[e.JournalEntry]]:
        yield self._entries


def collect(stream: AsyncIterator[bytes]) -> str:
    async def join() -> bytes:
        return b"".join([part async for part in stream])

    return asyncio.run(join()).decode()


def read_frames(text: str) -> list[Any]:
    lines = (line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def read_native(log: list[e.Event]) -> Reading:
    reading = Reading()
    frames = collect(stream_events(TURN_ID, cast(EventListener, LogListener(log))))
    assert frames.endswith("data: [DONE]\n\n")
    for event in read_frames(frames):
        match event:
            case {"type": "text.delta", "text": text}:
                reading.text += text
            case {"type": "tool.call", "tool": tool, "arguments": arguments}:
                add_call(reading, tool, arguments)
            case {"type": "turn.completed", "finish_reason": reason}:
                reading.end = reason
            case {"type": "turn.failed" | "turn.cancelled" as kind}:
                reading.end = kind.removeprefix("turn.")
            case _:
                pass
    return reading


def read_legacy_text(log: list[e.Event]) -> Reading:
    text = collect(stream_plain_text(cast(EventListener, LogListener(log))))
    text, separator, _ = text.partition("\n[error: ")
    return Reading(text.replace("\n", ""), None, "error" if separator else "done")


def read_legacy_frames(log: list[e.Event]) -> Reading:
    reading = Reading(calls=None)
    _, *frames = read_frames(collect(stream_legacy_frames(cast(EventListener, LogListener(log)), stored=False)))
    reading.text = "".join(frame["content"] for frame in frames).replace("\n", "")
    assert [frame["finished"] for frame in frames] == [False] * (len(frames) - 1) + [True]
    reading.end = "error" if "error" in frames[-1] else "done"
    return reading


COMPLETED: tuple[str, ...] = ("stop", "length", "content_filter", "tool_calls")
DONE_ENDS: dict[str, str] = dict.fromkeys(COMPLETED, "done")
SAME: dict[str, str] = {reason: reason for reason in COMPLETED}
READERS: dict[str, tuple[Callable[[list[e.Event]], Reading], dict[str, str]]] = {
    "native": (read_native, SAME | {"failed": "failed", "cancelled": "cancelled"}),
    "legacy text": (read_legacy_text, DONE_ENDS),
    "legacy frames": (read_legacy_frames, DONE_ENDS),
    "chat completions": (read_chat, SAME),
    "text completions": (read_text_completion, SAME),
    "Responses": (
        read_response,
        {
            "stop": "completed",
            "tool_calls": "completed",
            "length": "max_output_tokens",
            "content_filter": "content_filter",
            "failed": "failed",
            "cancelled": "cancelled",
        },
    ),
    "Messages": (
        read_message,
        {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"},
    ),
    "UI messages": (
        read_ui_message,
        {
            "stop": "stop",
            "length": "length",
            "content_filter": "content-filter",
            "tool_calls": "tool-calls",
            "cancelled": "abort",
        },
    ),
    "AG-UI": (read_run, SAME | {"cancelled": "cancelled"}),
    "ChatKit": (read_thread, DONE_ENDS),
    "A2A": (read_task, SAME | {"failed": "TASK_STATE_FAILED", "cancelled": "TASK_STATE_CANCELED"}),
}
"""Reader of each format, and its words for ends.

Other ends are errors.
"""


@settings(
    max_examples=int(os.environ.get("FORMAT_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # of a loaded machine
)
@given(build_logs())
def test_text_calls_and_end_are_the_same_in_each_format(log: list[e.Event]) -> None:
    truth = read_log(log)
    summary = TurnSummary()
    for event in log:
        summary.apply(event)
    for name, (read, words) in READERS.items():
        reading = read(log)
        # A task and a thread replace text that a retry makes void; a stream cannot take it back.
        replaces = name in ("A2A", "ChatKit")
        assert reading.text == ("".join(summary.step_texts) if replaces else truth.text), name
        assert reading.calls in (truth.calls, None), name
        assert reading.end == words.get(truth.end, "error"), name


@settings(
    max_examples=int(os.environ.get("FORMAT_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # of a loaded machine
)
@given(build_logs())
def test_whole_answers_tell_the_same_as_streams(log: list[e.Event]) -> None:
    summary, message = TurnSummary(), MessageWriter(shows_thinking=False)
    for event in log:
        summary.apply(event)
        message.apply(event)
    if not isinstance(log[-1], e.TurnCompleted):
        return  # the answer is an error
    truth = read_log(log)
    whole = json.loads(build_chat_response(summary).model_dump_json())
    chat = build_completion(summary)["choices"][0]
    text = build_text_completion(summary)["choices"][0]
    assert whole["finish_reason"] == chat["finish_reason"] == text["finish_reason"] == truth.end
    assert [(call["tool"], call["arguments"]) for call in whole["tool_calls"]] == truth.calls
    assert (chat["message"]["content"] or "") == text["text"] == "\n\n".join(filter(None, summary.step_texts))
    assert text["text"].endswith(whole["response"])
    blocks: list[Any] = message.build_message()["content"]
    assert [(block["name"], block["input"]) for block in blocks if "input" in block] == truth.calls
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == truth.text

"""Tests of docs/event_formats.md: what each format does with each event."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest

from gateway.domain import events as e
from gateway.domain.errors import ErrorInfo
from gateway.domain.messages import JsonObject, Usage
from gateway.wire.a2a.tasks import TaskHead, TaskWriter
from gateway.wire.ag_ui.stream import RunWriter
from gateway.wire.anthropic.answers import MessageWriter
from gateway.wire.chatkit.items import ItemHead, ItemWriter
from gateway.wire.openai.completions import TextChunkWriter
from gateway.wire.openai_chat_answers import ChunkWriter
from gateway.wire.openai_response_items import ResponseContext, ResponseWriter
from gateway.wire.ui_messages.stream import UIMessageWriter

ROOT = Path(__file__).parents[2]
TURN_ID = UUID("0199b1c0-0000-7000-8000-000000000001")
QUESTION_ID = "0199b1c0-0000-7000-8000-000000000002"
ERROR = ErrorInfo(code="turn_timeout", message="Too long.")
STARTED = e.TurnStarted(turn_id=str(TURN_ID), conversation_id=None, model="m")
CALL = e.ToolCallStarted(step=1, call_id="c", server="s", tool="t", arguments={}, needs_approval=True)
RESULT = e.ToolFinished(call_id="c", outcome="ok", content=[{"type": "text", "text": "x"}])
QUESTION = e.InputRequired(input_id=QUESTION_ID, call_id="c", kind="approval", message="May I?")
ANSWER = e.InputResolved(input_id=QUESTION_ID, call_id="c", action="accept")
STEP = e.StepCompleted(step=1, finish_reason="tool_calls", usage=Usage())
TEXT = e.TextDelta(step=1, text="x")
BEFORE: dict[type[Any], tuple[e.Event, ...]] = {
    e.TurnStarted: (),
    e.ToolProgress: (STARTED, CALL),
    e.ToolLog: (STARTED, CALL),
    e.SamplingCompleted: (STARTED, CALL),
    e.ToolFinished: (STARTED, CALL),
    e.InputRequired: (STARTED, CALL),
    e.InputResolved: (STARTED, CALL, QUESTION),
    e.TurnResumed: (STARTED, CALL, QUESTION),
    e.StepCompleted: (STARTED, TEXT),
    e.ModelRetry: (STARTED, TEXT),
}
"""Events before one of the type; of other types, the turn's start."""
EVENTS: dict[str, e.Event] = {
    "turn.started": STARTED,
    "history.summarized": e.HistorySummarized(text="x", turns=1, through_turn_id=str(TURN_ID), usage=Usage()),
    "sampling.completed": e.SamplingCompleted(call_id="c", server="s", model="m", usage=Usage()),
    "reasoning.delta": e.ReasoningDelta(step=1, text="x"),
    "text.delta": TEXT,
    "tool.call": e.ToolCallStarted(step=1, call_id="c", server="s", tool="t", arguments={}),
    "tool.progress": e.ToolProgress(call_id="c", progress=1),
    "tool.log": e.ToolLog(call_id="c", level="info", message="x"),
    "tool.result": RESULT,
    "input.required": QUESTION,
    "input.resolved": ANSWER,
    "turn.resumed": e.TurnResumed(),
    "step.completed": STEP,
    "model.retry": e.ModelRetry(step=1, reason="x", attempt=1, discard=True),
    "turn.completed": e.TurnCompleted(finish_reason="stop", usage=Usage(), steps=1, duration_ms=1),
    "turn.failed": e.TurnFailed(error=ERROR, saved="text"),
    "turn.cancelled": e.TurnCancelled(error=ERROR, saved="text"),
}


def find_no_tool(name: str) -> None:
    """Find no tool of any name."""


FORMATS: dict[str, tuple[str, Callable[[], Any]]] = {
    "chat completions": ("openai_chat_answers", ChunkWriter),
    "text completions": ("openai/completions", TextChunkWriter),
    "Responses": ("openai_response_items", lambda: ResponseWriter(TURN_ID, ResponseContext({}, find_no_tool))),
    "Messages": ("anthropic/answers", lambda: MessageWriter(shows_thinking=True)),
    "AG-UI": ("ag_ui/stream", lambda: RunWriter("t", "r")),
    "UI messages": ("ui_messages/stream", lambda: UIMessageWriter("m")),
    "ChatKit": ("chatkit/items", lambda: ItemWriter(ItemHead(TURN_ID, "t", "x"))),
    "A2A": ("a2a/tasks", lambda: TaskWriter(TaskHead(str(TURN_ID), "x"))),
}
"""Module and writer of each format, by its column."""
FOLDS = {"front_ends/resumable", "turn_summary"}
"""Modules that read every event and write no format."""


def read_table() -> dict[str, dict[str, str]]:
    """Return the cells of the table, by event and format."""
    lines = [line for line in (ROOT / "docs/event_formats.md").read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    formats = [title.partition(" (")[0] for title in head[1:]]
    return {row[0].strip("`"): dict(zip(formats, row[1:], strict=True)) for row in rows}


def write_event(event: e.Event, create_writer: Callable[[], Any]) -> list[JsonObject]:
    writer = create_writer()
    for earlier in BEFORE.get(type(event), (STARTED,)):
        writer.write_event(earlier)
    return writer.write_event(event)


def test_table_has_every_event() -> None:
    types = {kind.__struct_config__.tag for kind in get_args(e.Event)}
    assert set(read_table()) == types == set(EVENTS)


def test_table_has_every_format() -> None:
    wire = ROOT / "gateway/wire"
    modules = {
        str(path.relative_to(wire).with_suffix(""))
        for path in wire.rglob("*.py")
        if re.search(r"\bdef write_event\(|\bassert_never\(event\)", path.read_text())
    }
    assert modules - FOLDS == {module for module, _ in FORMATS.values()}
    assert all(set(cells) == set(FORMATS) for cells in read_table().values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("event", EVENTS)
def test_table_says_whether_an_event_is_told(event: str, name: str) -> None:
    cell = read_table()[event][name]
    is_told = bool(write_event(EVENTS[event], FORMATS[name][1]))
    assert is_told != cell.startswith("nothing"), cell


def test_failure_is_told_in_every_format() -> None:
    for create_writer in (create for _, create in FORMATS.values()):
        assert write_event(EVENTS["turn.failed"], create_writer)
        assert write_event(EVENTS["turn.cancelled"], create_writer)

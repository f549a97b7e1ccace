"""The timeline of a turn: steps, calls, waits, retries, tokens, cost."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nicegui import ui

from gateway_console.components.content import draw_json, draw_result, shorten
from gateway_console.components.controls import draw_badge, format_cost, format_milliseconds
from gateway_console.components.turn_view import TERMINAL_EVENTS, find_edited_arguments

JsonObject = dict[str, Any]
MAX_ENTRIES = 1_000
_TONES = {"ok": "good", "error": "bad", "denied": "warning", "unknown": "warning"}


@dataclass
class TimelineEntry:
    """A row of the timeline."""

    kind: str
    title: str
    figures: str = ""
    state: str = ""
    tone: str = "plain"
    step: int = 0
    call_id: str = ""
    text: str = ""
    arguments: object = None
    result: JsonObject | None = None
    usage: JsonObject = field(default_factory=dict[str, Any])


class TurnTimeline:
    """Collects the events of a turn as entries.

    It has the interface that `TurnFollower` needs of a view.
    """

    def __init__(self) -> None:
        self.turn_id: str | None = None
        self.conversation_id: str | None = None
        self.is_finished = False
        self.is_changed = False
        self.entries: list[TimelineEntry] = []
        self._steps: dict[int, TimelineEntry] = {}
        self._calls: dict[str, TimelineEntry] = {}
        self._inputs: dict[str, TimelineEntry] = {}

    @property
    def last_step(self) -> int:
        """The number of the last step that has ended."""
        return max((number for number, step in self._steps.items() if step.state), default=0)

    def flush(self) -> None:
        """Do nothing: the page draws the entries when they have changed."""

    def show_error(self, message: str) -> None:
        self._add(TimelineEntry("error", "Error", state=message, tone="bad"))

    def apply(self, event: JsonObject) -> None:
        """Add what an event says. Unknown types add nothing."""
        self.is_changed = True
        match event.get("type"):
            case "turn.started":
                self._start(event)
            case "reasoning.delta" | "text.delta":
                step = self._get_step(event["step"])
                if event["type"] == "text.delta" and len(step.text) < 20_000:
                    step.text += event["text"]
            case "tool.call":
                self._get_step(event["step"])
                self._calls[event["call_id"]] = self._add(
                    TimelineEntry(
                        "call",
                        str(event["tool"]),
                        state="runs",
                        step=event["step"],
                        call_id=event["call_id"],
                        arguments=event["arguments"],
                        figures=str(event.get("server") or "client"),
                    )
                )
            case "tool.result" if event["call_id"] in self._calls:
                call = self._calls[event["call_id"]]
                call.state, call.tone = str(event["outcome"]), _TONES.get(str(event["outcome"]), "plain")
                source = f" · {event['source']}" if event.get("source") else ""
                call.figures += f" · {format_milliseconds(event.get('duration_ms'))}{source}"
                call.result = event
            case "input.required":
                title = {"approval": "Waits for approval", "question": "Waits for an answer"}.get(
                    str(event["kind"]), "Waits for a sign-in"
                )
                self._inputs[event["input_id"]] = self._add(
                    TimelineEntry("wait", title, state="open", tone="warning", text=str(event["message"]))
                )
            case "input.resolved" if event["input_id"] in self._inputs:
                self._resolve_wait(event)
            case "model.retry":
                self._retry(event)
            case "sampling.completed":
                self._add(_build_sampling_entry(event))
            case "history.summarized":
                usage = _describe_usage(event.get("usage") or {}, event.get("cost_usd"))
                entry = TimelineEntry("history", "Earlier turns summarized", usage, text=str(event.get("text") or ""))
                if event.get("error"):
                    entry.tone = "warning"
                    entry.state = f"{event['cut_turns']} turns left out: {event['error']['message']}"
                self._add(entry)
            case "turn.resumed":
                self._add(TimelineEntry("resume", "Resumed by another worker"))
            case "step.completed":
                step = self._get_step(event["step"])
                step.state, step.usage = str(event["finish_reason"]), event["usage"]
                step.figures = _describe_usage(event["usage"], event.get("cost_usd"))
            case str(kind) if kind in TERMINAL_EVENTS:
                self._finish(kind, event)
            case _:
                pass

    def _start(self, event: JsonObject) -> None:
        self.turn_id, self.conversation_id = event["turn_id"], event["conversation_id"]
        origin: JsonObject = event.get("origin") or {}
        note = f"{len(event.get('tools') or ())} tools on offer"
        entry = TimelineEntry("start", f"Started with {event['model']}", note)
        if origin:
            entry.state = f"{origin.get('kind', 'branch')} of another turn"
        entry.text = "\n".join(str(warning) for warning in event.get("warnings") or ())
        self._add(entry)

    def _resolve_wait(self, event: JsonObject) -> None:
        wait = self._inputs[event["input_id"]]
        wait.state, wait.tone = f"{event['action']} by {event.get('by') or 'the gateway'}", "plain"
        edited, call = find_edited_arguments(event), self._calls.get(str(event.get("call_id")))
        if edited is not None and call is not None:
            wait.state += ", with other arguments"
            call.arguments = edited

    def _retry(self, event: JsonObject) -> None:
        if event.get("discard") and (step := self._steps.get(event["step"])) is not None:
            step.text = ""
        model = f" · {event['model']}" if event.get("model") else ""
        usage = f" · {_describe_usage(event['usage'], event.get('cost_usd'))}" if event.get("usage") else ""
        figures = f"attempt {event['attempt']}{model}{usage}"
        self._add(TimelineEntry("retry", "Model asked again", figures, tone="warning", text=str(event["reason"])))

    def _finish(self, kind: str, event: JsonObject) -> None:
        self.is_finished = True
        for entry in (*self._calls.values(), *self._inputs.values()):
            if entry.state in ("runs", "open"):
                entry.state = "not ended"
        error: JsonObject = event.get("error") or {}
        entry = TimelineEntry("end", kind.removeprefix("turn.").capitalize(), tone="bad" if error else "good")
        if error:
            entry.state, entry.text = str(error.get("code")), str(error.get("message"))
        else:
            entry.state = str(event.get("finish_reason") or "")
        if event.get("usage"):
            entry.figures = _describe_usage(event["usage"], event.get("cost_usd"))
        self._add(entry)

    def _get_step(self, number: int) -> TimelineEntry:
        if number not in self._steps:
            self._steps[number] = self._add(TimelineEntry("step", f"Step {number}", step=number))
        return self._steps[number]

    def _add(self, entry: TimelineEntry) -> TimelineEntry:
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append(entry)
        return entry


_ICONS = {
    "start": "play_arrow",
    "step": "psychology",
    "call": "build",
    "wait": "hourglass_top",
    "retry": "refresh",
    "history": "history",
    "resume": "restart_alt",
    "end": "flag",
    "error": "error",
}


def draw_entry(entry: TimelineEntry) -> None:
    """Draw a row of the timeline."""
    with ui.element("li").classes(f"timeline-entry timeline-{entry.kind}"):
        with ui.row().classes("items-center w-full gap-2"):
            ui.icon(_ICONS[entry.kind]).classes("text-lg").props('aria-hidden="true"')
            ui.label(entry.title).classes("font-medium").style("overflow-wrap:anywhere")
            if entry.state:
                draw_badge(entry.state, entry.tone)
            ui.space()
            ui.label(entry.figures).classes("muted text-sm")
        if entry.arguments is not None:
            with ui.expansion("Arguments and result").props("dense").classes("w-full"):
                draw_json(entry.arguments)
                if entry.result is not None:
                    draw_result(entry.result.get("content") or [], entry.result.get("structured"))
        elif entry.text:
            ui.label(shorten(entry.text, 2_000)).classes("streamed text-sm")


@dataclass(frozen=True)
class TimeBar:
    """A part of a turn's time, as fractions of the whole."""

    title: str
    kind: str
    start: float
    length: float
    milliseconds: float


def build_time_bars(turn: JsonObject) -> list[TimeBar]:
    """Return when each step and call of a stored turn ran.

    Calls have their times. A model's step lasts from the end of the calls before to its first call, or to the end.
    """
    begin = _parse_time(turn.get("created_at"))
    end = _parse_time(turn.get("completed_at"))
    if begin is None or end is None or end <= begin:
        return []
    calls: dict[int, list[tuple[str, float, float]]] = {}
    for call in turn.get("tool_calls") or ():
        started = _parse_time(call.get("started_at"))
        if started is not None and call.get("source") is None:
            span = (str(call["tool"]), started - begin, (call.get("duration_ms") or 0.0) / 1_000)
            calls.setdefault(int(call["step"]), []).append(span)
    total = end - begin
    bars: list[TimeBar] = []

    def add(title: str, kind: str, start: float, length: float) -> None:
        start, length = min(max(start, 0.0), total), max(length, 0.0)
        bars.append(TimeBar(title, kind, start / total, min(length, total - start) / total, length * 1_000))

    cursor = 0.0
    for step in range(1, min(int(turn.get("steps") or 0), 100) + 1):
        own = calls.get(step, [])
        first = min((start for _, start, _ in own), default=total)
        add(f"Step {step}", "step", cursor, first - cursor)
        for title, start, length in own[:50]:
            add(title, "call", start, length)
        cursor = max((start + length for _, start, length in own), default=first)
    return bars


def draw_time_bars(bars: list[TimeBar]) -> None:
    with ui.element("div").classes("card time-bars").props('role="group" aria-label="Times"'):
        for bar in bars:
            ui.label(bar.title).classes("text-sm").style("overflow:hidden;text-overflow:ellipsis")
            with ui.element("div").classes("time-track"):
                ui.element("div").classes(f"time-bar time-{bar.kind}").style(
                    f"margin-left:{bar.start * 100:.2f}%;width:max({bar.length * 100:.2f}%,3px)"
                )
            ui.label(format_milliseconds(bar.milliseconds)).classes("muted text-sm").style("text-align:right")


def _parse_time(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def _build_sampling_entry(event: JsonObject) -> TimelineEntry:
    """Build the entry of a server's model call."""
    usage = _describe_usage(event.get("usage") or {}, event.get("cost_usd"))
    entry = TimelineEntry("model", f"{event['server']} used the model", usage)
    if event.get("error"):
        entry.tone, entry.state = "warning", str(event["error"]["message"])
    return entry


def _describe_usage(usage: JsonObject, cost: float | None) -> str:
    cached = f", {usage['cached_tokens']:,} cached" if usage.get("cached_tokens") else ""
    text = f"{usage.get('prompt_tokens', 0):,} + {usage.get('completion_tokens', 0):,} tokens{cached}"
    return text if cost is None else f"{text} · {format_cost(cost)}"

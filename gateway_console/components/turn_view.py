"""A turn on the screen: what its events say, as they come."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, cast

from nicegui import ui

from gateway_console.components.app_pages import AppPages
from gateway_console.components.content import draw_json, draw_result
from gateway_console.components.markdown import MAX_MARKDOWN_CHARACTERS, render_markdown
from gateway_console.components.question_form import draw_question

JsonObject = dict[str, Any]
Answer = Callable[[str, str, JsonObject | None], Awaitable[None]]
"""Answers a question: its id, the action and the content."""
TERMINAL_EVENTS = ("turn.completed", "turn.failed", "turn.cancelled")
_ACTIONS = {"accept": "Accepted", "decline": "Declined", "cancel": "Cancelled", "expire": "Expired"}
_ICONS = {"ok": "check_circle", "error": "error", "denied": "block", "unknown": "help"}


class _StepView:
    """The reasoning and the text of one step."""

    def __init__(self) -> None:
        with ui.column().classes("w-full gap-1") as self.column:
            self.expansion = ui.expansion("Reasoning", icon="psychology").classes("w-full muted")
            self.expansion.set_visibility(False)
            with self.expansion:
                self.reasoning_label = ui.label().classes("streamed")
            self.text_label = ui.label().classes("streamed")
        self.reasoning: list[str] = []
        self.text: list[str] = []
        self.is_changed = False

    def flush(self) -> None:
        """Show what has come since the last call."""
        if not self.is_changed:
            return
        self.is_changed = False
        if self.reasoning:
            self.expansion.set_visibility(True)
            self.reasoning_label.set_text("".join(self.reasoning))
        self.text_label.set_text("".join(self.text))

    def finish(self) -> None:
        """Render the complete text once as Markdown."""
        self.flush()
        text = "".join(self.text)
        if text and len(text) <= MAX_MARKDOWN_CHARACTERS and self.text_label.visible:
            self.text_label.set_visibility(False)
            self.text_label.set_text("")
            with self.column:
                ui.html(render_markdown(text), sanitize=True).classes("markdown w-full")


_PROGRAM = "run_python"


class _CallCard:
    """A tool call: arguments, progress, log, result, time.

    `calls` holds the cards of a program's calls.
    """

    def __init__(self, event: JsonObject, pages: AppPages) -> None:
        self._pages, self._call = pages, event
        self._arguments: ui.expansion | None = None
        with ui.element("div").classes("card tool-call"):
            with ui.row().classes("items-center w-full gap-x-3 gap-y-0"):
                self.icon = ui.icon("hourglass_top").props('aria-hidden="true"')
                ui.label(str(event["tool"])).classes("font-medium").style("overflow-wrap:anywhere")
                ui.label(str(event.get("server") or "client")).classes("muted")
                ui.space()
                self.state = ui.label("waits for approval" if event.get("needs_approval") else "runs").classes("muted")
            if (code := _find_program(event)) is not None:
                ui.html(render_markdown(f"~~~~~~python\n{code}\n~~~~~~"), sanitize=True).classes("markdown w-full")
            else:
                with ui.expansion("Arguments").classes("w-full").props("dense") as self._arguments:
                    draw_json(event["arguments"])
            self.bar = ui.linear_progress(0, show_value=False).props('aria-label="Progress"')
            self.bar.set_visibility(False)
            self.calls = ui.column().classes("w-full gap-2")
            self.log = ui.column().classes("w-full gap-0")
            self.result = ui.column().classes("w-full gap-1")
        self._log_lines = 0

    @property
    def arguments(self) -> object:
        return self._call["arguments"]

    def replace_arguments(self, arguments: object) -> None:
        """Show the arguments with which a person approved the call."""
        self._call = {**self._call, "arguments": arguments}
        if self._arguments is not None:
            self._arguments.clear()
            with self._arguments:
                draw_json(arguments)

    def show_progress(self, event: JsonObject) -> None:
        if total := event.get("total"):
            self.bar.set_visibility(True)
            self.bar.set_value(min(1.0, event["progress"] / total))
        self.state.set_text(str(event.get("message") or f"{event['progress']:g}"))

    def add_log(self, event: JsonObject) -> None:
        self._log_lines += 1
        if self._log_lines <= 100:
            with self.log:
                ui.label(f"{event['level']}: {event['message']}").classes("plain muted")

    def finish(self, event: JsonObject) -> None:
        outcome = str(event["outcome"])
        self.icon.set_name(_ICONS.get(outcome, "help"))
        self.icon.classes(f"outcome-{outcome}")
        self.bar.set_visibility(False)
        source = f", {event['source']}" if event.get("source") else ""
        self.state.set_text(f"{outcome}, {event.get('duration_ms') or 0:.0f} ms{source}")
        with self.result:
            draw_result(event.get("content") or [], event.get("structured"))
            if outcome == "ok":
                self._pages.draw(self._call, event)


def _find_program(call: JsonObject) -> str | None:
    """Return the program of a call, if it is one."""
    arguments = call["arguments"]
    is_program = call["tool"] == _PROGRAM and isinstance(arguments, dict)
    code: object = cast("JsonObject", arguments).get("code") if is_program else None
    return code if isinstance(code, str) else None


class TurnView:
    """Draws the events of a turn into the current container."""

    def __init__(self, answer: Answer, pages: AppPages) -> None:
        self._answer = answer
        self._pages = pages
        self._container = ui.column().classes("w-full gap-2").props('aria-live="polite"')
        self._steps: dict[int, _StepView] = {}
        self._calls: dict[str, _CallCard] = {}
        self._questions: dict[str, ui.element] = {}
        self.turn_id: str | None = None
        self.conversation_id: str | None = None
        self.is_finished = False

    def flush(self) -> None:
        for step in self._steps.values():
            step.flush()

    def apply(self, event: JsonObject) -> None:
        """Draw one event. Unknown types draw nothing."""
        with self._container:
            match event.get("type"):
                case "turn.started":
                    self.turn_id, self.conversation_id = event["turn_id"], event["conversation_id"]
                    for warning in event.get("warnings") or ():
                        self._note(str(warning), "warning")
                case "history.summarized":
                    self._show_summary(event)
                case "reasoning.delta":
                    step = self._get_step(event["step"])
                    step.reasoning.append(event["text"])
                    step.is_changed = True
                case "text.delta":
                    step = self._get_step(event["step"])
                    step.text.append(event["text"])
                    step.is_changed = True
                case "tool.call":
                    self._get_step(event["step"]).finish()
                    program = self._calls.get(event["call_id"].rpartition(".")[0])
                    with program.calls if program is not None else nullcontext():
                        self._calls[event["call_id"]] = _CallCard(event, self._pages)
                case "tool.progress" if event["call_id"] in self._calls:
                    self._calls[event["call_id"]].show_progress(event)
                case "tool.log" if event["call_id"] in self._calls:
                    self._calls[event["call_id"]].add_log(event)
                case "tool.result" if event["call_id"] in self._calls:
                    self._calls[event["call_id"]].finish(event)
                case "input.required":
                    self._ask(event)
                case "input.resolved":
                    self._resolve(event)
                case "model.retry":
                    self._retry(event)
                case "step.completed":
                    self._get_step(event["step"]).finish()
                case "turn.completed" | "turn.failed" | "turn.cancelled":
                    self._finish(event)
                case _:
                    pass

    def show_error(self, message: str) -> None:
        with self._container:
            self._note(message, "error")

    def _get_step(self, number: int) -> _StepView:
        if number not in self._steps:
            self._steps[number] = _StepView()
        return self._steps[number]

    def _retry(self, event: JsonObject) -> None:
        self._note(f"The model is asked again: {event['reason']}", "refresh")
        if event.get("discard") and (step := self._steps.pop(event["step"], None)) is not None:
            step.column.delete()

    def _ask(self, event: JsonObject) -> None:
        call = self._calls.get(str(event.get("call_id")))
        question = draw_question(event, None if call is None else call.arguments, self._answer)
        self._questions[event["input_id"]] = question
        ui.run_javascript(f"getHtmlElement({question.id})?.scrollIntoView({{block: 'nearest'}})")

    def _resolve(self, event: JsonObject) -> None:
        if (question := self._questions.pop(event["input_id"], None)) is not None:
            question.delete()
        by = f" by {event['by']}" if event.get("by") else ""
        call = self._calls.get(str(event.get("call_id")))
        edited = find_edited_arguments(event)
        if edited is not None and call is not None:
            call.replace_arguments(edited)
        changed = ", with other arguments" if edited is not None else ""
        self._note(f"{_ACTIONS.get(event['action'], event['action'])}{by}{changed}", "how_to_reg")

    def _finish(self, event: JsonObject) -> None:
        self.is_finished = True
        for step in self._steps.values():
            step.finish()
        for question in self._questions.values():
            question.delete()
        self._questions.clear()
        if error := event.get("error"):
            self._note(f"{error['message']} [{error['code']}]", "error")
        else:
            self._note(describe_figures(event), "")

    def _show_summary(self, event: JsonObject) -> None:
        if event.get("error"):
            self._note(f"{event['cut_turns']} earlier turns are left out: {event['error']['message']}", "warning")
        if event.get("text"):
            with ui.expansion(f"Summary of {event['turns']} earlier turns", icon="history").classes("w-full muted"):
                draw_json(str(event["text"]))

    def _note(self, text: str, icon: str) -> None:
        with ui.row().classes("items-center no-wrap muted text-sm"):
            if icon:
                ui.icon(icon).props('aria-hidden="true"')
            ui.label(text).style("overflow-wrap:anywhere")


def find_edited_arguments(event: JsonObject) -> JsonObject | None:
    """Return the arguments of an approval.

    None if the person kept the model's.
    """
    content: JsonObject = event.get("content") or {}
    arguments: object = content.get("arguments")
    is_approval = event["action"] == "accept" and event.get("kind") == "approval"
    return cast(JsonObject, arguments) if is_approval and isinstance(arguments, dict) else None


def describe_figures(event: JsonObject) -> str:
    """Describe tokens, cost and time of a turn."""
    usage: JsonObject = event.get("usage") or {}
    parts = [f"{usage.get('total_tokens', 0):,} tokens"]
    if event.get("cost_usd") is not None:
        parts.append(f"${event['cost_usd']:.5f}")
    if event.get("duration_ms"):
        parts.append(f"{event['duration_ms'] / 1000:.1f} s")
    if event.get("cached"):
        parts.append("from the cache")
    return " · ".join(parts)


def list_stored_events(turn: JsonObject) -> list[JsonObject]:
    """Return the events that draw a turn that is stored."""
    events: list[JsonObject] = [{"type": "tool.call", **call} for call in turn.get("tool_calls") or ()]
    events += [{"type": "tool.result", **call} for call in turn.get("tool_calls") or () if call.get("outcome")]
    if turn.get("response"):
        events.append({"type": "text.delta", "step": (turn.get("steps") or 0) + 1_000, "text": turn["response"]})
    if turn["status"] in ("completed", "failed", "cancelled"):
        events.append({"type": f"turn.{turn['status']}", **turn})
    return events

"""Summary of a turn, folded from its events, for responses without streaming."""

from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, Usage
from gateway.ports.listener import EventFold


@dataclass
class ToolCallSummary:
    """Tool call, with its result if it has ended."""

    id: str
    step: int
    server: str | None
    tool: str
    arguments: JsonObject | str
    client: bool
    extra_content: object = None
    outcome: str | None = None
    content: list[JsonObject] = field(default_factory=list[JsonObject])
    structured: object = None
    duration_ms: float | None = None
    source: str | None = None
    parent_call_id: str | None = None
    meta: JsonObject | None = None
    refusal: JsonObject | None = None


class TurnSummary(EventFold):
    """Folds a turn's events in order.

    The summary can be read at any time.
    """

    def __init__(self) -> None:
        self.started: e.TurnStarted | None = None
        self.end: e.TurnEnd | None = None
        self.calls: dict[str, ToolCallSummary] = {}
        self.inputs: dict[str, e.InputRequired] = {}
        self.usage = Usage()
        self.step_ends: dict[int, e.StepCompleted] = {}
        self._text: dict[int, list[str]] = {}
        self._refusal: dict[int, list[str]] = {}
        self._reasoning: dict[int, list[str]] = {}
        self._discarded_reasoning: dict[int, list[str]] = {}
        self._step_warnings: list[str] = []

    def apply(self, event: e.Event) -> None:
        match event:
            case e.TextDelta():
                (self._refusal if event.refusal is True else self._text).setdefault(event.step, []).append(event.text)
            case e.ReasoningDelta():
                self._reasoning.setdefault(event.step, []).append(event.text)
            case e.TurnStarted():
                self.started = event
            case e.ToolCallStarted():
                self.calls[event.call_id] = ToolCallSummary(
                    event.call_id,
                    event.step,
                    event.server,
                    event.tool,
                    event.arguments,
                    event.client,
                    None if event.extra_content is msgspec.UNSET else event.extra_content,
                    parent_call_id=None if event.parent_call_id is msgspec.UNSET else event.parent_call_id,
                )
            case e.ToolFinished():
                call = self.calls[event.call_id]
                call.outcome, call.duration_ms = event.outcome, event.duration_ms
                call.content, call.structured = event.content, event.structured
                call.source = None if event.source is msgspec.UNSET else event.source
                call.meta, call.refusal = event.meta or None, event.refusal or None
            case e.StepCompleted():
                self.usage = self.usage + event.usage
                self.step_ends[event.step] = event
                if isinstance(event.warning, str):
                    self._step_warnings.append(event.warning)
            case e.HistorySummarized() | e.SamplingCompleted():
                self.usage = self.usage + event.usage
            case e.ModelRetry():
                if event.discard:
                    self._text.pop(event.step, None)
                    self._refusal.pop(event.step, None)
                    if reasoning := self._reasoning.pop(event.step, None):
                        self._discarded_reasoning.setdefault(event.step, []).append("".join(reasoning))
                    self.calls = {i: call for i, call in self.calls.items() if call.step != event.step}
            case e.TurnCompleted():
                self.end, self.usage = event, event.usage
            case e.TurnFailed() | e.TurnCancelled():
                self.end = event
            case e.InputRequired():
                self.inputs[event.input_id] = event
            case e.InputResolved():
                self.inputs.pop(event.input_id, None)
                arguments = event.edited_arguments
                if arguments is not None and event.call_id in self.calls:
                    self.calls[event.call_id].arguments = arguments
            case e.ToolProgress() | e.ToolLog() | e.TurnResumed():
                pass
            case _:
                assert_never(event)

    @property
    def is_waiting(self) -> bool:
        """Return whether the turn waits for a person."""
        return self.end is None and bool(self.inputs)

    @property
    def finish_reason(self) -> str | None:
        if isinstance(self.end, e.TurnCompleted):
            return self.end.finish_reason
        return "input_required" if self.is_waiting else None

    @property
    def step_texts(self) -> list[str]:
        """The text of each step that has text, in order."""
        return [text for _, parts in sorted(self._text.items()) if (text := "".join(parts))]

    def get_step_text(self, step: int) -> str:
        """Return the text of a step, or its refusal."""
        return "".join(self._text.get(step) or self._refusal.get(step) or ())

    @property
    def step_numbers(self) -> list[int]:
        """The steps with text, calls or an end, in order."""
        steps = self._text.keys() | self._refusal.keys() | self.step_ends.keys()
        return sorted(steps | {call.step for call in self.calls.values()})

    @property
    def response(self) -> str:
        """The text of the last step that has text, or the refusal."""
        return self.step_texts[-1] if self.step_texts else self.refusal or ""

    @property
    def refusal(self) -> str | None:
        """The words by which the model refused to answer."""
        return "\n\n".join("".join(parts) for _, parts in sorted(self._refusal.items())) or None

    @property
    def warnings(self) -> list[str]:
        return [*(self.started.warnings if self.started else ()), *self._step_warnings]

    @property
    def reasoning(self) -> str | None:
        return "\n".join("".join(parts) for _, parts in sorted(self._reasoning.items())) or None

    @property
    def shown_reasoning(self) -> str | None:
        """The reasoning that a stream shows, with that of discarded attempts."""
        attempts: list[str] = []
        for step in sorted(self._discarded_reasoning.keys() | self._reasoning.keys()):
            attempts += [*self._discarded_reasoning.get(step, ()), "".join(self._reasoning.get(step, ()))]
        return "\n".join(filter(None, attempts)) or None

    @property
    def steps(self) -> int:
        return (
            self.end.steps if isinstance(self.end, e.TurnCompleted) else len(self._text.keys() | self._refusal.keys())
        )

    @property
    def client_calls(self) -> list[ToolCallSummary]:
        """Calls of client tools."""
        return [call for call in self.calls.values() if call.client]

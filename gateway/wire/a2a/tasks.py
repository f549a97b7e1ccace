"""Tasks of A2A, whole and as a stream; each is a turn."""

from collections.abc import AsyncGenerator, Collection
from datetime import UTC, datetime
from typing import NamedTuple, assert_never

import msgspec

from gateway.domain import events as e
from gateway.domain.messages import JsonObject
from gateway.ports.listener import EventFold, EventListener
from gateway.wire.a2a.frames import FrameFormat
from gateway.wire.turn_summary import TurnSummary

SIGN_IN_STATUS = "signing_in"
"""Status of a waiting turn all of whose questions are sign-ins."""
_STATES = {
    "running": "TASK_STATE_WORKING",
    "waiting": "TASK_STATE_INPUT_REQUIRED",
    SIGN_IN_STATUS: "TASK_STATE_AUTH_REQUIRED",
    "completed": "TASK_STATE_COMPLETED",
    "failed": "TASK_STATE_FAILED",
    "cancelled": "TASK_STATE_CANCELED",
}
"""States by the status of a turn."""


class TaskHead(NamedTuple):
    """The part of a task that comes from the request.

    `message_id` is the client's own. `context_id` is the conversation, else the task itself. `timestamp` is that of the
    stored state; None: now.
    """

    id: str
    prompt: str
    message_id: str | None = None
    context_id: str | None = None
    timestamp: datetime | None = None


class TaskWriter(EventFold):
    """Folds a turn's events into a task and its updates.

    Each step with text is an artifact. Calls, their results and questions are messages of the agent whose data is the
    native event. Questions in `known_inputs` do not end the wait for a result.
    """

    def __init__(self, head: TaskHead, known_inputs: Collection[str] = ()) -> None:
        self._head = head
        self._known_inputs = known_inputs
        self._context_id = head.context_id or head.id
        self._turn = TurnSummary()
        self._history: list[JsonObject] = [build_user_message(head)]
        self._message: JsonObject | None = None
        self._shown_steps: set[int] = set()

    @property
    def turn(self) -> TurnSummary:
        return self._turn

    def apply(self, event: e.Event) -> bool:
        """See `EventFold.apply`."""
        self.write_event(event)
        return isinstance(event, e.InputRequired) and event.input_id not in self._known_inputs

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return the updates of the task for an event."""
        self._turn.apply(event)
        match event:
            case e.TextDelta():
                return [self._write_artifact(event.step, event.text)]
            case e.TurnStarted():
                self._context_id = event.conversation_id or self._context_id
                return [{"task": self.build_task()}]
            case e.ToolCallStarted():
                return [self._write_message(f"call-{event.call_id}", event)]
            case e.ToolFinished():
                return [self._write_message(f"result-{event.call_id}", event)]
            case e.InputRequired():
                return [self._write_message(f"input-{event.input_id}", event, event.message)]
            case e.InputResolved():
                return [self._write_message(f"answer-{event.input_id}", event)]
            case e.ModelRetry():
                return self._discard_text(event)
            case e.TurnCompleted():
                self._message = None
                return [self._write_status()]
            case e.TurnFailed() | e.TurnCancelled():
                return [self._write_message("end", event, event.error.message)]
            case (
                e.ReasoningDelta()
                | e.ToolProgress()
                | e.ToolLog()
                | e.TurnResumed()
                | e.StepCompleted()
                | e.HistorySummarized()
                | e.SamplingCompleted()
            ):
                return []
            case _:
                assert_never(event)

    def build_task(self) -> JsonObject:
        """Build the task as it stands."""
        texts = [(step, self._turn.get_step_text(step)) for step in self._turn.step_numbers]
        return {
            "id": self._head.id,
            "contextId": self._context_id,
            "status": self._build_status(),
            "artifacts": [self._build_artifact(step, text) for step, text in texts if text],
            "history": self._history,
            "metadata": self._build_metadata(),
        }

    def _find_status(self) -> str:
        if (end := self._turn.end) is not None:
            return e.get_event_type(end).removeprefix("turn.")
        if not self._turn.is_waiting:
            return "running"
        questions = self._turn.inputs.values()
        return SIGN_IN_STATUS if all(asked.kind == "authorization" for asked in questions) else "waiting"

    def _build_status(self) -> JsonObject:
        has_started = self._turn.started is not None
        state = _STATES[self._find_status()] if has_started or self._turn.end else "TASK_STATE_SUBMITTED"
        status: JsonObject = {"state": state, "timestamp": format_time(self._head.timestamp or datetime.now(UTC))}
        return status if self._message is None else status | {"message": self._message}

    def _build_metadata(self) -> JsonObject:
        metadata: JsonObject = {}
        if self._turn.started is not None:
            metadata["model"] = self._turn.started.model
        if self._turn.warnings:
            metadata["warnings"] = self._turn.warnings
        if (end := self._turn.end) is not None:
            metadata["usage"] = msgspec.to_builtins(self._turn.usage)
            if isinstance(end, e.TurnCompleted):
                metadata |= {"finish_reason": end.finish_reason, "cost_usd": end.cost_usd}
        return metadata

    def _build_artifact(self, step: int, text: str) -> JsonObject:
        return {"artifactId": f"{self._head.id}-{step}", "name": f"Text of step {step}", "parts": [{"text": text}]}

    def _write_artifact(self, step: int, text: str) -> JsonObject:
        update = {
            "taskId": self._head.id,
            "contextId": self._context_id,
            "artifact": self._build_artifact(step, text),
            "append": step in self._shown_steps,
        }
        self._shown_steps.add(step)
        return {"artifactUpdate": update}

    def _discard_text(self, event: e.ModelRetry) -> list[JsonObject]:
        if not event.discard or event.step not in self._shown_steps:
            return []
        self._shown_steps.discard(event.step)
        update = self._write_artifact(event.step, "")
        self._shown_steps.discard(event.step)
        return [update]

    def _write_message(self, name: str, event: e.Event, text: str | None = None) -> JsonObject:
        """Make a message of the agent the task's status."""
        parts: list[JsonObject] = [] if text is None else [{"text": text}]
        self._message = {
            "messageId": f"{self._head.id}-{name}",
            "taskId": self._head.id,
            "contextId": self._context_id,
            "role": "ROLE_AGENT",
            "parts": [*parts, {"data": msgspec.to_builtins(event)}],
        }
        self._history.append(self._message)
        return self._write_status()

    def _write_status(self) -> JsonObject:
        update = {
            "taskId": self._head.id,
            "contextId": self._context_id,
            "status": self._build_status(),
            "metadata": self._build_metadata(),
        }
        return {"statusUpdate": update}


def build_user_message(head: TaskHead) -> JsonObject:
    return {
        "messageId": head.message_id or f"{head.id}-user",
        "taskId": head.id,
        "contextId": head.context_id or head.id,
        "role": "ROLE_USER",
        "parts": [{"text": head.prompt}],
    }


def build_listed_task(head: TaskHead, status: str, response: str) -> JsonObject:
    """Build a task of a list, whose events are not read."""
    assert head.timestamp is not None
    artifact = {"artifactId": f"{head.id}-text", "name": "Text", "parts": [{"text": response}]}
    return {
        "id": head.id,
        "contextId": head.context_id or head.id,
        "status": {"state": _STATES[status], "timestamp": format_time(head.timestamp)},
        "artifacts": [artifact] if response else [],
        "history": [build_user_message(head)],
    }


def find_status(state: str) -> str | None:
    """Return the status of turns whose tasks are in a state.

    None: no task is.
    """
    return next((status for status, name in _STATES.items() if name == state), None)


def format_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def stream_task(
    listener: EventListener, *, writer: TaskWriter, frames: FrameFormat, begins_with_task: bool
) -> AsyncGenerator[bytes]:
    """Stream the updates of a task.

    The stream ends when the turn ends or asks a question. A stream that breaks off ends with an error.
    """
    if begins_with_task:
        yield frames.format_result({"task": writer.build_task()})
    async for batch in listener:
        updates = [update for entry in batch for update in writer.write_event(entry.event)]
        if updates:
            yield b"".join(map(frames.format_result, updates))
        if writer.turn.is_waiting and any(isinstance(entry.event, e.InputRequired) for entry in batch):
            return
    if writer.turn.end is None and listener.close_reason != "input_required":
        yield frames.format_break(listener.close_reason or "server_stopping")

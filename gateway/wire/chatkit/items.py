"""Items of a thread, folded from the events of its turns."""

from datetime import UTC, datetime
from typing import NamedTuple, assert_never
from uuid import UUID

import msgspec

from gateway.domain import events as e
from gateway.domain.messages import JsonObject
from gateway.wire.chatkit.widgets import build_answered_widget, build_question_widget

ECHO_KEY = "chatkit_item"
"""Key of a user message's id in a turn's echoed data."""
CALL_ECHO_KEY = "chatkit_call"
"""Key of the answered client call's item in a turn's echoed data."""
_MAX_TASK_CHARS = 4_000


class ItemHead(NamedTuple):
    """The part of a turn's items that comes from its request.

    `user_item_id` is ChatKit's own; `created_at` of None is now. A turn that `continues` another has the result of a
    client's tool instead of a message. In one that is `followed`, no client call is pending.
    """

    turn_id: UUID
    thread_id: str
    prompt: str
    user_item_id: str | None = None
    created_at: datetime | None = None
    model: str | None = None
    continues: bool = False
    followed: bool = False


def format_item_id(kind: str, turn_id: UUID, name: int | str) -> str:
    return f"{kind}_{turn_id.hex}_{name}"


def parse_item_turn(item_id: str) -> UUID | None:
    """Return the turn of an item's id.

    None: the id is one of ChatKit, of a user's message.
    """
    parts = item_id.split("_")
    if len(parts) < 3:
        return None
    try:
        return UUID(hex=parts[1])
    except ValueError:
        return None


class ItemWriter:
    """Folds a turn's events into items and ChatKit's events.

    Text of a step is a message of the assistant, and its calls are a workflow. A question is a widget.
    """

    def __init__(self, head: ItemHead) -> None:
        self._head = head
        self._items: dict[str, JsonObject] = {}
        self._open_ids: dict[str, None] = {}
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[str, tuple[str, int]] = {}
        self._questions: dict[str, e.InputRequired] = {}
        self._step_ids: dict[int, set[str]] = {}
        self._open_questions: set[str] = set()

    @property
    def question_count(self) -> int:
        """Number of the questions so far."""
        return len(self._questions)

    @property
    def is_waiting(self) -> bool:
        """Whether a question is open."""
        return bool(self._open_questions)

    @property
    def items(self) -> list[JsonObject]:
        """The turn's items, oldest first, with the user's message."""
        user_items = [] if self._head.continues else [self.build_user_item()]
        return [*user_items, *(self._complete_item(item) for item in self._items.values())]

    def build_user_item(self) -> JsonObject:
        head = self._head
        item_id = head.user_item_id or format_item_id("usr", head.turn_id, 0)
        content = [{"type": "input_text", "text": head.prompt}]
        options = {"model": head.model} if head.model else {}
        return self._build_item("user_message", item_id, content=content, attachments=[], inference_options=options)

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return ChatKit's events for an event."""
        match event:
            case e.TextDelta():
                return self._append_text(event.step, event.text)
            case e.ToolCallStarted():
                return self._write_client_call(event) if event.client else self._add_task(event)
            case e.ToolFinished():
                return self._write_result(event)
            case e.InputRequired():
                return self._write_question(event)
            case e.InputResolved():
                return self._close_question(event)
            case e.StepCompleted():
                return self._close_item(self._find_item_id("msg", event.step))
            case e.ModelRetry():
                return self._discard_step(event.step) if event.discard else []
            case e.TurnCompleted():
                return self._close_all()
            case e.TurnFailed() | e.TurnCancelled():
                error = {"type": "error", "code": "custom", "message": event.error.message, "allow_retry": True}
                return [*self._close_all(), error]
            case (
                e.TurnStarted()
                | e.ReasoningDelta()
                | e.ToolProgress()
                | e.ToolLog()
                | e.TurnResumed()
                | e.HistorySummarized()
                | e.SamplingCompleted()
            ):
                return []
            case _:
                assert_never(event)

    # --- messages

    def _append_text(self, step: int, text: str) -> list[JsonObject]:
        item_id = self._find_item_id("msg", step)
        events: list[JsonObject] = []
        if item_id not in self._items:
            events.append(self._open_item(step, self._build_item("assistant_message", item_id, content=[])))
            self._texts[item_id] = []
            part: JsonObject = {"type": "output_text", "text": "", "annotations": []}
            events.append(_build_update(item_id, "assistant_message.content_part.added", content_index=0, content=part))
        self._texts[item_id].append(text)
        events.append(_build_update(item_id, "assistant_message.content_part.text_delta", content_index=0, delta=text))
        return events

    # --- client tools

    def _write_client_call(self, call: e.ToolCallStarted) -> list[JsonObject]:
        item = self._build_item(
            "client_tool_call",
            format_item_id("ctc", self._head.turn_id, call.call_id),
            status="completed" if self._head.followed else "pending",
            call_id=call.call_id,
            name=call.tool,
            arguments={"arguments": call.arguments} if isinstance(call.arguments, str) else call.arguments,
        )
        self._items[item["id"]] = item
        self._step_ids.setdefault(call.step, set()).add(item["id"])
        return [{"type": "thread.item.done", "item": item}]

    # --- workflows

    def _add_task(self, call: e.ToolCallStarted) -> list[JsonObject]:
        item_id = self._find_item_id("wf", call.step)
        events: list[JsonObject] = []
        if item_id not in self._items:
            workflow: JsonObject = {"type": "custom", "tasks": [], "expanded": False}
            events.append(self._open_item(call.step, self._build_item("workflow", item_id, workflow=workflow)))
        tasks: list[JsonObject] = self._items[item_id]["workflow"]["tasks"]
        arguments = call.arguments if isinstance(call.arguments, str) else _encode_arguments(call.arguments)
        task = {"type": "custom", "title": call.tool, "content": _cut_text(arguments), "status_indicator": "loading"}
        tasks.append(task)
        self._calls[call.call_id] = (item_id, len(tasks) - 1)
        events.append(_build_update(item_id, "workflow.task.added", task_index=len(tasks) - 1, task=task))
        return events

    def _write_result(self, result: e.ToolFinished) -> list[JsonObject]:
        item_id, index = self._calls[result.call_id]
        tasks: list[JsonObject] = self._items[item_id]["workflow"]["tasks"]
        text = "\n".join(block["text"] for block in result.content if isinstance(block.get("text"), str))
        content = f"{tasks[index]['content']}\n\n{result.outcome}: {_cut_text(text)}"
        task = tasks[index] = tasks[index] | {"content": content, "status_indicator": "complete"}
        events = [_build_update(item_id, "workflow.task.updated", task_index=index, task=task)]
        if all(task["status_indicator"] == "complete" for task in tasks):
            events += self._close_item(item_id)
        return events

    # --- questions

    def _write_question(self, question: e.InputRequired) -> list[JsonObject]:
        self._questions[question.input_id] = question
        self._open_questions.add(question.input_id)
        item = self._build_item("widget", self._find_widget_id(question), widget=build_question_widget(question))
        self._items[item["id"]] = item
        return [{"type": "thread.item.done", "item": item}]

    def _close_question(self, answer: e.InputResolved) -> list[JsonObject]:
        self._open_questions.discard(answer.input_id)
        question = self._questions.get(answer.input_id)
        if question is None:
            return []
        widget = build_answered_widget(question, answer.action)
        item = self._build_item("widget", self._find_widget_id(question), widget=widget)
        self._items[item["id"]] = item
        return [{"type": "thread.item.replaced", "item": item}]

    def _find_widget_id(self, question: e.InputRequired) -> str:
        return format_item_id("inp", self._head.turn_id, UUID(question.input_id).hex)

    # --- items

    def _find_item_id(self, kind: str, step: int) -> str:
        return format_item_id(kind, self._head.turn_id, step)

    def _build_item(self, kind: str, item_id: str, **fields: object) -> JsonObject:
        created_at = (self._head.created_at or datetime.now(UTC)).isoformat()
        return {"type": kind, "id": item_id, "thread_id": self._head.thread_id, "created_at": created_at, **fields}

    def _open_item(self, step: int, item: JsonObject) -> JsonObject:
        self._items[item["id"]] = item
        self._open_ids[item["id"]] = None
        self._step_ids.setdefault(step, set()).add(item["id"])
        return {"type": "thread.item.added", "item": _copy_item(item)}

    def _complete_item(self, item: JsonObject) -> JsonObject:
        """Return an item with the text that it has so far."""
        if (texts := self._texts.get(item["id"])) is None:
            return item
        return item | {"content": [{"type": "output_text", "text": "".join(texts), "annotations": []}]}

    def _close_item(self, item_id: str) -> list[JsonObject]:
        if item_id not in self._open_ids:
            return []
        del self._open_ids[item_id]
        item = self._items[item_id] = self._complete_item(self._items[item_id])
        return [{"type": "thread.item.done", "item": _copy_item(item)}]

    def _close_all(self) -> list[JsonObject]:
        return [event for item_id in list(self._open_ids) for event in self._close_item(item_id)]

    def _discard_step(self, step: int) -> list[JsonObject]:
        """Remove the items of a step that is repeated."""
        removed = sorted(self._step_ids.pop(step, ()))
        for item_id in removed:
            del self._items[item_id]
            self._open_ids.pop(item_id, None)
            self._texts.pop(item_id, None)
        return [{"type": "thread.item.removed", "item_id": item_id} for item_id in removed]


def _build_update(item_id: str, kind: str, **fields: object) -> JsonObject:
    return {"type": "thread.item.updated", "item_id": item_id, "update": {"type": kind, **fields}}


def _copy_item(item: JsonObject) -> JsonObject:
    """Copy an item whose workflow changes later."""
    workflow = item.get("workflow")
    return item if workflow is None else item | {"workflow": workflow | {"tasks": list(workflow["tasks"])}}


def _encode_arguments(arguments: JsonObject) -> str:
    return msgspec.json.encode(arguments).decode()


def _cut_text(text: str) -> str:
    return text if len(text) <= _MAX_TASK_CHARS else f"{text[:_MAX_TASK_CHARS]}…"

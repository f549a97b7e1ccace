"""Output items and events of OpenAI's Responses API.

A writer folds the turn's events from the first event on, so numbers and ids are the same on every read.
"""

from collections.abc import Callable
from itertools import takewhile
from typing import assert_never
from uuid import UUID

import msgspec

from gateway.domain import events as e
from gateway.domain.messages import JsonObject, ToolSpec, Usage
from gateway.ports.listener import EventFold
from gateway.wire.openai.error_codes import get_openai_code
from gateway.wire.openai_chat_answers import build_response_usage, format_arguments, get_created_at
from gateway.wire.openai_response_ids import format_approval_id, format_conversation_id, format_response_id

_INCOMPLETE_REASONS = dict.fromkeys(("length", "step_limit", "token_limit"), "max_output_tokens") | {
    "content_filter": "content_filter"
}
_encode = msgspec.json.Encoder().encode


class ResponseContext(msgspec.Struct, frozen=True):
    """Request echo, and a lookup of current tools by name."""

    echo: JsonObject
    find_tool: Callable[[str], ToolSpec | None]


class ResponseWriter(EventFold):
    """Folds a turn's events into the response and its events."""

    def __init__(self, turn_id: UUID, context: ResponseContext, part: int = 0) -> None:
        self._turn_id = turn_id
        self._context = context
        self._part = part
        self._current_part = 0
        self._sequence = 0
        self._model = ""
        self._conversation_id: str | None = None
        self._usage = Usage()
        self._status = "in_progress"
        self._error: JsonObject | None = None
        self._incomplete: JsonObject | None = None
        self._output: list[JsonObject] = []
        self._steps: dict[str, int] = {}
        self._open: JsonObject | None = None
        self._text_parts: list[str] = []
        self._calls: dict[str, tuple[e.ToolCallStarted, JsonObject | None]] = {}
        self._approvals: dict[str, str] = {}
        self._item_count = 0
        self._taken_count = 0
        self._has_output = False

    @property
    def has_begun(self) -> bool:
        """Return whether the turn has reached this response's part."""
        return self._current_part == self._part

    @property
    def has_output(self) -> bool:
        return self._has_output

    @property
    def has_ended(self) -> bool:
        return self._status != "in_progress"

    def build_response(self) -> JsonObject:
        """Build the response in its current state."""
        if self._open is not None:
            self._set_text(self._open)
        response: JsonObject = {
            "id": format_response_id(self._turn_id, self._part),
            "object": "response",
            "created_at": get_created_at(self._turn_id),
            "status": self._status,
            "background": False,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": self._model,
            "output": list(self._output),
            "parallel_tool_calls": True,
            "previous_response_id": format_response_id(self._turn_id, self._part - 1) if self._part else None,
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "user": None,
        }
        echo = self._context.echo.get("response", {})
        response |= {name: value for name, value in echo.items() if not (self._part and name == "previous_response_id")}
        if self._conversation_id is not None:
            response["conversation"] = {"id": format_conversation_id(self._conversation_id)}
        response["usage"] = build_response_usage(self._usage) if self.has_ended else None
        return response

    def take_finished_items(self) -> list[JsonObject]:
        """Remove and return the items that will not change."""
        open_ = self._open
        taken = list(takewhile(lambda i: i is not open_ and i.get("status") != "in_progress", self._output))
        del self._output[: len(taken)]
        self._taken_count += len(taken)
        ids = {item["id"] for item in taken}
        self._calls = {
            key: (call, item) for key, (call, item) in self._calls.items() if not item or item["id"] not in ids
        }
        return taken

    def apply(self, event: e.Event) -> bool:
        """Apply the turn's next event; return whether the response has ended."""
        self.write_event(event)
        return self.has_ended

    def write_event(self, event: e.Event) -> list[JsonObject]:
        """Return the API's events for an event of the turn.

        The list is empty for events outside of this response's part of the turn.
        """
        if self.has_ended:
            return []
        if isinstance(event, e.TurnResumed):
            if self.has_begun:
                return self.end_for_input()
            self._current_part += 1
            return self._begin_response() if self.has_begun else []
        if not self.has_begun:
            self._remember_state(event)
            return []
        return self._write_event(event)

    def end_for_input(self) -> list[JsonObject]:
        """End the response because the turn waits for an approval."""
        return [*self._close_item(), *self._end_response("completed")]

    def write_error(self, code: str, message: str) -> list[JsonObject]:
        """Return the event of a stream that breaks off early."""
        return [self._new_event("error", code=code, message=message, param=None)]

    def _remember_state(self, event: e.Event) -> None:
        match event:
            case e.TurnStarted():
                self._model, self._conversation_id = event.model, event.conversation_id
            case e.ToolCallStarted():
                self._calls[event.call_id] = (event, None)
            case e.InputRequired():
                self._approvals[event.call_id] = format_approval_id(event.input_id, self._turn_id, self._current_part)
            case (
                e.TextDelta()
                | e.ReasoningDelta()
                | e.HistorySummarized()
                | e.SamplingCompleted()
                | e.ToolProgress()
                | e.ToolLog()
                | e.ToolFinished()
                | e.InputResolved()
                | e.TurnResumed()
                | e.StepCompleted()
                | e.ModelRetry()
                | e.TurnCompleted()
                | e.TurnFailed()
                | e.TurnCancelled()
            ):
                pass
            case _:
                assert_never(event)

    def _write_event(self, event: e.Event) -> list[JsonObject]:
        match event:
            case e.TurnStarted():
                self._model, self._conversation_id = event.model, event.conversation_id
                return [*self._begin_response(), *self._write_tool_lists()]
            case e.ReasoningDelta():
                return self._write_reasoning(event)
            case e.TextDelta():
                return self._write_text(event)
            case e.ToolCallStarted():
                return [*self._close_item(), *self._write_call(event)]
            case e.InputRequired():
                return self._write_approval_request(event)
            case e.InputResolved():
                return self._write_approval(event)
            case e.ToolFinished():
                return self._write_call_result(event)
            case e.StepCompleted() | e.HistorySummarized() | e.SamplingCompleted():
                self._usage = self._usage + event.usage
                return self._close_item()
            case e.ModelRetry():
                return self._discard_step(event.step) if event.discard else []
            case e.TurnCompleted():
                self._usage = event.usage
                if reason := _INCOMPLETE_REASONS.get(event.finish_reason):
                    self._incomplete = {"reason": reason}
                    return [*self._close_item(), *self._end_response("incomplete")]
                return [*self._close_item(), *self._end_response("completed")]
            case e.TurnFailed():
                self._error = {"code": get_openai_code(event.error.code), "message": event.error.message}
                return [*self._close_item("incomplete"), *self._end_response("failed")]
            case e.TurnCancelled():
                return [*self._close_item("incomplete"), *self._end_response("cancelled")]
            case e.ToolProgress() | e.ToolLog() | e.TurnResumed():
                return []
            case _:
                assert_never(event)

    # --- events

    def _new_event(self, kind: str, **fields: object) -> JsonObject:
        event: JsonObject = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def _begin_response(self) -> list[JsonObject]:
        return [
            self._new_event(f"response.{kind}", response=self.build_response()) for kind in ("created", "in_progress")
        ]

    def _end_response(self, status: str) -> list[JsonObject]:
        self._status = status
        kind = "failed" if status == "cancelled" else status
        return [self._new_event(f"response.{kind}", response=self.build_response())]

    def _add_item(self, item: JsonObject, step: int = 0) -> JsonObject:
        """Add an item to the output; return the event for it."""
        self._output.append(item)
        self._steps[item["id"]] = step
        self._has_output |= item["type"] != "mcp_list_tools"
        return self._new_event("response.output_item.added", output_index=self._get_output_index(item), item=dict(item))

    def _finish_item(self, item: JsonObject) -> JsonObject:
        return self._new_event("response.output_item.done", output_index=self._get_output_index(item), item=dict(item))

    def _new_item_event(self, kind: str, item: JsonObject, **fields: object) -> JsonObject:
        return self._new_event(
            f"response.{kind}", item_id=item["id"], output_index=self._get_output_index(item), **fields
        )

    def _get_output_index(self, item: JsonObject) -> int:
        return self._taken_count + next(index for index, other in enumerate(self._output) if other is item)

    def _new_id(self, prefix: str) -> str:
        self._item_count += 1
        return f"{prefix}_{self._turn_id.hex}_{self._part}_{self._item_count}"

    # --- items

    def _write_tool_lists(self) -> list[JsonObject]:
        events: list[JsonObject] = []
        for server, names in self._context.echo.get("servers", {}).items():
            item: JsonObject = {
                "id": self._new_id("mcpl"),
                "type": "mcp_list_tools",
                "server_label": server,
                "tools": [],
            }
            events += [self._add_item(item), self._new_item_event("mcp_list_tools.in_progress", item)]
            item["tools"] = [self._describe_tool(name) for name in names]
            events += [self._new_item_event("mcp_list_tools.completed", item), self._finish_item(item)]
        return events

    def _describe_tool(self, name: str) -> JsonObject:
        spec = self._context.find_tool(name)
        return {
            "name": name,
            "description": spec.description if spec else None,
            "input_schema": spec.input_schema if spec else {"type": "object"},
            "annotations": {"read_only": spec.read_only} if spec else None,
        }

    def _write_reasoning(self, event: e.ReasoningDelta) -> list[JsonObject]:
        open_, events = self._get_open_item("reasoning", event.step)
        item: JsonObject = open_ or {}
        if open_ is None:
            item = {
                "id": self._new_id("rs"),
                "type": "reasoning",
                "summary": [],
                "content": [],
                "status": "in_progress",
            }
            events += self._open_item(item, event.step, {"type": "reasoning_text", "text": ""})
        self._text_parts.append(event.text)
        return [*events, self._new_item_event("reasoning_text.delta", item, content_index=0, delta=event.text)]

    def _write_text(self, event: e.TextDelta) -> list[JsonObject]:
        is_refusal = event.refusal is True
        open_, events = self._get_open_item("message", event.step)
        if open_ is not None and (open_["content"][0]["type"] == "refusal") != is_refusal:
            open_, events = None, self._close_item()
        item: JsonObject = open_ or {}
        if open_ is None:
            item = {
                "id": self._new_id("msg"),
                "type": "message",
                "role": "assistant",
                "content": [],
                "status": "in_progress",
            }
            part: JsonObject = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events += self._open_item(item, event.step, {"type": "refusal", "refusal": ""} if is_refusal else part)
        self._text_parts.append(event.text)
        if is_refusal:
            return [*events, self._new_item_event("refusal.delta", item, content_index=0, delta=event.text)]
        delta = self._new_item_event("output_text.delta", item, content_index=0, delta=event.text, logprobs=[])
        return [*events, delta]

    def _get_open_item(self, kind: str, step: int) -> tuple[JsonObject | None, list[JsonObject]]:
        """Return the open item, or the events that close another one."""
        if self._open is not None and self._open["type"] == kind and self._steps[self._open["id"]] == step:
            return self._open, []
        return None, self._close_item()

    def _open_item(self, item: JsonObject, step: int, part: JsonObject) -> list[JsonObject]:
        added = self._add_item(item, step)
        item["content"] = [part]
        self._open = item
        return [added, self._new_item_event("content_part.added", item, content_index=0, part=dict(part))]

    def _close_item(self, status: str = "completed") -> list[JsonObject]:
        item, self._open = self._open, None
        if item is None:
            return []
        part: JsonObject = item["content"][0]
        text = self._set_text(item)
        item["status"] = status
        self._text_parts = []
        if part["type"] == "refusal":
            done = self._new_item_event("refusal.done", item, content_index=0, refusal=text)
        elif item["type"] == "message":
            done = self._new_item_event("output_text.done", item, content_index=0, text=text, logprobs=[])
        else:
            done = self._new_item_event("reasoning_text.done", item, content_index=0, text=text)
        return [
            done,
            self._new_item_event("content_part.done", item, content_index=0, part=dict(part)),
            self._finish_item(item),
        ]

    def _set_text(self, item: JsonObject) -> str:
        part: JsonObject = item["content"][0]
        text = part["refusal" if part["type"] == "refusal" else "text"] = "".join(self._text_parts)
        return text

    def _write_call(self, event: e.ToolCallStarted) -> list[JsonObject]:
        self._calls[event.call_id] = (event, None)
        if event.client:
            return self._write_client_call(event)
        return [] if event.needs_approval else self._write_mcp_call(event, format_arguments(event))

    def _write_client_call(self, event: e.ToolCallStarted) -> list[JsonObject]:
        arguments = format_arguments(event)
        item: JsonObject = {
            "id": self._new_id("fc"),
            "type": "function_call",
            "call_id": event.call_id,
            "name": event.tool,
            "arguments": "",
            "status": "in_progress",
        }
        if event.extra_content is not msgspec.UNSET:
            item["extra_content"] = event.extra_content
        added = self._add_item(item, event.step)
        item |= {"arguments": arguments, "status": "completed"}
        return [
            added,
            self._new_item_event("function_call_arguments.delta", item, delta=arguments),
            self._new_item_event("function_call_arguments.done", item, name=event.tool, arguments=arguments),
            self._finish_item(item),
        ]

    def _write_mcp_call(self, event: e.ToolCallStarted, arguments: str) -> list[JsonObject]:
        """Return the events for the start of a gateway tool's call."""
        item: JsonObject = {
            "id": self._new_id("mcp"),
            "type": "mcp_call",
            "server_label": event.server or "unknown",
            "name": event.tool,
            "arguments": "",
            "output": None,
            "error": None,
            "status": "in_progress",
            "approval_request_id": self._approvals.get(event.call_id),
        }
        self._calls[event.call_id] = (event, item)
        added = self._add_item(item, event.step)
        item["arguments"] = arguments
        return [
            added,
            self._new_item_event("mcp_call.in_progress", item),
            self._new_item_event("mcp_call_arguments.delta", item, delta=arguments),
            self._new_item_event("mcp_call_arguments.done", item, arguments=arguments),
        ]

    def _write_approval_request(self, event: e.InputRequired) -> list[JsonObject]:
        if event.kind != "approval":  # other questions are answered over the native API
            return []
        self._approvals[event.call_id] = format_approval_id(event.input_id, self._turn_id, self._current_part)
        call, _ = self._calls[event.call_id]
        item: JsonObject = {
            "id": self._approvals[event.call_id],
            "type": "mcp_approval_request",
            "server_label": call.server or "unknown",
            "name": call.tool,
            "arguments": format_arguments(call),
        }
        return [self._add_item(item, call.step), self._finish_item(item)]

    def _write_approval(self, event: e.InputResolved) -> list[JsonObject]:
        call, item = self._calls.get(event.call_id, (None, None))
        if call is None or item is not None or event.action != "accept":
            return []
        arguments = event.edited_arguments
        text = format_arguments(call) if arguments is None else _encode(arguments).decode()
        return [*self._close_item(), *self._write_mcp_call(call, text)]

    def _write_call_result(self, event: e.ToolFinished) -> list[JsonObject]:
        call, item = self._calls[event.call_id]
        events: list[JsonObject] = []
        if item is None:
            events = [*self._close_item(), *self._write_mcp_call(call, format_arguments(call))]
            item = self._calls[event.call_id][1]
            assert item is not None
        text = "\n".join(str(b["text"]) if b.get("type") == "text" else f"[{b.get('type')}]" for b in event.content)
        succeeded = event.outcome == "ok"
        item |= {"output": text if succeeded else None, "error": None if succeeded else text or event.outcome}
        item["status"] = "completed" if succeeded else "failed"
        return [
            *events,
            self._new_item_event("mcp_call.completed" if succeeded else "mcp_call.failed", item),
            self._finish_item(item),
        ]

    def _discard_step(self, step: int) -> list[JsonObject]:
        """End the output of a step that is retried; its items stay."""
        events = self._close_item("incomplete")
        for item in self._output:
            if self._steps[item["id"]] == step and item.get("status") == "in_progress":
                item["status"] = "incomplete"
                events.append(self._finish_item(item))
        return events

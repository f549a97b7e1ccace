"""Tools for models that cannot call functions: told in the prompt, called by a block in the text."""

from collections.abc import Collection

import msgspec

from gateway.domain.messages import Message, ToolCall
from gateway.llm.tool_repair.repair import extract_calls, write_tools_prompt
from gateway.ports.model import ModelCall, ModelSink

_MARKERS = ("<TOOL_CALLS>", "[TOOL_CALLS]", "<tool_call", "<function")
_MAX_MARKER_LENGTH = max(map(len, _MARKERS))


def move_tools_into_prompt(call: ModelCall) -> ModelCall:
    """The call without tools: they stand in the system message, earlier calls and results in the text."""
    first, *rest = call.messages
    told = write_tools_prompt(call.tools)
    if first.role == "system":
        first = msgspec.structs.replace(first, content=f"{first.text}\n\n{told}")
    else:
        rest, first = [first, *rest], Message(role="system", content=told)
    names = {made.id: made.name for message in rest for made in message.tool_calls}
    messages = (first, *(_write_as_text(message, names) for message in rest))
    parameters = msgspec.structs.replace(call.parameters, parallel_tool_calls=None)
    return msgspec.structs.replace(call, messages=messages, tools=(), tool_choice=None, parameters=parameters)


def _write_as_text(message: Message, names: dict[str, str]) -> Message:
    if message.role == "tool":
        name = names.get(message.tool_call_id or "", "a tool")
        return Message(role="user", content=f"The result of {name}:\n{message.text}")
    if not message.tool_calls:
        return message
    made = ", ".join(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls)
    return Message(role="assistant", content=f"{message.text}\n<TOOL_CALLS>[{made}]</TOOL_CALLS>".strip())


class PromptedToolCallParser:
    """A sink that keeps back what may be a block of calls, and makes calls of it at the end."""

    def __init__(self, sink: ModelSink, names: Collection[str]) -> None:
        self._sink = sink
        self._names = names
        self._held = ""
        self._inside = False
        self.on_accepted = sink.on_accepted
        self.on_reasoning = sink.on_reasoning
        self.on_tool_call = sink.on_tool_call
        self.on_server_tool_call = sink.on_server_tool_call
        self.on_retry = sink.on_retry
        self.record_failed_usage = sink.record_failed_usage
        self.wait_for_capacity = sink.wait_for_capacity

    def on_text(self, text: str) -> None:
        self._held += text
        if self._inside:
            return
        starts = [at for marker in _MARKERS if (at := self._held.find(marker)) >= 0]
        self._inside = bool(starts)
        at = min(starts) if starts else self._find_partial_marker()
        if shown := self._held[:at]:
            self._sink.on_text(shown)
            self._held = self._held[at:]

    def _find_partial_marker(self) -> int:
        """Where a marker may have begun that is not all here yet."""
        for at in range(max(0, len(self._held) - _MAX_MARKER_LENGTH + 1), len(self._held)):
            if any(marker.startswith(self._held[at:]) for marker in _MARKERS):
                return at
        return len(self._held)

    def finish_text(self) -> bool:
        """Make the calls; what turns out to be none is shown. Whether there was one."""
        calls: list[ToolCall] = extract_calls(self._held, self._names) if self._inside else []
        for call in calls:
            self._sink.on_tool_call(call)
        if self._held and not calls:
            self._sink.on_text(self._held)
        return bool(calls)

"""Tool calls for models without native support.

The tools are in the prompt, and the calls in the text.
"""

from collections.abc import Collection

import msgspec

from gateway.domain.messages import Message, ToolCall
from gateway.llm.stream import check_call_count
from gateway.llm.tool_repair.repair import extract_calls, write_tools_prompt
from gateway.ports.model import ModelCall, ModelSink

_MARKERS = ("<TOOL_CALLS>", "[TOOL_CALLS]", "<tool_call", "<function")
_MAX_MARKER_LENGTH = max(map(len, _MARKERS))


def move_tools_into_prompt(call: ModelCall) -> ModelCall:
    """Describe the tools in the system message.

    Earlier calls and results become text.
    """
    first_message, *other_messages = call.messages
    instructions = write_tools_prompt(call.tools)
    if first_message.role == "system":
        first_message = msgspec.structs.replace(first_message, content=f"{first_message.text}\n\n{instructions}")
    else:
        other_messages, first_message = [first_message, *other_messages], Message(role="system", content=instructions)
    tool_names = {call.id: call.name for message in other_messages for call in message.tool_calls}
    messages = (first_message, *(_write_as_text(message, tool_names) for message in other_messages))
    parameters = msgspec.structs.replace(call.parameters, parallel_tool_calls=None)
    return msgspec.structs.replace(call, messages=messages, tools=(), tool_choice=None, parameters=parameters)


def _write_as_text(message: Message, tool_names: dict[str, str]) -> Message:
    if message.role == "tool":
        name = tool_names.get(message.tool_call_id or "", "a tool")
        return Message(role="user", content=f"The result of {name}:\n{message.text}")
    if not message.tool_calls:
        return message
    calls = ", ".join(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls)
    return Message(role="assistant", content=f"{message.text}\n<TOOL_CALLS>[{calls}]</TOOL_CALLS>".strip())


class TextHolder:
    """Base of sinks that hold back text.

    The other callbacks are those of the inner sink, without a call in between for each token, so `ModelSink` with its
    abstract methods cannot be a base class.
    """

    def __init__(self, sink: ModelSink) -> None:
        self._sink = sink
        self._held_text = ""
        self.on_accepted = sink.on_accepted
        self.on_reasoning = sink.on_reasoning
        self.on_refusal = sink.on_refusal
        self.on_tool_call = sink.on_tool_call
        self.on_server_tool_call = sink.on_server_tool_call
        self.on_retry = sink.on_retry
        self.record_failed_usage = sink.record_failed_usage
        self.capacity = sink.capacity


class PromptedToolCallParser(TextHolder):
    """Sink that holds back text from a call marker on.

    It parses that text at the end.
    """

    def __init__(self, sink: ModelSink, names: Collection[str]) -> None:
        super().__init__(sink)
        self._tool_names = names
        self._in_call_block = False

    def on_text(self, text: str) -> None:
        self._held_text += text
        if self._in_call_block:
            return
        starts = [at for marker in _MARKERS if (at := self._held_text.find(marker)) >= 0]
        self._in_call_block = bool(starts)
        at = min(starts) if starts else self._find_partial_marker()
        if visible := self._held_text[:at]:
            self._sink.on_text(visible)
            self._held_text = self._held_text[at:]

    def _find_partial_marker(self) -> int:
        """Return the start of an incomplete marker at the text's end.

        Without one, it is the length of the text.
        """
        for at in range(max(0, len(self._held_text) - _MAX_MARKER_LENGTH + 1), len(self._held_text)):
            if any(marker.startswith(self._held_text[at:]) for marker in _MARKERS):
                return at
        return len(self._held_text)

    def finish_text(self) -> bool:
        """Emit the calls in the held text, or the text itself.

        The text is emitted if it has no calls. Return whether it had calls.

        Raises:
            ModelAnswerTooLong: there are too many calls.
        """
        calls: list[ToolCall] = []
        if self._in_call_block:
            calls = extract_calls(self._held_text, self._tool_names, place="end")
        check_call_count(len(calls))
        for call in calls:
            self._sink.on_tool_call(call)
        if self._held_text and not calls:
            self._sink.on_text(self._held_text)
        return bool(calls)

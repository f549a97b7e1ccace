"""Tool calls that models with native calls write into their text.

A text becomes calls only if it is nothing but calls of offered tools whose arguments match their schemas.
"""

import re
from collections.abc import Mapping

from gateway.domain.messages import JsonObject, ToolCall
from gateway.llm.tool_repair.call_values import has_only_call_members
from gateway.llm.tool_repair.json_repair import JsonRepairError, parse_strict
from gateway.llm.tool_repair.prompted_tools import TextHolder
from gateway.llm.tool_repair.repair import RepairedCall, UnrepairableCall, extract_calls, repair_calls
from gateway.llm.tool_repair.tool_names import is_parallel_wrapper, resolve_tool_name
from gateway.ports.model import ModelSink

_MARKERS = (
    "<tool_call",
    "<tool_use>",
    "<toolcall",
    "<function",
    "<invoke",
    "<use_mcp_tool>",
    "<tool name=",
    "<start_function_call>",
    "<antml:",
    "<|tool",
    "<|dsml|",
    "<\uff5ctool",
    "<tool\u2581",
    "\u273ffunction\u273f",
    "<\uff5cdsml\uff5c",
    "<|python_",
    "<|start|>",
    "<|channel|>",
    "<|start_action|>",
    "<|action_start|>",
    "<minimax:tool_call>",
    "<seed:tool_call>",
    "<longcat_tool_call>",
    "[tool_call",
    "[tool_request]",
    "tool_calls[",
    "functools[",
    "```tool_c",
    "]<]minimax[>[",
    "functions.",
    "multi_tool_use.parallel(",
    "to=functions.",
    "commentary to=",
    "assistantcommentary to=",
    "call:",
    ">>>",
    '{"name"',
    '[{"name"',
    '{"type":"function"',
    '{"tool_calls"',
)
_MAX_MARKER_LENGTH = max(map(len, _MARKERS))
_MARKER_SPACE = re.compile(r"(?<=[\[{:<|\uff5c])\s+|\s+(?=[|\uff5c]|$)")
_GUESSES = ("dropped, there is no such field", "a value in place of an object")
"""Repairs of arguments that do not fit their schema."""
_FIRST_NAME = re.compile(r"\s*(?:\[\s*)?\{\s*\"name\"\s*:\s*\"([^\"\\]{0,128})\"|\s*<function=([\w.-]{1,128})[>{(\s]")


class TextCallParser(TextHolder):
    """Sink that holds back a text while it may be a call.

    A text of more than `max_chars`, or one that is no call, is passed on at once. From then on, all callbacks are those
    of the inner sink.
    """

    def __init__(self, sink: ModelSink, schemas: Mapping[str, JsonObject], max_chars: int) -> None:
        super().__init__(sink)
        self._schemas = schemas
        self._tags = tuple(f"<{name.lower()}>" for name in schemas)
        self._max_chars = max_chars
        self._is_name_known = False
        self.on_text = self._hold_text
        self.on_tool_call = self._pass_tool_call

    def _hold_text(self, text: str) -> None:
        self._held_text += text
        if len(self._held_text) > self._max_chars or not self._may_be_call():
            self.release_text()

    def _pass_tool_call(self, call: ToolCall) -> None:
        self.release_text()
        self._sink.on_tool_call(call)

    def _may_be_call(self) -> bool:
        head = _MARKER_SPACE.sub("", self._held_text.lstrip()[: 4 * _MAX_MARKER_LENGTH]).lower()
        if not any(marker.startswith(head[: len(marker)]) for marker in (*_MARKERS, *self._tags)):
            return False
        name = None if self._is_name_known else _FIRST_NAME.match(self._held_text)
        self._is_name_known = self._is_name_known or name is not None
        return name is None or self._is_tool(name[1] or name[2])

    def _is_tool(self, name: str) -> bool:
        try:
            resolve_tool_name(name, self._schemas)
        except JsonRepairError:
            return is_parallel_wrapper(name)
        return True

    def release_text(self) -> None:
        """Pass on the held text, and hold back nothing any more."""
        text, self._held_text = self._held_text, ""
        if text:
            self._sink.on_text(text)
        # Only now: the sink may hold back blank text until its first other text.
        self.on_text, self.on_tool_call = self._sink.on_text, self._sink.on_tool_call

    @property
    def held_chars(self) -> int:
        return len(self._held_text)

    def finish_text(self) -> bool:
        """Emit the held text as calls; if it is none, as text.

        Return whether it was calls.
        """
        calls = extract_calls(self._held_text, self._schemas, place="alone")
        repaired = [result for call in calls for _, result in repair_calls(call, self._schemas)]
        value = parse_strict(self._held_text)
        is_alone = value is None or has_only_call_members(value)
        if not calls or not is_alone or not all(map(_fits_schema, repaired)):
            self.release_text()
            return False
        self._held_text = ""
        for call in calls:
            self._sink.on_tool_call(call)
        return True


def _fits_schema(result: RepairedCall | UnrepairableCall) -> bool:
    repairs = result.repairs if isinstance(result, RepairedCall) else _GUESSES
    return not any(repair.endswith(_GUESSES) for repair in repairs)

"""Joins the parts of tool calls in a stream."""

from typing import Any

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, ToolCall
from gateway.llm.chunks import ToolCallDelta
from gateway.llm.tool_repair.json_repair import is_object

_MAX_CHECKS = 64
CUT_PROBLEM = "it was cut off before its arguments were complete; make it shorter."


class _OpenCall:
    __slots__ = ("_checks", "arguments", "chars", "extra_content", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.chars = 0
        self.extra_content: Any = None
        self._checks = 0

    @property
    def text(self) -> str:
        return "".join(self.arguments)

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole JSON object.

        False after many checks, whose cost a server could multiply.
        """
        if not self.arguments or not self.arguments[-1].rstrip().endswith("}") or self._checks >= _MAX_CHECKS:
            return False
        self._checks += 1
        try:
            return is_object(msgspec.json.decode(self.text))
        except JSON_DECODE_ERRORS:
            return False

    def begins_anew(self, part: ToolCallDelta, name: str, text: str) -> bool:
        """Return whether a part begins another call.

        A repeated name alone begins nothing.
        """
        if not name:
            return False
        has_new_id = bool(part.id and self.id and part.id != self.id)
        if has_new_id and (name != self.name or (part.index is None and not self.arguments)):
            return True
        return bool(text or has_new_id or name != self.name) and self.is_complete and not self.is_repeated(name, text)

    def is_repeated(self, name: str, text: str) -> bool:
        return name == self.name and len(text) == self.chars and text == self.text

    def add_extra_content(self, content: Any) -> int:
        """Join the members of all parts; return the length of these."""
        is_joined = is_object(self.extra_content) and is_object(content)
        self.extra_content = self.extra_content | content if is_joined else content
        return len(msgspec.json.encode(content))


class CallJoiner:
    """Joins parts of calls by their index.

    Servers leave out indexes, repeat names, count parts instead of calls, or send another id with each part. A part
    begins another call only if it names a tool and the call before is complete, or has an index of its own.
    """

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add_part(self, part: ToolCallDelta) -> int:
        """Add a part; return its length in characters."""
        function = part.function
        name = (function and function.name) or ""
        arguments = function.arguments if function is not None and function.arguments else ""
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        call = self._find_call(part, name, text)
        call.id = call.id or part.id or ""
        extra_count = 0 if part.extra_content is None else call.add_extra_content(part.extra_content)
        if name and call.chars and call.is_repeated(name, text) and call.is_complete:
            return len(text) + extra_count
        count = len(text) + extra_count
        if name != call.name:
            call.name += name
            count += len(name)
        if text:
            call.arguments.append(text)
            call.chars += len(text)
        return count

    def _find_call(self, part: ToolCallDelta, name: str, text: str) -> _OpenCall:
        last = self._calls[-1] if self._calls else None
        same = next((call for call in self._calls if call.id == part.id), None) if part.id else None
        known = self._by_index.get(part.index) if part.index is not None else same or last
        if known is not None:
            call = None if known.begins_anew(part, name, text) else known
        elif same is not None:
            call = None if name and (name != same.name or same.is_complete) else same
        elif last is not None and not name and not (part.id and last.is_complete):
            call = last  # an index without a name: this server counts parts
        else:
            call = None
        if call is None:
            call = _OpenCall()
            self._calls.append(call)
        if part.index is not None:
            self._by_index[part.index] = call
        return call

    def take_calls(self, *, is_cut: bool) -> list[ToolCall]:
        """Return the calls in the order in which they began, each once.

        With `is_cut`, the answer reached its token limit or a filter: a call without complete arguments has a problem,
        also one with an empty object, which some servers send before the arguments.
        """
        calls: dict[tuple[str, str, str], ToolCall] = {}
        for call in self._calls:
            if call.name or call.text:
                is_open = not call.is_complete or not msgspec.json.decode(call.text)
                problem = CUT_PROBLEM if is_cut and is_open else ""
                key = (call.id or str(len(calls)), call.name, call.text)
                if key not in calls or calls[key].extra_content is None:
                    calls[key] = ToolCall(call.id, call.name, call.text, problem, call.extra_content)
        self._calls, self._by_index = [], {}
        return list(calls.values())

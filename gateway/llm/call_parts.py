"""Joins the parts of tool calls in a stream."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, ToolCall
from gateway.llm.chunks import ToolCallDelta
from gateway.llm.tool_repair.json_repair import is_object, join_surrogates

_MAX_CHECKS = 64
_MAX_EMPTY_CHARS = len("{  }")
CUT_PROBLEM = "it was cut off before its arguments were complete; make it shorter."


class _OpenCall:
    """A call whose parts still arrive.

    `pieces` are the parts of its arguments, each with the id of its part. `has_next_name`: its name came again behind
    its complete arguments, so arguments that follow are those of another call.
    """

    __slots__ = ("_checks", "chars", "extra_content", "has_index", "has_next_name", "id", "name", "pieces")

    def __init__(self, name: str = "", *, has_index: bool = False) -> None:
        self.has_index = has_index
        self.id = ""
        self.name = name
        self.pieces: list[tuple[str, str]] = []
        self.chars = 0
        self.extra_content: Any = None
        self.has_next_name = False
        self._checks = 0

    @property
    def text(self) -> str:
        return join_surrogates("".join(text for _, text in self.pieces))

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole JSON object.

        False after many checks, whose cost a server could multiply.
        """
        if not self.pieces or not self.pieces[-1][1].rstrip().endswith("}") or self._checks >= _MAX_CHECKS:
            return False
        self._checks += 1
        return _decode_object(self.text) is not None

    def begins_anew(self, part: ToolCallDelta, name: str, text: str) -> bool:
        """Return whether a part begins another call.

        A repeated name alone begins nothing.
        """
        if self.has_next_name and text and not _is_empty_object(text):
            return True
        if not name or not self.name:
            return False
        has_new_id = bool(part.id and self.id and part.id != self.id)
        if has_new_id and (name != self.name or (part.index is None and not self.pieces)):
            return True
        if not (text or has_new_id or name != self.name) or not self.is_complete:
            return False
        if self.is_repeated(name, text) and not has_new_id:
            return False
        if self.is_same_call(part, name) and _is_empty_object(text):
            return False  # an empty object behind the arguments
        return name != self.name or part.id != self.id or not self.is_placeholder

    @property
    def is_placeholder(self) -> bool:
        """Whether the arguments are an empty object.

        Some servers send one before the arguments.
        """
        return self.chars <= _MAX_EMPTY_CHARS and _is_empty_object(self.text)

    def is_repeated(self, name: str, text: str) -> bool:
        return name == self.name and len(text) == self.chars and text == self.text

    def is_same_call(self, part: ToolCallDelta, name: str) -> bool:
        """Whether a part has the name and the id of this call.

        Without ids, it has an index.
        """
        is_same_id = part.id == self.id if part.id or self.id else part.index is not None
        return name == self.name and is_same_id

    @property
    def may_follow_empty_part(self) -> bool:
        """Whether an empty part before may belong to this call.

        So it is where parts have no index, no id, or another id each.
        """
        return not (self.has_index and self.id) or len({part_id for part_id, _ in self.pieces if part_id}) > 1

    def add_arguments(self, part_id: str, text: str) -> None:
        if self.pieces and self.is_placeholder and text.lstrip().startswith("{"):
            self.pieces.clear()
            self.chars = 0
        self.pieces.append((part_id, text))
        self.chars += len(text)

    def add_extra_content(self, content: Any) -> int:
        """Join the members of all parts; return the length of these."""
        is_joined = is_object(self.extra_content) and is_object(content)
        self.extra_content = self.extra_content | content if is_joined else content
        return len(msgspec.json.encode(content))

    def drop_repeated_parts(self) -> None:
        """Keep the last part if each one repeats those before it.

        Some servers send all arguments so far with each part.
        """
        texts = [text for _, text in self.pieces]
        is_growing = len(texts) > 1 and all(later.startswith(text) for text, later in pairwise(texts))
        if is_growing and _decode_object(texts[-1]) is not None and _decode_object(self.text) is None:
            del self.pieces[:-1]

    def split_by_id(self) -> "list[_OpenCall]":
        """Split calls whose parts came in turns, without an index.

        Each must then have whole arguments; otherwise, this is one call.
        """
        texts: dict[str, list[str]] = {}
        for part_id, text in self.pieces:
            texts.setdefault(part_id or self.id, []).append(text)
        if len(texts) < 2 or any(_decode_object("".join(text)) is None for text in texts.values()):
            return [self]
        calls: list[_OpenCall] = []
        for call_id, text in texts.items():
            calls.append(call := _OpenCall(self.name))
            call.id = call_id
            call.add_arguments(call_id, "".join(text))
        calls[0].extra_content = self.extra_content
        return calls


class CallJoiner:
    """Joins parts of calls by their index.

    Servers leave out indexes, repeat names, count parts instead of calls, or send another id with each part. A part
    begins another call only if it names a tool and the call before is complete, or has an index of its own.
    """

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str, _OpenCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add_part(self, part: ToolCallDelta) -> int:
        """Add a part; return its length in characters."""
        function = part.function or part
        name = function.name or ""
        arguments = function.arguments or ""
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        call = self._find_call(part, name, text)
        if part.id:
            call.id = call.id or part.id
            self._by_id.setdefault(part.id, call)
        count = len(text) if part.extra_content is None else len(text) + call.add_extra_content(part.extra_content)
        is_named_again = bool(name and call.chars) and name == call.name
        if is_named_again and call.is_complete and (not text or call.is_repeated(name, text) or _is_empty_object(text)):
            call.has_next_name = not text
            return count
        if call.has_next_name and _is_empty_object(text):
            return count
        if name != call.name:
            # Some servers send the name so far with each part.
            call.name = name if call.name and name.startswith(call.name) else call.name + name
            count += len(name)
        if text:
            call.add_arguments(part.id or "", text)
        return count

    def _find_call(self, part: ToolCallDelta, name: str, text: str) -> _OpenCall:
        last = self._find_last_open()
        same = self._by_id.get(part.id) if part.id else None
        known = self._by_index.get(part.index) if part.index is not None else same or last
        if same is not None and known is not None and part.id != known.id and len(self._by_index) == 1:
            known = same  # all calls of this server have the same index
        call: _OpenCall | None = None
        if known is not None:
            call = None if known.begins_anew(part, name, text) else known
            name = name or known.name
        elif same is not None:
            call = None if name and (name != same.name or same.is_complete) else same
        elif last is not None and not name and not (part.id and last.is_complete):
            call = last  # an index without a name: this server counts parts
        if call is None:
            next_name = name if known is not None and known.has_next_name else ""
            call = _OpenCall(next_name, has_index=part.index is not None)
            self._calls.append(call)
        if part.index is not None:
            self._by_index[part.index] = call
        return call

    def _find_last_open(self) -> _OpenCall | None:
        return next((call for call in reversed(self._calls) if not call.is_complete), None) or (
            self._calls[-1] if self._calls else None
        )

    def take_calls(self, *, is_cut: bool) -> list[ToolCall]:
        """Return the calls in the order in which they began, each once.

        With `is_cut`, the answer reached its token limit or a filter: a call without complete arguments has a problem,
        also one with an empty object, which some servers send before the arguments.
        """
        calls: dict[tuple[str, str, object], ToolCall] = {}
        for open_call in self._calls:
            open_call.drop_repeated_parts()
        split_calls = [part for open_call in self._calls for part in open_call.split_by_id()]
        for call, is_whole in _join_pieces(split_calls):
            if call.name or call.text:
                arguments = _decode_object(call.text)
                problem = CUT_PROBLEM if not is_whole or (is_cut and not arguments) else ""
                content = call.text if arguments is None else msgspec.json.encode(arguments, order="deterministic")
                key = (call.id or str(len(calls)), call.name, content)
                if key not in calls or calls[key].extra_content is None:
                    calls[key] = ToolCall(call.id, call.name, call.text, problem, call.extra_content)
        self._calls, self._by_index, self._by_id = [], {}, {}
        return list(calls.values())


def _join_pieces(calls: Iterable[_OpenCall]) -> Iterator[tuple[_OpenCall, bool]]:
    """Join calls of the same name that are whole only together.

    Some servers send each part with an index, an id and a name of its own. Yield each call, and False for one without
    arguments beside pieces that are not whole together: it must not run without them.
    """
    group: list[_OpenCall] = []
    for call in calls:
        if group and (call.name != group[-1].name or _decode_object(call.text) is not None):
            if call.name != group[-1].name or not call.may_follow_empty_part or any(other.pieces for other in group):
                yield from _end_group(group)
            elif not call.id:
                call.id = group[0].id
            group = []
        if _decode_object(call.text) is not None:
            yield call, True
            continue
        group.append(call)
        text = "".join(piece.text for piece in group)
        if len(group) > 1 and text.rstrip().endswith("}") and _decode_object(text) is not None:
            group[0].pieces = [("", text)]
            yield group[0], True
            group = []
    yield from _end_group(group)


def _end_group(group: list[_OpenCall]) -> Iterator[tuple[_OpenCall, bool]]:
    has_pieces = len(group) > 1 and any(call.pieces for call in group)
    for call in group:
        yield call, bool(call.pieces) or not has_pieces


def _is_empty_object(text: str) -> bool:
    return len(text) <= _MAX_EMPTY_CHARS and _decode_object(text) == {}


def _decode_object(text: str) -> JsonObject | None:
    try:
        value = msgspec.json.decode(text)
    except JSON_DECODE_ERRORS:
        return None
    return value if is_object(value) else None

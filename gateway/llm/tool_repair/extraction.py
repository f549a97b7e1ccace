"""Finds the tool calls that models write into their text.

Various models use various markup. Marked calls (tags, Harmony recipients, `Action:`) count anywhere, even for unknown
tools. Bare JSON and Python-like calls count only for an available tool, on lines of their own, and at the start or the
end of the text: a call between words is an example.
"""

import re
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from gateway.llm.tool_repair.call_values import (
    ARGUMENT_KEYS,
    CHILD_TAGS,
    NAME_KEYS,
    dump_json,
    is_schema,
    list_json_calls,
    read_child_tags,
    read_parameter_tags,
)
from gateway.llm.tool_repair.json_repair import (
    MAX_LENIENT_CHARS,
    JsonRepairError,
    LenientJsonParser,
    is_list,
    is_object,
)
from gateway.llm.tool_repair.markup import normalize_markup
from gateway.llm.tool_repair.tool_names import is_parallel_wrapper, normalize_name, strip_prefixes

_NAME = r"[\"']?([\w.:-]{1,128}+)"
_MARK = re.compile(
    rf"<(?:function|invoke|tool)(?:_call|_use)?\b(?:\s{{1,4}}name)?\s{{0,4}}[=(/]\s{{0,4}}{_NAME}"
    r"|\bto=([\w.-]{1,128}+)"
    rf"|^\W{{0,4}}Action\W{{0,4}}:\W{{0,4}}{_NAME}[^\n]{{0,8}}\n\W{{0,4}}Action Input\W{{0,3}}:"
    r"|(<\|?tool_calls?(?:_begin)?\|?>|\[TOOL_CALLS?\]|<\|python_(?:tag|start)\|>|<function_calls>)\s*+(?:```\w*\s*)?"
    r"|([{\[])"
    r"|(?<![\w.-])([A-Za-z_][\w.-]{0,127}+)(?=\s?[({]|,\s?\{|\[ARGS\])",
    re.MULTILINE | re.IGNORECASE,
)
_SEPARATOR = re.compile(
    r"(?:\[ARGS\]|```\w*|<\|(?!(?:call|end|start)\|)[^|<>\s]{1,40}\|>|\b(?:json|code|commentary|analysis|assistant)\b|[\s=>:,\"'/])*+"
)
_NEXT_LINE = re.compile(r"[ \t`*]*+(?:json\b)?[ \t]*+(?:\n\s*+(?=\{))?")
_BLOCK_END = re.compile(
    r"</(?:function|invoke|tool_calls?|function_calls)>|\[/TOOL_CALLS\]|<\|(?:call|end|start)\|>", re.I
)
_CALL_START = re.compile(r"\(\s*(?:[A-Za-z_]\w*\s*=(?!=)|[\"'{\d])")
_LINE_HEAD = re.compile(r"[\s\[(`]*+(?:(?:json|python|tool_code)\s)?(?:<[^<>\n]{1,40}>\s*)*+(?:\w+ = )?(?:print\()?")
_LINE_TAIL = re.compile(r"[\s\])},;`]*+(?:<[^<>\n]{1,40}>\s*)*+")
_FILLER = re.compile(r"(?:\s|```\w*|<[^<>]{1,40}>|\w+ = |print\(|[\[\](),;`}])*+")
_MARKUP_ONLY = re.compile(
    r"(?:\s|```\w*|</?[|/\w:]{1,40}>|\[/?TOOL_CALLS?\]|\b(?:assistant|commentary|analysis|code|json)++\b|print\(|[\[\](),;`}>])*+"
)
_NAMED = re.compile(rf"[\"'](?:{'|'.join(NAME_KEYS)})[\"']\s*:\s*{_NAME}[\"']")
_PAYLOAD = re.compile(rf"[\"'](?:{'|'.join(ARGUMENT_KEYS)})[\"']\s*:\s*")
_PYTHON_LIST = re.compile(r"\[\s{0,20}[A-Za-z_][\w.-]{0,127}+\(")
_PYTHON_NAME = re.compile(r"[\s,;\[]{0,20}+([A-Za-z_][\w.-]{0,127}+)(?=\()")
_NEXT_OBJECT = re.compile(r"[\s,;]{0,20}+(?=\{)")
_CUT_ARGUMENTS = "{"
"""Arguments of a call that was cut, which must not run."""
_MAX_KEY_DISTANCE = 400
_MAX_LINE_CHARS = 120


CallPlace = Literal["anywhere", "end", "alone"]
"""Places of calls: among text, behind text, without text."""


class ExtractedCall(NamedTuple):
    """A call in a text.

    It has its position, whether markup marks it, its name and its arguments as written.
    """

    start: int
    end: int
    is_marked: bool
    name: str
    arguments: str


def find_calls(text: str, names: Collection[str], *, place: CallPlace = "anywhere") -> list[ExtractedCall]:
    """Find the calls in a text, outside of `<think>` blocks.

    A text over the length limit has none. The markup of a model family is rewritten only if the text has more calls
    then.
    """
    if len(text) > MAX_LENIENT_CHARS:
        return []
    answer = text.rfind("</think>") + 1
    text = text[:answer] + text[answer:].partition("<think>")[0]
    calls = _scan_text(text, answer, names)
    normalized_text = text[:answer] + normalize_markup(text[answer:], names)
    if normalized_text != text:
        more_calls = _scan_text(normalized_text, answer, names)
        if sum(bool(call.name) for call in more_calls) > sum(bool(call.name) for call in calls):
            text, calls = normalized_text, more_calls
    return calls if place == "anywhere" or _are_at_place(text, calls, place) else []


def _scan_text(text: str, at: int, names: Collection[str]) -> list[ExtractedCall]:
    scanner = _ToolCallScanner(text, names)
    calls = list(scanner.scan_calls(at))
    marked_calls = [call for call in calls if call.is_marked]
    if marked_calls or not calls:
        # Without the unreadable one, the other calls are not what was meant.
        return marked_calls + scanner.unreadable_calls[:1] if calls else []
    return calls if _is_at_text_edge(text, calls) else []


def _are_at_place(text: str, calls: list[ExtractedCall], place: CallPlace) -> bool:
    """Return whether nothing but markup stands behind the calls.

    For `alone`, also not before and between them.
    """
    ends = [0, *(call.end for call in calls)]
    starts = [*(call.start for call in calls), len(text)]
    parts = [text[end : max(end, start)] for end, start in zip(ends, starts, strict=True)]
    return all(_MARKUP_ONLY.fullmatch(part) for part in (parts if place == "alone" else parts[-1:]))


def _is_at_text_edge(text: str, calls: list[ExtractedCall]) -> bool:
    first_call, last_call = calls[0], calls[-1]
    begins, ends = _is_filler(text[: first_call.start]), _is_filler(text[last_call.end :])
    if begins and ends:
        return True
    if text[first_call.start] not in "{[" and (
        not ends or "```" in text[: first_call.start] or "()" in text[first_call.start : last_call.end]
    ):
        return False
    return begins or ends


def _is_filler(text: str) -> bool:
    return bool(_FILLER.fullmatch(text, max(text.rfind("</think>"), 0)))


class _ToolCallScanner:
    """Scanner of one text.

    `_effort` limits the characters that failed attempts to parse a value may read.
    """

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text = text
        self._tool_names = {normalize_name(name) for name in names}
        self._effort = MAX_LENIENT_CHARS
        self._last_end = 0
        self._is_cut = False
        self._block_end = -1, -1
        """Start and result of the last search for a block's end."""
        self.unreadable_calls: list[ExtractedCall] = []
        """Blocks whose content is no call."""

    def scan_calls(self, at: int) -> Iterator[ExtractedCall]:
        while mark := _MARK.search(self._text, at):
            at = mark.end()
            for call in self._read_mark(mark):
                yield call
                at = self._last_end = max(at, call.end)

    def _read_mark(self, mark: re.Match[str]) -> list[ExtractedCall]:
        tag, recipient, action, block, bracket, word = mark.groups()
        start, end = mark.span()
        if tag or recipient:
            return self._read_marked_call(start, tag or recipient, end)
        if action:
            arguments, end = self._read_action_input(end)
            return [ExtractedCall(start, end, True, action, arguments)]
        if block:
            if not (calls := self._read_block(start, end)):
                self._note_unreadable(end)
            return calls
        if bracket:
            return self._read_json_calls(start, marked=False) if self._begins_line(start) else []
        return self._read_named_call(mark) if word and self._begins_line(start) else []

    def _read_marked_call(self, start: int, name: str, end: int) -> list[ExtractedCall]:
        """Read a call with a marked name.

        JSON, parameter tags, brackets or text may follow the name.
        """
        body = self._skip_separator(end)
        if self._text.startswith(("{", "["), body):
            arguments, end = self._read_json_text(body)
        elif self._text.startswith("<parameter", body):
            end = self._find_block_end(body)
            arguments = read_parameter_tags(self._text[body:end]) or self._text[body:end]
        elif self._is_tool(name) and (children := CHILD_TAGS.match(self._text, body)):
            arguments, end = read_child_tags(children[0]) or _CUT_ARGUMENTS, children.end()
        elif not self._is_tool(name) or not (name.startswith("functions.") or self._begins_line(start)):
            return []
        elif self._text.startswith(("(", ")"), body):
            arguments, end = self._read_bracketed(body)
        else:
            end = self._find_block_end(body)
            arguments = self._text[body:end].strip(" \n\t>/)")
            if "<" in arguments:
                arguments = _CUT_ARGUMENTS  # tags of an unknown form
            if end == len(self._text) and not self._text.endswith(("/>", ")>")):
                arguments = _CUT_ARGUMENTS
        return [ExtractedCall(start, end, True, name, arguments)]

    def _read_block(self, start: int, at: int) -> list[ExtractedCall]:
        if self._text.startswith(("{", "["), at) and not _PYTHON_LIST.match(self._text, at):
            return [call._replace(start=start) for call in self._read_json_sequence(at)]
        calls: list[ExtractedCall] = []
        while (name := _PYTHON_NAME.match(self._text, at)) and (calls or self._is_tool(name[1])):
            python_calls = self._read_python_call(start, name[1].removesuffix(".call"), name.end(), marked=True)
            if not python_calls:
                break
            calls += python_calls
            at = calls[-1].end
        word = None if calls else _MARK.match(self._text, at)
        if word is None or not word[6]:
            return calls
        body = self._skip_separator(word.end())
        if self._text.startswith("{", body):
            arguments, end = self._read_json_text(body)
            return [ExtractedCall(start, end, True, word[6], arguments)]
        name = word[6].removesuffix(".call")
        return self._read_python_call(start, name, body, marked=True) if name != word[6] or self._is_tool(name) else []

    def _note_unreadable(self, at: int) -> None:
        end = self._find_block_end(at)
        if end == len(self._text) or self._text.find("<", at, end) >= 0:
            return
        is_inner = bool(self.unreadable_calls) and self.unreadable_calls[-1].end == end
        if not is_inner and (content := self._text[at:end].strip()):
            self.unreadable_calls.append(ExtractedCall(end, end, True, "", content))

    def _read_named_call(self, mark: re.Match[str]) -> list[ExtractedCall]:
        """Read a call written as `NAME{…}` or `NAME(…)`."""
        name = mark[6].removesuffix(".call")
        if not self._is_tool(name):
            return []
        body = self._skip_separator(mark.end())
        if self._text.startswith("{", body):
            arguments, end = self._read_json_text(body)
            return [ExtractedCall(mark.start(), end, False, name, arguments)] if self._ends_line(end) else []
        calls = self._read_python_call(mark.start(), name, body, marked=False)
        return [call for call in calls if self._ends_line(call.end)]

    def _read_python_call(self, start: int, name: str, body: int, *, marked: bool) -> list[ExtractedCall]:
        if not (_CALL_START.match(self._text, body) or self._text.startswith("()", body)):
            return []
        arguments, end = self._read_bracketed(body)
        return [ExtractedCall(start, end, marked, name, arguments)] if arguments or marked else []

    def _read_json_sequence(self, at: int) -> list[ExtractedCall]:
        """Read marked calls in one JSON value or several.

        Line breaks, commas or semicolons separate them.
        """
        calls = self._read_json_calls(at, marked=True)
        while calls and (following := _NEXT_OBJECT.match(self._text, calls[-1].end)):
            more_calls = self._read_json_calls(following.end(), marked=True)
            if not more_calls:
                break
            calls += more_calls
        return calls

    def _read_json_calls(self, start: int, *, marked: bool) -> list[ExtractedCall]:
        """Read the calls in the JSON at a position.

        From invalid JSON only the first call.
        """
        value, end = self._read_value(start)
        if end is None:
            return self._read_broken_json(start, marked=marked)
        if not marked and not self._ends_line(end):
            return []
        # A marked name alone is a call, unless its arguments may have been truncated.
        default = None if not marked else "" if self._text[end - 1] in "}]" else _CUT_ARGUMENTS
        is_cut = self._is_cut
        found = list(list_json_calls(value, default)) or list(self._list_keyed_calls(value))
        calls = [ExtractedCall(start, end, marked, name, text) for name, text in found]
        if is_cut and calls:
            calls[-1] = calls[-1]._replace(arguments=_CUT_ARGUMENTS)
        return calls if marked or any(self._is_tool(call.name) for call in calls) else []

    def _list_keyed_calls(self, value: object) -> Iterator[tuple[str, str]]:
        """Yield the calls of a value such as `{"TOOL": {…}}`.

        It may also be a list of them.
        """
        for item in value if is_list(value) else [value]:
            if is_object(item) and len(item) == 1:
                ((name, arguments),) = item.items()
                if self._is_tool(name) and is_object(arguments) and not is_schema(arguments):
                    yield name, dump_json(arguments)

    def _read_broken_json(self, start: int, *, marked: bool) -> list[ExtractedCall]:
        name = _NAMED.search(self._text, start, start + _MAX_KEY_DISTANCE)
        payload = name and _PAYLOAD.search(self._text, name.end(), name.end() + _MAX_KEY_DISTANCE)
        if not name or not payload or not (marked or self._is_tool(name[1])):
            return []
        end = self._find_block_end(payload.end())
        return [ExtractedCall(start, end, marked, name[1], self._text[payload.end() : end] or _CUT_ARGUMENTS)]

    def _read_json_text(self, at: int) -> tuple[str, int]:
        """Return the JSON text at a position and its end.

        Invalid JSON extends to the end of its block.
        """
        value, end = self._read_value(at)
        if value == {} and end is not None and (arguments := _NEXT_OBJECT.match(self._text, end)):
            at = arguments.end()  # some models write an empty object first
            _, end = self._read_value(at)
        if self._is_cut:
            return _CUT_ARGUMENTS, len(self._text)
        end = self._find_block_end(at) if end is None else end
        return self._text[at:end], end

    def _read_bracketed(self, at: int) -> tuple[str, int]:
        """Return the content of a call's brackets as JSON.

        Content that cannot be parsed is returned as written.
        """
        if self._text.startswith(")", at):
            at = self._skip_separator(at + 1)
            return self._read_json_text(at) if self._text.startswith("{", at) else ("", at)
        value, end = self._read_value(at + 1, inside=True)
        if self._is_cut:
            return _CUT_ARGUMENTS, len(self._text)
        if end is None:
            end = self._find_block_end(at)
            return self._text[at:end], end
        return dump_json(value), end

    def _read_value(self, at: int, *, inside: bool = False) -> tuple[object, int | None]:
        """Parse the value at a position, or the arguments inside brackets.

        End None: the value is invalid.
        """
        parser = LenientJsonParser(self._text, at)
        self._is_cut = False
        try:
            if self._effort > 0:
                value = parser.parse_call_arguments() if inside else parser.parse_value()
                self._is_cut = parser.is_unclosed
                return value, parser.at
        except JsonRepairError:
            self._effort -= parser.at - at
        return None, None

    def _read_action_input(self, at: int) -> tuple[str, int]:
        """Read the input of an action.

        It is JSON over several lines, or the rest of the line.
        """
        next_line = _NEXT_LINE.match(self._text, at)
        at = next_line.end() if next_line else at
        if self._text.startswith(("{", "["), at):
            return self._read_json_text(at)
        end = self._text.find("\n", at)
        end = len(self._text) if end < 0 else end
        return self._text[at:end].strip(), end

    def _skip_separator(self, at: int) -> int:
        separator = _SEPARATOR.match(self._text, at)
        return separator.end() if separator else at

    def _find_block_end(self, at: int) -> int:
        searched_from, found_at = self._block_end
        if not searched_from <= at <= found_at:  # each search may read the rest of the text
            end = _BLOCK_END.search(self._text, at)
            found_at = end.start() if end else len(self._text)
            self._block_end = at, found_at
        return found_at

    def _is_tool(self, name: str) -> bool:
        return is_parallel_wrapper(name) or any(
            normalize_name(candidate) in self._tool_names for candidate in strip_prefixes(name)
        )

    def _begins_line(self, at: int) -> bool:
        if (
            self._last_end
            and at - self._last_end < _MAX_LINE_CHARS
            and _LINE_TAIL.fullmatch(self._text, self._last_end, at)
        ):
            return True
        head = self._text[max(0, at - _MAX_LINE_CHARS) : at]
        if at > _MAX_LINE_CHARS and "\n" not in head and "</think>" not in head:
            return False
        head = head.rpartition("\n")[2].rpartition("</think>")[2]
        return bool(_LINE_HEAD.fullmatch(head))

    def _ends_line(self, at: int) -> bool:
        tail = self._text[at : at + _MAX_LINE_CHARS].partition("\n")[0]
        end = _LINE_TAIL.match(tail)
        remainder = tail[end.end() if end else 0 :]
        return not remainder or remainder[0] in "{[" or self._is_tool(remainder.partition("(")[0].partition("{")[0])

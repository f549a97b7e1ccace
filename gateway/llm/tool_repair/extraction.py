"""Finds the calls that a model has written into its text, in whatever markup it was trained on.

Marked calls (tags, Harmony's recipients, `Action:`) count anywhere, even if no such tool is on offer. Bare JSON and
Python-like calls count only for a tool on offer, on lines of their own, and at the start or the end of the text: what
has words on both sides is an example, not a call.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from gateway.llm.tool_repair.json_repair import (
    MAX_LENIENT_CHARS,
    JsonRepairError,
    LenientJsonParser,
    is_list,
    is_object,
)
from gateway.llm.tool_repair.tool_names import normalize_name, strip_prefixes

ARGUMENT_KEYS = ("arguments", "parameters", "args", "kwargs", "params", "input", "tool_input", "action_input", "__arg1")
NAME_KEYS = ("name", "tool", "tool_name", "function", "function_name", "recipient_name", "action")
CALL_KEYS = ("function", "function_call", "tool_call")
_LISTS = ("tool_calls", "tool_uses", "calls", "function_calls")

_NAME = r"[\"']?([\w.:-]{1,128}+)"
_MARK = re.compile(
    rf"<(?:function|invoke|tool)\b(?:\s{{1,4}}name)?\s{{0,4}}[=(/]\s{{0,4}}{_NAME}"
    r"|\bto=([\w.-]{1,128}+)"
    rf"|^\W{{0,4}}Action\W{{0,4}}:\W{{0,4}}{_NAME}[^\n]{{0,8}}\n\W{{0,4}}Action Input\W{{0,3}}:"
    r"|(<\|?tool_calls?(?:_begin)?\|?>|\[TOOL_CALLS?\]|<\|python_(?:tag|start)\|>|<function_calls>)\s*+(?:```\w*\s*)?"
    r"|([{\[])"
    r"|(?<![\w.-])([A-Za-z_][\w.-]{0,127}+)(?=\s?[({]|,\s?\{|\[ARGS\])",
    re.MULTILINE | re.IGNORECASE,
)
_GLUE = re.compile(
    r"(?:\[ARGS\]|```\w*|<\|[^|<>\s]{1,40}\|>|\b(?:json|code|commentary|analysis|assistant)\b|[\s=>:,\"'/])*+"
)
_NEXT_LINE = re.compile(r"[ \t`*]*+(?:json\b)?[ \t]*+(?:\n\s*+(?=\{))?")
_PARAMETER = re.compile(
    r"(?:^[ \t]{0,8}|(?<=>))<parameter(?:=|\s{1,4}name=)[\"']?([\w.-]{1,128}+)[\"']?[^>\n]{0,40}>", re.MULTILINE
)
_BLOCK_END = re.compile(
    r"</(?:function|invoke|tool_calls?|function_calls)>|\[/TOOL_CALLS\]|<\|(?:call|end|start)\|>", re.I
)
_PARAMETER_END = "</parameter>"
_CALL_START = re.compile(r"\(\s*(?:[A-Za-z_]\w*\s*=(?!=)|[\"'{\d])")
_LINE_HEAD = re.compile(r"[\s\[(`]*+(?:(?:json|python|tool_code)\s)?(?:<[^<>\n]{1,40}>\s*)*+(?:\w+ = )?(?:print\()?")
_LINE_TAIL = re.compile(r"[\s\])},;`]*+(?:<[^<>\n]{1,40}>\s*)*+")
_FILLER = re.compile(r"(?:\s|```\w*|<[^<>]{1,40}>|\w+ = |print\(|[\[\](),;`}])*+")
_NAMED = re.compile(rf"[\"'](?:{'|'.join(NAME_KEYS)})[\"']\s*:\s*{_NAME}[\"']")
_PAYLOAD = re.compile(rf"[\"'](?:{'|'.join(ARGUMENT_KEYS)})[\"']\s*:\s*")
_MAX_KEY_DISTANCE = 400
_MAX_LINE_CHARS = 120


class ExtractedCall(NamedTuple):
    """A call that was found: where, whether by markup, its name as written, its arguments' text."""

    start: int
    end: int
    marked: bool
    name: str
    arguments: str


def find_calls(text: str, names: Collection[str]) -> list[ExtractedCall]:
    """The calls of a text. What a model only thought (`<think>`) is none; one longer than the limit holds none."""
    if len(text) > MAX_LENIENT_CHARS:
        return []
    answer = text.rfind("</think>") + 1
    text = text[:answer] + text[answer:].partition("<think>")[0]
    found = list(_ToolCallScanner(text, names).scan_calls(answer))
    marked = [call for call in found if call.marked]
    if marked or not found:
        return marked
    return found if _is_at_text_edge(text, found) else []


def _is_at_text_edge(text: str, found: list[ExtractedCall]) -> bool:
    first, last = found[0], found[-1]
    begins, ends = _is_filler(text[: first.start]), _is_filler(text[last.end :])
    if begins and ends:
        return True
    if text[first.start] not in "{[" and (
        not ends or "```" in text[: first.start] or "()" in text[first.start : last.end]
    ):
        return False
    return begins or ends


def _is_filler(text: str) -> bool:
    thought = text.rfind("</think>")
    return bool(_FILLER.fullmatch(text, thought if thought >= 0 else 0))


class _ToolCallScanner:
    """One pass over a text. Reading a value that turns out to be none may cost one more pass in all."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text = text
        self._offered = {normalize_name(name) for name in names}
        self._effort = MAX_LENIENT_CHARS
        self._last = 0

    def scan_calls(self, at: int) -> Iterator[ExtractedCall]:
        while mark := _MARK.search(self._text, at):
            at = mark.end()
            for call in self._read_mark(mark):
                yield call
                at = self._last = max(at, call.end)

    def _read_mark(self, mark: re.Match[str]) -> list[ExtractedCall]:
        tag, recipient, action, block, bracket, word = mark.groups()
        start, end = mark.span()
        if tag or recipient:
            return self._read_marked_call(start, tag or recipient, end)
        if action:
            arguments, end = self._read_action_input(end)
            return [ExtractedCall(start, end, True, action, arguments)]
        if block:
            return self._read_block(start, end)
        if bracket:
            return self._read_json_calls(start, marked=False) if self._begins_line(start) else []
        return self._read_named_call(mark) if word and self._begins_line(start) else []

    def _read_marked_call(self, start: int, name: str, end: int) -> list[ExtractedCall]:
        """A call whose markup names it: JSON follows, parameters in tags, a call's brackets, text, or nothing."""
        body = self._skip_glue(end)
        if self._text.startswith(("{", "["), body):
            arguments, end = self._read_json_text(body)
        elif self._text.startswith("<parameter", body):
            end = self._find_block_end(body)
            arguments = self._read_parameter_tags(self._text[body:end])
        elif not self._is_offered(name) or not (name.startswith("functions.") or self._begins_line(start)):
            return []
        elif self._text.startswith(("(", ")"), body):
            arguments, end = self._read_bracketed(body)
        else:
            end = self._find_block_end(body)
            arguments = self._text[body:end].strip(" \n\t>/)")
            if end == len(self._text) and not self._text.endswith(("/>", ")>")):
                arguments = "{"  # cut before its arguments: it must not run without them
        return [ExtractedCall(start, end, True, name, arguments)]

    def _read_block(self, start: int, at: int) -> list[ExtractedCall]:
        if self._text.startswith(("{", "["), at):
            return [call._replace(start=start) for call in self._read_json_calls(at, marked=True)]
        word = _MARK.match(self._text, at)
        if word is None or not word[6]:
            return []
        body = self._skip_glue(word.end())
        if self._text.startswith("{", body):
            arguments, end = self._read_json_text(body)
            return [ExtractedCall(start, end, True, word[6], arguments)]
        name = word[6].removesuffix(".call")
        return (
            self._read_python_call(start, name, body, marked=True) if name != word[6] or self._is_offered(name) else []
        )

    def _read_named_call(self, mark: re.Match[str]) -> list[ExtractedCall]:
        """`NAME{…}`, `NAME(…)`"""
        name = mark[6].removesuffix(".call")
        if not self._is_offered(name):
            return []
        body = self._skip_glue(mark.end())
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

    def _read_json_calls(self, start: int, *, marked: bool) -> list[ExtractedCall]:
        """The calls in JSON that starts here; from broken JSON its first call as far as it goes."""
        value, end = self._read_value(start)
        if end is None:
            return self._read_broken_json(start, marked=marked)
        if not marked and not self._ends_line(end):
            return []
        # Markup makes a name alone a call, but not if its arguments may have been cut.
        absent = None if not marked else "" if self._text[end - 1] in "}]" else "{"
        calls = [ExtractedCall(start, end, marked, name, text) for name, text in _list_json_calls(value, absent)]
        return [call for call in calls if marked or self._is_offered(call.name)]

    def _read_broken_json(self, start: int, *, marked: bool) -> list[ExtractedCall]:
        name = _NAMED.search(self._text, start, start + _MAX_KEY_DISTANCE)
        payload = name and _PAYLOAD.search(self._text, name.end(), name.end() + _MAX_KEY_DISTANCE)
        if not name or not payload or not (marked or self._is_offered(name[1])):
            return []
        end = self._find_block_end(payload.end())
        return [ExtractedCall(start, end, marked, name[1], self._text[payload.end() : end] or "{")]

    def _read_json_text(self, at: int) -> tuple[str, int]:
        """The text of the JSON that starts here, and its end; broken, it reaches to the end of its block."""
        _, end = self._read_value(at)
        end = self._find_block_end(at) if end is None else end
        return self._text[at:end], end

    def _read_bracketed(self, at: int) -> tuple[str, int]:
        """What stands between a call's brackets, as JSON; as it is where it cannot be read."""
        if self._text.startswith(")", at):
            at = self._skip_glue(at + 1)
            return self._read_json_text(at) if self._text.startswith("{", at) else ("", at)
        value, end = self._read_value(at + 1, inside=True)
        if end is None:
            end = self._find_block_end(at)
            return self._text[at:end], end
        return _dump_json(value), end

    def _read_value(self, at: int, *, inside: bool = False) -> tuple[Any, int | None]:
        """The value that starts here, or what stands inside a call's brackets, and its end; no end: there is none."""
        reader = LenientJsonParser(self._text, at)
        try:
            if self._effort > 0:
                return (reader.parse_call_arguments() if inside else reader.parse_value()), reader.at
        except JsonRepairError:
            self._effort -= reader.at - at
        return None, None

    def _read_parameter_tags(self, body: str) -> str:
        """Parameters in tags as a JSON object of texts; a body without any, or with one that is cut, as it is."""
        found: dict[str, str] = {}
        starts = list(_PARAMETER.finditer(body))
        for i, start in enumerate(starts):
            limit = starts[i + 1].start() if i + 1 < len(starts) else len(body)
            end = body.find(_PARAMETER_END, start.end(), limit)
            if end < 0 and limit == len(body):
                return body
            said = body[start.end() : end if end >= 0 else limit]
            found[start[1]] = said.removeprefix("\n").removesuffix("\n")
        return _dump_json(found) if found else body

    def _read_action_input(self, at: int) -> tuple[str, int]:
        """An action's input: JSON over any number of lines, or the rest of the line."""
        next_line = _NEXT_LINE.match(self._text, at)
        at = next_line.end() if next_line else at
        if self._text.startswith(("{", "["), at):
            return self._read_json_text(at)
        end = self._text.find("\n", at)
        end = len(self._text) if end < 0 else end
        return self._text[at:end].strip(), end

    def _skip_glue(self, at: int) -> int:
        glue = _GLUE.match(self._text, at)
        return glue.end() if glue else at

    def _find_block_end(self, at: int) -> int:
        end = _BLOCK_END.search(self._text, at)
        return end.start() if end else len(self._text)

    def _is_offered(self, name: str) -> bool:
        return any(normalize_name(one) in self._offered for one in strip_prefixes(name))

    def _begins_line(self, at: int) -> bool:
        if self._last and at - self._last < _MAX_LINE_CHARS and _LINE_TAIL.fullmatch(self._text, self._last, at):
            return True
        head = self._text[max(0, at - _MAX_LINE_CHARS) : at]
        if at > _MAX_LINE_CHARS and "\n" not in head and "</think>" not in head:
            return False
        head = head.rpartition("\n")[2].rpartition("</think>")[2]
        return bool(_LINE_HEAD.fullmatch(head))

    def _ends_line(self, at: int) -> bool:
        tail = self._text[at : at + _MAX_LINE_CHARS].partition("\n")[0]
        end = _LINE_TAIL.match(tail)
        rest = tail[end.end() if end else 0 :]
        return not rest or rest[0] in "{[" or self._is_offered(rest.partition("(")[0].partition("{")[0])


def _list_json_calls(value: Any, absent: str | None) -> Iterator[tuple[str, str]]:
    """The names and arguments' texts of the calls that a JSON value is; `absent` stands for arguments left out."""
    if is_list(value):
        for item in value:
            yield from _list_json_calls(item, absent)
    if not is_object(value):
        return
    for key in _LISTS:
        if is_list(value.get(key)):
            yield from _list_json_calls(value[key], absent)
            return
    for key in CALL_KEYS:
        if is_object(inner := value.get(key)):
            value = {**value, key: None, **inner}
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    given: Any = next((value[key] or "" for key in ARGUMENT_KEYS if key in value), absent)
    if name and (is_object(given) or isinstance(given, str)) and not _is_schema(given):
        yield name, given if isinstance(given, str) else _dump_json(given)


def _is_schema(given: Any) -> bool:
    """A tool's description looks like a call of it."""
    return is_object(given) and "properties" in given and given.get("type") == "object"


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

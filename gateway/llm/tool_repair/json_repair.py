"""Lenient parser for the JSON of models.

It accepts bare keys, Python literals, comments, odd quotes and missing closing brackets. A text that is cut inside a
string or a number is rejected, because the missing part is unknown.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeGuard

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject

MAX_LENIENT_CHARS = 200_000
"""Length limit of lenient parsing. Well-formed JSON may be longer."""

MAX_NESTING = 64

_QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "“": '”"',
    "”": '”"',
    "„": '“”"',
    "\u2018": "\u2019'",
    "\u2019": "\u2019'",
    "«": "»",
}
_RUNS = {opener: re.compile(rf"[^\\{closers}]*+") for opener, closers in _QUOTES.items()}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "\n": ""} | {c: c for c in "\\/\"'`“”\u2018\u2019"}
# A comment contains a letter, else `7 // 2` would be cut.
_SPACE = re.compile(r"(?:[\s\ufeff\u200b]|\\[nrt]|(?://|#)(?=[^\n]{0,99}[^\W\d_])[^\n]*)*+")
_COMMENT = re.compile(r"\s(?://|#)(?=.{0,99}[^\W\d_])")
_KEY = re.compile(r"([\w$][\w$.-]*+)(?:\"(?=\s?:))?")
_UNCLOSED_KEY = re.compile(r"\"([A-Za-z_]\w{0,127}+)(?=:\s?(?:[\"\[{\d-]|true\b|false\b|null\b))")
_NEXT_KEY = re.compile(r"\"[A-Za-z_]\w{0,127}+\"\s?:")
_NEXT_LINE = re.compile(r"(?<=\n)[ \t]*+[A-Za-z_][\w-]*+\s?[:=]")
_INNER_QUOTES = {
    "'": re.compile(r"(?<=\w)'(?=\w)"),
    '"': re.compile(r"(?<=[\s(])\"\w(?:[^\"\\\n]{0,200}[\w.!?])?\"(?=[ .!?;)]{1,4}[\w(])"),
}
"""Quotes inside a text.

They are an apostrophe in a word, or around words between others.
"""
_RAW_KEY = re.compile(r"(?<!\\)\"\s?:")
_COLON = re.compile(r"=>|[:=\uff1a]")
_EQUALS = re.compile(r"=(?!=)")
_BARE = re.compile(r"[^\s,:{}\[\]\"'`“”\u2018\u2019«»<][^,:{}\[\]\"'`“”\u2018\u2019«»\n]*+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,40})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
_LITERALS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "undefined": None}

_BEFORE = re.compile(
    r"(?:[\s\ufeff\u200b]|```\w*|<[|\uff5c]?[\w\u2581]{1,40}[|\uff5c]?>|\[(?:ARGS|TOOL_CALLS?)\]|json\b)*+",
    re.IGNORECASE,
)
_AFTER = re.compile(r"(?:[\s\]});,.`]|<[|\uff5c/]?[\w\u2581]{1,40}[|\uff5c]?>)*+(?:[\"'”]\s*\Z)?")
_MEMBERS = re.compile(r"\"[\w-]{1,128}+\"\s?:")
"""Members of an object without its opening bracket."""
_CALL = re.compile(r"([A-Za-z_][\w.-]*+)?\s*\(")
_KEYWORD = re.compile(r"[A-Za-z_][\w-]*+\s*(?:=(?!=)|:)")
_PROSE_BEHIND = re.compile(r"[A-Za-z]{1,40} [^{}\[\]()\"`\u201c\u201d=:<>\d]{1,200}+\Z")
_PROSE = re.compile(r"[^{}\[\]\"'`“”\u2018\u2019=]{1,200}+(?=\{)")


class JsonRepairError(Exception):
    """The text cannot be parsed.

    The message tells the model how to correct it.
    """


def parse_lenient(text: str, repairs: list[str]) -> object:
    """Parse the text of a call's arguments.

    Descriptions of all repairs are appended to `repairs`. Keyword arguments (`a=1, b="x"`) give an object; a call
    (`f(a=1)`) gives the arguments in its brackets.

    Raises:
        JsonRepairError: the text has no value, several values, or is cut.
    """
    value = parse_strict(text)
    if value is not None:
        return value
    if len(text) > MAX_LENIENT_CHARS:
        raise JsonRepairError("they are not valid JSON, and too long to be repaired")
    text = text.replace('<|"|>', '"')
    body = text[_get_match_end(_BEFORE, text) :].rstrip().removesuffix("```").rstrip()
    if body != text.strip():
        repairs.append("what stood around the JSON")
    if body in ("", "null", "None", "undefined"):
        return {}
    if body.startswith(('{\\"', '[\\"', "{\\n", '[{\\"')) and not _RAW_KEY.search(body):
        body = f'"{body}"'
    parser = LenientJsonParser(body, repairs=repairs)
    if body.endswith("}") and _MEMBERS.match(body):
        repairs.append("a bracket that was not opened")
        return parser.parse_members("")
    if body[0] in "{[" or body[0] in _QUOTES:
        return parser.parse_document()
    if call := _CALL.match(body):
        repairs.append("a call in place of its arguments")
        parser.at = call.end()
        return parser.parse_call_arguments()
    if _KEYWORD.match(body):
        repairs.append("keyword arguments")
        return parser.parse_members("")
    if prose := _PROSE.match(body):
        repairs.append("what stood around the JSON")
        parser.at = prose.end()
        return parser.parse_document()
    return parser.parse_document()


def is_object(value: object) -> TypeGuard[JsonObject]:
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def parse_strict(text: str) -> object:
    """Parse well-formed JSON.

    None: the text is invalid, `null`, or nested too deeply.
    """
    try:
        value: object = msgspec.json.decode(text)
    except JSON_DECODE_ERRORS:
        return None
    return value if _is_shallow(value) else None


def join_surrogates(text: str) -> str:
    """Join the halves of surrogate pairs, and replace lone halves.

    Lone halves cannot be encoded.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def get_called_name(text: str) -> str | None:
    """Return the name in a text that is a call.

    The name in `f(a=1)` is `f`.
    """
    call = _CALL.match(text, _get_match_end(_BEFORE, text))
    return call[1] if call else None


class LenientJsonParser:
    """Parser of a text from position `at`, which advances.

    A truncation error moves it to the end.
    """

    def __init__(self, text: str, at: int = 0, repairs: list[str] | None = None) -> None:
        self.text = text
        self.at = at
        self._repairs: list[str] = [] if repairs is None else repairs
        self._closers = ""
        self._has_stray_bracket = False
        self.is_unclosed = False
        """Whether the text ended inside an object or a call."""

    def parse_document(self) -> object:
        """Parse the rest of the text as one value.

        The value may be repeated.
        """
        value = self.parse_value()
        while True:
            self.at = _get_match_end(_AFTER, self.text, self.at)
            self._skip_space()
            if self._at_end:
                return value
            if is_object(value) and _PROSE_BEHIND.match(self.text, self.at):
                self._add_repair("text behind the object")
                return value
            next_value = self.parse_value()
            if value and next_value and next_value != value:
                raise JsonRepairError("they are more than one value: make one call for each")
            self._add_repair("the same object twice" if next_value == value else "an empty object")
            value = value or next_value

    def parse_call_arguments(self) -> object:
        """Parse the arguments in a call's brackets.

        They are an object of keyword arguments, a value or a list.
        """
        start = self.at
        try:
            return self.parse_members(")")
        except JsonRepairError:
            self.at, self._closers = start, ""
        values = self._parse_items(")")
        return values[0] if len(values) == 1 else values

    def parse_value(self) -> object:
        """Parse the value at the current position.

        Raises:
            JsonRepairError: the value is cut, invalid, or nested too deeply.
        """
        self._skip_space()
        char = self.text[self.at : self.at + 1]
        if not char:
            raise self._make_truncation_error("before a value")
        if char in _QUOTES:
            return self._parse_string()
        if char in "{[(":
            self.at += 1
            return self.parse_members("}") if char == "{" else self._parse_items("]" if char == "[" else ")")
        return self._parse_unquoted()

    def parse_members(self, closer: str) -> JsonObject:
        """Parse keys and values up to the closing bracket.

        If `closer` is empty, they extend to the end of the text.
        """
        members: JsonObject = {}
        self._enter_bracket(closer)
        # `f(x: str)` is a signature, so a colon does not separate the arguments of a call.
        colon = _EQUALS if closer == ")" else _COLON
        while not self._leave_bracket(closer):
            key = self._parse_key()
            self._skip_space()
            sign = colon.match(self.text, self.at)
            if sign is None:
                raise (
                    self._make_truncation_error("after a key")
                    if self._at_end
                    else JsonRepairError(f"there is no value for {key[:60]!r}")
                )
            self.at = sign.end()
            members[key] = self.parse_value()
            if not self._parse_separator(closer):
                break
        return members

    def _parse_items(self, closer: str) -> list[object]:
        items: list[object] = []
        self._enter_bracket(closer)
        while not self._leave_bracket(closer):
            items.append(self.parse_value())
            if not self._parse_separator(closer):
                break
        return items

    def _enter_bracket(self, closer: str) -> None:
        if len(self._closers) >= MAX_NESTING:
            raise JsonRepairError(f"they are nested more than {MAX_NESTING} levels deep")
        self._closers += closer or ";"

    def _leave_bracket(self, closer: str) -> bool:
        """Skip the closing bracket if it comes next. Return whether it did."""
        self._skip_space()
        if self._at_end:
            if closer:
                raise self._make_truncation_error("where more was expected")
        elif self.text[self.at] != closer:
            return False
        self.at += 1
        self._closers = self._closers[:-1]
        return True

    def _parse_separator(self, closer: str) -> bool:
        """Return whether another item may follow.

        If not, the closing bracket has been skipped. A missing closing bracket at the end of the text counts as
        present.
        """
        self._skip_space()
        if self.text.startswith((",", ";", "\uff0c"), self.at):
            self.at += 1
            self._skip_space()
            if self.text[self.at : self.at + 1] == closer != "":
                self._add_repair("an extra comma")
            return True
        if self._at_end:
            if closer and self._has_stray_bracket:
                raise self._make_truncation_error("after brackets that do not match")
            if closer:
                self.is_unclosed = self.is_unclosed or closer != "]"
                self._add_repair("a bracket that was not closed")
            self._closers = self._closers[:-1]
            return False
        if self._leave_bracket(closer):
            return False
        if (_NEXT_KEY if closer == "}" else _NEXT_LINE).match(self.text, self.at) and closer in ("", "}"):
            self._add_repair("a comma that was missing")
            return True
        if (char := self.text[self.at]) in self._closers[:-1] and char in "}]":
            self._add_repair("a bracket that was not closed")
            self._closers = self._closers[:-1]
            return False
        if char in "}]" and char not in self._closers:
            self._has_stray_bracket = True
            self._add_repair("a bracket that was not opened")
            self.at += 1
            return self._parse_separator(closer)
        raise JsonRepairError(f"the syntax is invalid at {self.text[max(0, self.at - 20) : self.at + 20]!r}")

    def _parse_key(self) -> str:
        start = self.at
        unclosed_key = _UNCLOSED_KEY.match(self.text, start)
        if self.text[start] in _QUOTES:
            try:
                name = self._parse_string()
                self._skip_space()
            except JsonRepairError:
                if unclosed_key is None:
                    raise
            else:
                if unclosed_key is None or self.text.startswith((":", "="), self.at):
                    return name
        key = unclosed_key or _KEY.match(self.text, start)
        if key is None:
            raise JsonRepairError(f"a key was expected at {self.text[start : start + 20]!r}")
        self.at = key.end()
        self._add_repair("a key without quotes")
        return key[1]

    def _parse_string(self) -> str:
        start, opener = self.at, self.text[self.at]
        closer = opener * 3 if self.text.startswith((opener * 3), start) and opener in "\"'" else ""
        self.at += len(closer) or 1
        if opener != '"' or closer:
            self._add_repair("quotes")
        parts: list[str] = []
        while True:
            run_start, self.at = self.at, _get_match_end(_RUNS[opener], self.text, self.at)
            parts.append(self.text[run_start : self.at])
            if self._at_end:
                raise self._make_truncation_error(
                    f"inside the text that begins with {self.text[start + 1 : start + 31]!r}"
                )
            if self.text[self.at] == "\\":
                parts.append(self._parse_escape())
            elif not closer and (inner := self._match_inner_quotes(opener)):
                parts.append(inner[0])
                self.at = inner.end()
                self._add_repair("quotes inside a text")
            elif self.text.startswith(closer, self.at):
                self.at += len(closer) or 1
                break
            else:
                parts.append(opener)
                self.at += 1
        value = "".join(parts)
        if "\n" in value and "\n" in self.text[start : self.at]:
            self._add_repair("a line break in a text")
        return join_surrogates(value)

    def _match_inner_quotes(self, opener: str) -> re.Match[str] | None:
        pattern = _INNER_QUOTES.get(opener)
        return pattern.match(self.text, self.at) if pattern else None

    def _parse_escape(self) -> str:
        escape = _ESCAPE.match(self.text, self.at)
        if escape is None:
            raise self._make_truncation_error("inside a text")
        self.at = escape.end()
        digits = escape[1] or escape[2]
        if digits:
            return chr(int(digits, 16))
        return _ESCAPED.get(escape[3], escape[0])

    def _parse_unquoted(self) -> object:
        """Parse a number, a literal, or text without its quotes."""
        match = _BARE.match(self.text, self.at)
        if match is None:
            raise JsonRepairError(f"a value was expected at {self.text[self.at : self.at + 20]!r}")
        word = match[0]
        if comment := _COMMENT.search(word):
            word = word[: comment.start()]
        if ")" in self._closers:
            word = word.split(")", 1)[0]
        if word.endswith("\uff0c"):
            word = word[:-1]
        self.at += len(word)
        word = word.strip()
        if word in ("...", "\u2026"):
            raise JsonRepairError(f"{word} is no value")
        if word in _LITERALS:
            return _LITERALS[word]
        if self._at_end and self._closers.strip(";"):
            raise self._make_truncation_error(f"after {word[-30:]!r}")
        if _NUMBER.fullmatch(word):
            return int(word) if word.lstrip("-").isdigit() else float(word)
        if ")" in self._closers:
            raise JsonRepairError(f"{word[:60]!r} must be quoted")
        self._add_repair("a text without quotes")
        return word

    def _skip_space(self) -> None:
        while True:
            start, self.at = self.at, _get_match_end(_SPACE, self.text, self.at)
            if not self.text[start : self.at].isspace() and self.at > start:
                self._add_repair("a comment")
                if self._at_end and self._closers:
                    raise self._make_truncation_error("inside a comment")
            if not self.text.startswith("/*", self.at):
                return
            end = self.text.find("*/", self.at)
            if end < 0:
                raise self._make_truncation_error("inside a comment")
            self.at = end + 2
            self._add_repair("a comment")

    @property
    def _at_end(self) -> bool:
        return self.at >= len(self.text)

    def _make_truncation_error(self, location: str) -> JsonRepairError:
        self.at = len(self.text)
        return JsonRepairError(f"they end too early, {location}")

    def _add_repair(self, description: str) -> None:
        if description not in self._repairs:
            self._repairs.append(description)


def _get_match_end(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    """Return the end of the pattern's match at a position.

    Without a match, it is the position itself.
    """
    match = pattern.match(text, at)
    return match.end() if match else at


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [child for item in level for child in _list_children(item)]
        if not level:
            return True
    return False


def _list_children(value: object) -> Iterable[object]:
    return value.values() if is_object(value) else value if is_list(value) else ()

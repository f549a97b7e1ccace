"""JSON as models write it: bare keys, Python's literals, comments, odd quotes, a bracket forgotten at the end.

What is cut inside a string or a number is never read, for nobody knows how it would have gone on.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeGuard

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject

MAX_LENIENT_CHARS = 200_000
"""Characters of a text that is read leniently. Well-formed JSON may be longer."""

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
# A remark has a letter in it: `7 // 2` is a sum.
_SPACE = re.compile(r"(?:[\s\ufeff\u200b]|(?://|#)(?=[^\n]{0,99}[^\W\d_])[^\n]*)*+")
_REMARK = re.compile(r"\s(?://|#)(?=.{0,99}[^\W\d_])")
_KEY = re.compile(r"[\w$][\w$.-]*+")
_COLON = re.compile(r"=>|[:=]")
_EQUALS = re.compile(r"=(?!=)")
_BARE = re.compile(r"[^\s,:{}\[\]\"'`“”\u2018\u2019«»<][^,:{}\[\]\"'`“”\u2018\u2019«»\n]*+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,40})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
_LITERALS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "undefined": None}

_BEFORE = re.compile(r"(?:[\s\ufeff\u200b]|```\w*|<\|?\w{1,40}\|?>|json\b)*+", re.IGNORECASE)
_AFTER = re.compile(r"(?:[\s\]});,.`]|<[|/]?\w{1,40}\|?>)*+")
_CALL = re.compile(r"([A-Za-z_][\w.-]*+)?\s*\(")
_KEYWORD = re.compile(r"[A-Za-z_][\w-]*+\s*(?:=(?!=)|:)")
_PROSE = re.compile(r"[^{}\[\]\"'`“”\u2018\u2019=]{1,200}+(?=\{)")


class JsonRepairError(Exception):
    """Why a text is no value, in words that a model can act on."""


def parse_lenient(text: str, repairs: list[str]) -> Any:
    """The value that a text of arguments holds. What had to be mended is added to `how`.

    Keyword arguments (`a=1, b="x"`) are read as an object, a call (`f(a=1)`) as what stands between its brackets.

    Raises:
        Unreadable: it holds none, more than one, or is cut.
    """
    value = parse_strict(text)
    if value is not None:
        return value
    if len(text) > MAX_LENIENT_CHARS:
        raise JsonRepairError("they are no JSON, and too long to be mended")
    body = text[_get_match_end(_BEFORE, text) :].rstrip().removesuffix("```").rstrip()
    if body != text.strip():
        repairs.append("what stood around the JSON")
    if body in ("", "null", "None", "undefined"):
        return {}
    if body.startswith(('{\\"', '[\\"', "{\\n", '[{\\"')):
        body = f'"{body}"'
    reader = LenientJsonParser(body, repairs=repairs)
    if body[0] in "{[" or body[0] in _QUOTES:
        return reader.parse_document()
    if call := _CALL.match(body):
        repairs.append("a call in place of its arguments")
        reader.at = call.end()
        return reader.parse_call_arguments()
    if _KEYWORD.match(body):
        repairs.append("keyword arguments")
        return reader.parse_members("")
    if prose := _PROSE.match(body):
        repairs.append("what stood around the JSON")
        reader.at = prose.end()
        return reader.parse_document()
    return reader.parse_document()


def is_object(value: object) -> TypeGuard[JsonObject]:
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def parse_strict(text: str) -> Any:
    """The value of well-formed JSON; None: it is none, or null, or nested too deep."""
    try:
        value: Any = msgspec.json.decode(text)
    except JSON_DECODE_ERRORS:
        return None
    return value if _is_shallow(value) else None


def join_surrogates(text: str) -> str:
    """The text with the halves of surrogate pairs joined; a half alone cannot be encoded and is replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def get_called_name(text: str) -> str | None:
    """The name in a text that is a call, as `f` in `f(a=1)`."""
    call = _CALL.match(text, _get_match_end(_BEFORE, text))
    return call[1] if call else None


class LenientJsonParser:
    """Reads values from a place in a text. `at` is where it has come to; a text that is cut brings it to the end."""

    def __init__(self, text: str, at: int = 0, repairs: list[str] | None = None) -> None:
        self.text = text
        self.at = at
        self._repairs: list[str] = [] if repairs is None else repairs
        self._closers = ""

    def parse_document(self) -> Any:
        """The one value that the rest of the text is, or is several times over."""
        value = self.parse_value()
        while True:
            self.at = _get_match_end(_AFTER, self.text, self.at)
            self._skip_space()
            if self._at_end:
                return value
            if self.parse_value() != value:
                raise JsonRepairError("they are more than one value: make one call for each")
            self._add_repair("the same object twice")

    def parse_call_arguments(self) -> Any:
        """What stands between the brackets of a call: an object of its keyword arguments, or its one value."""
        start = self.at
        try:
            return self.parse_members(")")
        except JsonRepairError:
            self.at, self._closers = start, ""
        values = self._parse_items(")")
        return values[0] if len(values) == 1 else values

    def parse_value(self) -> Any:
        """The value that starts here.

        Raises:
            Unreadable: it is cut, broken, or nested too deep.
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
        """Keys and values up to the closer, or to the end of the text if there is none."""
        found: JsonObject = {}
        self._enter_bracket(closer)
        # In a call, `f(x: text)` and `f(x=text)` are how signatures are written, too.
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
            found[key] = self.parse_value()
            if not self._parse_separator(closer):
                break
        return found

    def _parse_items(self, closer: str) -> list[Any]:
        found: list[Any] = []
        self._enter_bracket(closer)
        while not self._leave_bracket(closer):
            found.append(self.parse_value())
            if not self._parse_separator(closer):
                break
        return found

    def _enter_bracket(self, closer: str) -> None:
        if len(self._closers) >= MAX_NESTING:
            raise JsonRepairError(f"they are nested more than {MAX_NESTING} deep")
        self._closers += closer or ";"

    def _leave_bracket(self, closer: str) -> bool:
        """Whether the closer comes next: it is passed over."""
        self._skip_space()
        if self._at_end:
            if closer:
                raise self._make_truncation_error("where something more was to come")
        elif self.text[self.at] != closer:
            return False
        self.at += 1
        self._closers = self._closers[:-1]
        return True

    def _parse_separator(self, closer: str) -> bool:
        """Whether another item may follow; if not, the closer is passed over, or forgiven at the end of the text."""
        self._skip_space()
        if self.text.startswith((",", ";"), self.at):
            self.at += 1
            self._skip_space()
            if self.text[self.at : self.at + 1] == closer != "":
                self._add_repair("a comma too many")
            return True
        if self._at_end:
            if closer:
                self._add_repair("a bracket that was not closed")
            self._closers = self._closers[:-1]
            return False
        if not self._leave_bracket(closer):
            raise JsonRepairError(f"something is wrong at {self.text[max(0, self.at - 20) : self.at + 20]!r}")
        return False

    def _parse_key(self) -> str:
        if self.text[self.at] in _QUOTES:
            return self._parse_string()
        key = _KEY.match(self.text, self.at)
        if key is None:
            raise JsonRepairError(f"a key was expected at {self.text[self.at : self.at + 20]!r}")
        self.at = key.end()
        self._add_repair("a key without quotes")
        return key[0]

    def _parse_string(self) -> str:
        start, opener = self.at, self.text[self.at]
        closer = opener * 3 if self.text.startswith((opener * 3), start) and opener in "\"'" else ""
        self.at += len(closer) or 1
        if opener != '"' or closer:
            self._add_repair("quotes")
        parts: list[str] = []
        while True:
            run, self.at = self.at, _get_match_end(_RUNS[opener], self.text, self.at)
            parts.append(self.text[run : self.at])
            if self._at_end:
                raise self._make_truncation_error(
                    f"inside the text that begins with {self.text[start + 1 : start + 31]!r}"
                )
            if self.text[self.at] == "\\":
                parts.append(self._parse_escape())
            elif self.text.startswith(closer, self.at):
                self.at += len(closer) or 1
                break
            else:
                parts.append(opener)
                self.at += 1
        said = "".join(parts)
        if "\n" in said and "\n" in self.text[start : self.at]:
            self._add_repair("a line break in a text")
        return join_surrogates(said)

    def _parse_escape(self) -> str:
        escape = _ESCAPE.match(self.text, self.at)
        if escape is None:
            raise self._make_truncation_error("inside a text")
        self.at = escape.end()
        digits = escape[1] or escape[2]
        if digits:
            return chr(int(digits, 16))
        return _ESCAPED.get(escape[3], escape[0])

    def _parse_unquoted(self) -> Any:
        """A number, a word, or text that should have been quoted."""
        bare = _BARE.match(self.text, self.at)
        if bare is None:
            raise JsonRepairError(f"a value was expected at {self.text[self.at : self.at + 20]!r}")
        said = bare[0]
        if remark := _REMARK.search(said):
            said = said[: remark.start()]
        if ")" in self._closers:
            said = said.split(")", 1)[0]
        self.at += len(said)
        said = said.strip()
        if said in _LITERALS:
            return _LITERALS[said]
        if self._at_end and self._closers.strip(";"):
            raise self._make_truncation_error(f"after {said[-30:]!r}")
        if _NUMBER.fullmatch(said):
            return int(said) if said.lstrip("-").isdigit() else float(said)
        if ")" in self._closers:
            raise JsonRepairError(f"{said[:60]!r} must be quoted")
        self._add_repair("a text without quotes")
        return said

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

    def _make_truncation_error(self, where: str) -> JsonRepairError:
        self.at = len(self.text)
        return JsonRepairError(f"they end too early, {where}")

    def _add_repair(self, what: str) -> None:
        if what not in self._repairs:
            self._repairs.append(what)


def _get_match_end(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    """Where a pattern that matches anywhere, if only nothing, comes to."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _is_shallow(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_NESTING + 1):
        level = [item for one in level for item in _list_children(one)]
        if not level:
            return True
    return False


def _list_children(value: Any) -> Iterable[Any]:
    return value.values() if is_object(value) else value if is_list(value) else ()

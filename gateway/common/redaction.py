"""Takes out of texts what the administrator's rules name: in what is stored, and in what goes to tools.

Patterns are searched by `regex`, which knows what `re` does and can be told when to stop: no text may hold up
the others.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import thread_time
from typing import Any, cast

import msgspec

from gateway.common.logging import get_logger
from gateway.config import ConfigError

log = get_logger(__name__)

_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*=*\s*")
_PROBE_CHARACTERS = 10_000
# Ten times what a good pattern takes.
_SECONDS = 0.05
_SECONDS_A_TEXT = 1e-5
_SECONDS_A_CHARACTER = 5e-7


class Rule(msgspec.Struct, frozen=True):
    """What `pattern`, a compiled one of `regex`, finds is replaced; `replacement` may name its groups."""

    name: str
    pattern: Any
    replacement: str


class _Allowance:
    """Seconds that are left for texts that belong together: some for all of them, and more with each by its length."""

    def __init__(self) -> None:
        self.left = _SECONDS
        self.told = False

    def apply(self, rule: Rule, text: str) -> str:
        """Where little is left a machine that stands still for a moment takes that; so there are two tries.

        Raises:
            TimeoutError: it is used up.
        """
        with suppress(TimeoutError):
            return self._try(rule, text)
        return self._try(rule, text)

    def _try(self, rule: Rule, text: str) -> str:
        self.left += _SECONDS_A_TEXT + _SECONDS_A_CHARACTER * len(text)
        began = thread_time()
        try:
            # Not `concurrent`: whoever held the lock meanwhile would be counted, and so would the wait for it.
            return rule.pattern.sub(rule.replacement, text, timeout=self.left, concurrent=False)
        finally:
            self.left = max(0.0, self.left - (thread_time() - began))


class Redactor:
    """Rules in their order. Without rules, texts are as they were.

    A text with which a rule takes too long is replaced whole, by the rule's name in brackets.
    """

    def __init__(self, rules: Sequence[Rule] = (), allowance: _Allowance | None = None) -> None:
        self._rules = rules
        self._allowance = allowance

    def __bool__(self) -> bool:
        return bool(self._rules)

    def once(self) -> "Redactor":
        """The same rules for texts that belong together: the time that one takes too long is missing to the others."""
        return self if self._allowance else Redactor(self._rules, _Allowance())

    def text(self, text: str) -> str:
        allowance = self._allowance or _Allowance()
        for rule in self._rules:
            try:
                text = allowance.apply(rule, text)
            except TimeoutError:
                if not allowance.told:
                    allowance.told = True
                    log.warning("redaction_too_slow", rule=rule.name, characters=len(text))
                return f"[{rule.name}]"
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with all of its texts redacted, the names in it too; and whole numbers, where a rule finds
        something in their digits: these become texts. Names that become the same are numbered."""
        return self.once()._value(value, numbers=True) if self._rules else value

    def texts(self, value: Any) -> Any:
        """As `value`, but numbers stay: for schemas, where they are bounds."""
        return self.once()._value(value, numbers=False) if self._rules else value

    def blocks(self, content: list[Any]) -> list[Any]:
        """MCP content blocks as `value` has them, but for base64 where a block holds some."""
        if not self._rules:
            return content
        once = self.once()
        return [once._block(block) for block in content]

    def _value(self, value: Any, *, numbers: bool) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(each, numbers=numbers) for each in cast(list[Any], value)]
        if isinstance(value, dict):
            kept: dict[str, Any] = {}
            for given, each in cast(dict[str, Any], value).items():
                name = self.text(given)
                kept[f"{name} {len(kept) + 1}" if name in kept else name] = self._value(each, numbers=numbers)
            return kept
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            digits = str(int(value))
            left = self.text(digits)
            return value if left == digits else left
        return value

    def _block(self, block: Any) -> Any:
        match block:
            case {"type": "image" | "audio", "data": str(data), **others} if _BASE64.fullmatch(data):
                return {**self.value(others), "type": block["type"], "data": data}
            case {"type": "resource", "resource": {"blob": str(blob), **resource}, **others} if _BASE64.fullmatch(blob):
                return {**self.value(others), "type": "resource", "resource": {**self.value(resource), "blob": blob}}
            case _:
                return self.value(block)


def load_rules(path: Path | None) -> Redactor:
    """The rules of a TOML file: `[[rule]]` with a `name`, a `pattern`, and a `replacement` (default: `[name]`).

    Raises:
        ConfigError: the file cannot be read, makes no sense, or has a pattern that takes too long with long texts.
    """
    if path is None:
        return Redactor()
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"REDACTION_RULES: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"REDACTION_RULES: {path} is not valid TOML: {error}") from None
    rules: Any = document.get("rule")
    if not isinstance(rules, list) or not rules:
        raise ConfigError(f"REDACTION_RULES: {path} holds no [[rule]]")
    return Redactor([_rule(path, rule) for rule in cast(list[Any], rules)])


def _rule(path: Path, given: Any) -> Rule:
    import regex  # pyright: ignore[reportMissingTypeStubs] - here, as few have rules

    engine: Any = regex
    name: Any = given.get("name")
    pattern: Any = given.get("pattern")
    if not isinstance(name, str) or not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"REDACTION_RULES: {path}: each rule needs a name and a pattern")
    try:
        replacement = str(given.get("replacement", f"[{name}]"))
        re.compile(pattern).sub(replacement, "")  # which looks at the replacement even where nothing is found
        rule = Rule(name, engine.compile(pattern), replacement)
    except (re.error, engine.error, IndexError) as error:
        raise ConfigError(f"REDACTION_RULES: {path}: {name}: {error}") from None
    try:
        for probe in _probes(pattern):
            _Allowance().apply(rule, probe)
    except TimeoutError:
        message = "takes too long with long texts; let a match begin at a word's beginning alone, or bound its length"
        raise ConfigError(f"REDACTION_RULES: {path}: {name}: {message}") from None
    return rule


def _probes(pattern: str) -> Iterator[str]:
    """Long texts of what a pattern may look for again and again, and at their end all that its source is made of."""
    literal = re.sub(r"\\[A-Za-z0-9]", " ", pattern)
    parts = {"a", "A", "0", " ", *re.findall(r"[^\W_]+|[^\w\s]", literal)}
    for part in sorted(parts):
        for between in ("", "-", ".", " "):
            unit = part + between
            yield unit * (_PROBE_CHARACTERS // len(unit)) + "\0\n" + pattern

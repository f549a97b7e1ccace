"""Redaction by the administrator's rules, of stored texts and of texts that go to tools.

Patterns are searched with `regex`, which has the syntax of `re` and a timeout, so no text can delay the others.
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
_BASE_SECONDS = 0.05
_SECONDS_PER_TEXT = 1e-5
_SECONDS_PER_CHARACTER = 5e-7


class Rule(msgspec.Struct, frozen=True):
    """Replaces what `pattern`, compiled by `regex`, finds; `replacement` may refer to its groups."""

    name: str
    pattern: Any
    replacement: str


class _TimeBudget:
    """Remaining seconds for texts that belong together: a base, and more for each text by its length."""

    def __init__(self) -> None:
        self.remaining = _BASE_SECONDS
        self.was_logged = False

    def apply_rule(self, rule: Rule, text: str) -> str:
        """Apply a rule to a text. Retries once: a paused machine looks like a slow rule.

        Raises:
            TimeoutError: the budget is used up.
        """
        with suppress(TimeoutError):
            return self._substitute_once(rule, text)
        return self._substitute_once(rule, text)

    def _substitute_once(self, rule: Rule, text: str) -> str:
        self.remaining += _SECONDS_PER_TEXT + _SECONDS_PER_CHARACTER * len(text)
        began = thread_time()
        try:
            # Not `concurrent`: whoever held the lock meanwhile would be counted, and so would the wait for it.
            return rule.pattern.sub(rule.replacement, text, timeout=self.remaining, concurrent=False)
        finally:
            self.remaining = max(0.0, self.remaining - (thread_time() - began))


class Redactor:
    """Applies rules in order. Without rules, texts are unchanged.

    If a rule takes too long with a text, the whole text is replaced by the rule's name in brackets.
    """

    def __init__(self, rules: Sequence[Rule] = (), budget: _TimeBudget | None = None) -> None:
        self._rules = rules
        self._budget = budget

    def __bool__(self) -> bool:
        return bool(self._rules)

    def with_shared_budget(self) -> "Redactor":
        """The same rules with one time budget for texts that belong together."""
        return self if self._budget else Redactor(self._rules, _TimeBudget())

    def redact_text(self, text: str) -> str:
        allowance = self._budget or _TimeBudget()
        for rule in self._rules:
            try:
                text = allowance.apply_rule(rule, text)
            except TimeoutError:
                if not allowance.was_logged:
                    allowance.was_logged = True
                    log.warning("redaction_too_slow", rule=rule.name, characters=len(text))
                return f"[{rule.name}]"
        return text

    def redact_value(self, value: Any) -> Any:
        """A JSON value with all texts redacted, including keys; keys that become equal are numbered.

        A whole number becomes a text if a rule matches its digits.
        """
        return self.with_shared_budget()._redact_recursively(value, numbers=True) if self._rules else value

    def redact_strings(self, value: Any) -> Any:
        """Like `redact_value`, but numbers stay: for schemas, in which they are bounds."""
        return self.with_shared_budget()._redact_recursively(value, numbers=False) if self._rules else value

    def redact_blocks(self, content: list[Any]) -> list[Any]:
        """MCP content blocks, redacted like `redact_value` except for their base64 data."""
        if not self._rules:
            return content
        once = self.with_shared_budget()
        return [once._redact_block(block) for block in content]

    def _redact_recursively(self, value: Any, *, numbers: bool) -> Any:
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, list):
            return [self._redact_recursively(each, numbers=numbers) for each in cast(list[Any], value)]
        if isinstance(value, dict):
            kept: dict[str, Any] = {}
            for given, each in cast(dict[str, Any], value).items():
                name = self.redact_text(given)
                kept[f"{name} {len(kept) + 1}" if name in kept else name] = self._redact_recursively(
                    each, numbers=numbers
                )
            return kept
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            digits = str(int(value))
            left = self.redact_text(digits)
            return value if left == digits else left
        return value

    def _redact_block(self, block: Any) -> Any:
        match block:
            case {"type": "image" | "audio", "data": str(data), **others} if _BASE64.fullmatch(data):
                return {**self.redact_value(others), "type": block["type"], "data": data}
            case {"type": "resource", "resource": {"blob": str(blob), **resource}, **others} if _BASE64.fullmatch(blob):
                return {
                    **self.redact_value(others),
                    "type": "resource",
                    "resource": {**self.redact_value(resource), "blob": blob},
                }
            case _:
                return self.redact_value(block)


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
    return Redactor([_parse_rule(path, rule) for rule in cast(list[Any], rules)])


def _parse_rule(path: Path, entry: Any) -> Rule:
    import regex  # pyright: ignore[reportMissingTypeStubs] - here, as few have rules

    engine: Any = regex
    name: Any = entry.get("name")
    pattern: Any = entry.get("pattern")
    if not isinstance(name, str) or not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"REDACTION_RULES: {path}: each rule needs a name and a pattern")
    try:
        replacement = str(entry.get("replacement", f"[{name}]"))
        re.compile(pattern).sub(replacement, "")  # which looks at the replacement even where nothing is found
        rule = Rule(name, engine.compile(pattern), replacement)
    except (re.error, engine.error, IndexError) as error:
        raise ConfigError(f"REDACTION_RULES: {path}: {name}: {error}") from None
    try:
        for probe in _generate_probes(pattern):
            _TimeBudget().apply_rule(rule, probe)
    except TimeoutError:
        message = "takes too long with long texts; anchor it at the beginning of a word, or bound its length"
        raise ConfigError(f"REDACTION_RULES: {path}: {name}: {message}") from None
    return rule


def _generate_probes(pattern: str) -> Iterator[str]:
    """Long texts that repeat parts of a pattern's source, to find patterns with a slow search."""
    literal = re.sub(r"\\[A-Za-z0-9]", " ", pattern)
    parts = {"a", "A", "0", " ", *re.findall(r"[^\W_]+|[^\w\s]", literal)}
    for part in sorted(parts):
        for between in ("", "-", ".", " "):
            unit = part + between
            yield unit * (_PROBE_CHARACTERS // len(unit)) + "\0\n" + pattern

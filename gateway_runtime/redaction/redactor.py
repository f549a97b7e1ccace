"""Redaction of texts by the administrator's rules.

It applies to stored texts, and to texts that go to tools. Patterns are searched with `regex`, which has the syntax of
`re` and a timeout, so no text blocks the event loop. See docs/adr/0012.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import thread_time
from typing import Any, TypeVar, cast

import msgspec
import structlog

from gateway_runtime.errors import ConfigError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*=*\s*")
_PROBE_LENGTH = 10_000
_BASE_SECONDS = 0.05
_SECONDS_PER_TEXT = 1e-5
_SECONDS_PER_CHARACTER = 5e-7


class Rule(msgspec.Struct, frozen=True):
    """Replaces matches of `pattern`, compiled by `regex`, which has no types.

    `replacement` may refer to its groups.
    """

    name: str
    pattern: Any
    replacement: str


class _TimeBudget:
    """Remaining seconds for texts that belong together.

    They start as a base and an allowance for each text by its length.
    """

    def __init__(self) -> None:
        self.remaining = _BASE_SECONDS
        self.was_logged = False

    def apply_rule(self, rule: Rule, text: str) -> str:
        """Apply a rule to a text.

        Retries once: a paused machine looks like a slow rule.

        Raises:
            TimeoutError: the budget is used up.
        """
        with suppress(TimeoutError):
            return self._substitute_once(rule, text)
        return self._substitute_once(rule, text)

    def _substitute_once(self, rule: Rule, text: str) -> str:
        self.remaining += _SECONDS_PER_TEXT + _SECONDS_PER_CHARACTER * len(text)
        started_at = thread_time()
        try:
            # `concurrent` would release the GIL, and waiting for it again would count against the timeout.
            return rule.pattern.sub(rule.replacement, text, timeout=self.remaining, concurrent=False)
        finally:
            self.remaining = max(0.0, self.remaining - (thread_time() - started_at))


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
        """Return a redactor whose texts share one time budget.

        The texts belong together.
        """
        return self if self._budget else Redactor(self._rules, _TimeBudget())

    def redact_text(self, text: str) -> str:
        """Apply all rules to a text."""
        budget = self._budget or _TimeBudget()
        for rule in self._rules:
            try:
                text = budget.apply_rule(rule, text)
            except TimeoutError:
                if not budget.was_logged:
                    budget.was_logged = True
                    log.warning("redaction_too_slow", rule=rule.name, characters=len(text))
                return f"[{rule.name}]"
        return text

    def redact_value(self, value: T) -> T:
        """Redact all texts in a JSON value, including keys.

        Keys that become equal are numbered. A whole number becomes a text if a rule matches its digits.
        """
        return cast(T, self._redact_json(value, numbers=True)) if self._rules else value

    def redact_strings(self, value: T) -> T:
        """Redact like `redact_value`, without numbers, because those of a schema are bounds."""
        return cast(T, self._redact_json(value, numbers=False)) if self._rules else value

    def redact_blocks(self, content: list[dict[str, object]]) -> list[dict[str, object]]:
        """Redact MCP content blocks like `redact_value`, except for their base64 data."""
        if not self._rules:
            return content
        redactor = self.with_shared_budget()
        return [redactor._redact_block(block) for block in content]

    def _redact_json(self, value: object, *, numbers: bool) -> object:
        return self.with_shared_budget()._redact_recursively(value, numbers=numbers)

    def _redact_recursively(self, value: object, *, numbers: bool) -> object:
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, list):
            return [self._redact_recursively(item, numbers=numbers) for item in cast(list[object], value)]
        if isinstance(value, dict):
            redacted_members: dict[str, object] = {}
            for key, member in cast(dict[str, object], value).items():
                name = self.redact_text(key)
                unique_name = f"{name} {len(redacted_members) + 1}" if name in redacted_members else name
                redacted_members[unique_name] = self._redact_recursively(member, numbers=numbers)
            return redacted_members
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            digits = str(int(value))
            redacted_digits = self.redact_text(digits)
            return value if redacted_digits == digits else redacted_digits
        return value

    def _redact_block(self, block: dict[str, object]) -> dict[str, object]:
        kind, resource = block.get("type"), block.get("resource")
        if kind in ("image", "audio") and _is_base64(block.get("data")):
            return self._redact_except(block, "type", "data")
        if kind == "resource" and isinstance(resource, dict):
            fields = cast(dict[str, object], resource)
            if _is_base64(fields.get("blob")):
                redacted_block = self._redact_except(block, "type", "resource")
                return {**redacted_block, "resource": self._redact_except(fields, "blob")}
        return self.redact_value(block)

    def _redact_except(self, fields: dict[str, object], *names: str) -> dict[str, object]:
        redacted_fields = self.redact_value({name: value for name, value in fields.items() if name not in names})
        return {**redacted_fields, **{name: fields[name] for name in names}}


def _is_base64(value: object) -> bool:
    return isinstance(value, str) and _BASE64.fullmatch(value) is not None


def load_rules(path: Path | None) -> Redactor:
    """Load the rules of a TOML file.

    Without a file, there are none. Each `[[rule]]` has a `name`, a `pattern`, and a `replacement` (default: `[name]`).

    Raises:
        ConfigError: the file cannot be read, is not valid, or has a pattern that takes too long with long texts.
    """
    if path is None:
        return Redactor()
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"REDACTION_RULES: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"REDACTION_RULES: {path} is not valid TOML: {error}") from None
    entries: object = document.get("rule")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"REDACTION_RULES: {path} contains no [[rule]]")
    return Redactor([_parse_rule(path, entry) for entry in cast(list[object], entries)])


def _parse_rule(path: Path, entry: object) -> Rule:
    import regex  # pyright: ignore[reportMissingTypeStubs] - imported on use, see docs/adr/0016

    engine: Any = regex
    rule_entry = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
    name, pattern = rule_entry.get("name"), rule_entry.get("pattern")
    if not isinstance(name, str) or not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"REDACTION_RULES: {path}: each rule needs a name and a pattern")
    try:
        replacement = str(rule_entry.get("replacement", f"[{name}]"))
        re.compile(pattern).sub(replacement, "")  # checks the replacement even without a match
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
    """Yield long texts that repeat literals of a pattern.

    They reveal patterns with a slow search.
    """
    literals = re.sub(r"\\[A-Za-z0-9]", " ", pattern)
    words = {"a", "A", "0", " ", *re.findall(r"[^\W_]+|[^\w\s]", literals)}
    for word in sorted(words):
        for separator in ("", "-", ".", " "):
            unit = word + separator
            yield unit * (_PROBE_LENGTH // len(unit)) + "\0\n" + pattern

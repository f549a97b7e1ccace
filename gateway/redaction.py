"""Takes out of texts what the administrator's rules name: in what is stored, and in what goes to tools."""

import re
import tomllib
from pathlib import Path
from typing import Any, cast

from gateway.config import ConfigError

_BINARY = ("data", "blob")


class Redactor:
    """Rules in their order. Without rules, texts are as they were."""

    def __init__(self, rules: list[tuple[re.Pattern[str], str]] | None = None) -> None:
        self._rules = rules or []

    def __bool__(self) -> bool:
        return bool(self._rules)

    def text(self, text: str) -> str:
        for pattern, replacement in self._rules:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with all of its texts redacted; names, and what is base64, stay."""
        if not self._rules:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(each) for each in cast(list[Any], value)]
        if isinstance(value, dict):
            items = cast(dict[str, Any], value).items()
            return {name: each if name in _BINARY else self.value(each) for name, each in items}
        return value


def load_rules(path: Path | None) -> Redactor:
    """The rules of a TOML file: `[[rule]]` with a `name`, a `pattern`, and a `replacement` (default: `[name]`).

    Raises:
        ConfigError: the file cannot be read or makes no sense.
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


def _rule(path: Path, rule: Any) -> tuple[re.Pattern[str], str]:
    name: Any = rule.get("name")
    pattern: Any = rule.get("pattern")
    if not isinstance(name, str) or not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"REDACTION_RULES: {path}: each rule needs a name and a pattern")
    try:
        compiled = re.compile(pattern)
        replacement = str(rule.get("replacement", f"[{name}]"))
        compiled.sub(replacement, "")
    except re.error as error:
        raise ConfigError(f"REDACTION_RULES: {path}: {name}: {error}") from None
    return compiled, replacement

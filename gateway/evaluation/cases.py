"""The file of an evaluation, in JSON or YAML."""

from pathlib import Path
from typing import Any, cast

import msgspec

from gateway.config import ConfigError
from gateway.domain.messages import JsonObject

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_CASES = 1_000
MAX_FILLER_TOOLS = 2_000


class CannedResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the calls whose arguments include `arguments`."""

    text: str
    arguments: JsonObject = {}
    outcome: str = "ok"


class CannedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool as the model sees it, and what it returns.

    The first of `results` whose arguments match is returned, else `result`.
    """

    description: str
    parameters: JsonObject = {}
    read_only: bool = True
    result: str = ""
    results: tuple[CannedResult, ...] = ()


class ExpectedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that must happen.

    `arguments` must have these values, and `patterns` are regular expressions that values must match; other arguments
    do not matter.
    """

    tool: str
    arguments: JsonObject = {}
    patterns: dict[str, str] = {}


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls and answers that a case expects.

    `calls` in this order, and with `exact` no others; `no_calls` are globs of tools that must not be called. The answer
    must have all texts of `contains`, none of `excludes` (in any case of letters), and match `pattern`.
    """

    calls: tuple[ExpectedCall, ...] = ()
    exact: bool = False
    no_calls: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    pattern: str | None = None
    max_steps: int | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and what must happen.

    `tools` names tools of the file (None: all). `tool_results` replaces what tools return. `filler_tools` adds that
    many other tools, before those of the case if `fillers_first`.
    """

    name: str
    prompt: str
    expect: Expectation
    tools: tuple[str, ...] | None = None
    tool_results: dict[str, str] = {}
    filler_tools: int = 0
    fillers_first: bool = False
    system: str | None = None


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cases of a file.

    `models` and `prompts` are compared side by side. `prompts` are system prompts by name; null is the gateway's own.
    """

    name: str
    cases: tuple[Case, ...]
    tools: dict[str, CannedTool] = {}
    models: tuple[str, ...] = ()
    prompts: dict[str, str | None] = {}


def load_suite(path: Path) -> Suite:
    """Read a file of cases.

    Raises:
        ConfigError: the file cannot be read, or is not valid.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes.")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    suite = _decode(path, data)
    _check_suite(path, suite)
    return suite


def _decode(path: Path, data: bytes) -> Suite:
    try:
        if path.suffix == ".json":
            return msgspec.json.decode(data, type=Suite)
        return msgspec.yaml.decode(data, type=Suite)
    except ImportError:
        raise ConfigError(f"{path}: YAML needs the package pyyaml. Install it, or write the file in JSON.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}.") from None


def _check_suite(path: Path, suite: Suite) -> None:
    if not 0 < len(suite.cases) <= MAX_CASES:
        raise ConfigError(f"{path}: must have 1 to {MAX_CASES:,} cases.")
    names: set[str] = set()
    for case in suite.cases:
        if case.name in names:
            raise ConfigError(f"{path}: two cases are named {case.name!r}.")
        names.add(case.name)
        unknown = [name for name in (*(case.tools or ()), *case.tool_results) if name not in suite.tools]
        if unknown:
            raise ConfigError(
                f"{path}: the case {case.name!r} names a tool that the file does not have: {unknown[0]!r}."
            )
        if not 0 <= case.filler_tools <= MAX_FILLER_TOOLS:
            raise ConfigError(f"{path}: filler_tools of {case.name!r} must be at most {MAX_FILLER_TOOLS:,}.")


def includes(value: Any, expected: Any) -> bool:
    """Return whether a JSON value has the expected one.

    Objects may have more fields.
    """
    if isinstance(expected, dict) and isinstance(value, dict):
        fields, wanted = cast("JsonObject", value), cast("JsonObject", expected)
        return all(name in fields and includes(fields[name], wanted[name]) for name in wanted)
    return bool(value == expected)

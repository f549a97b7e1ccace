"""Text of `mcp.json`: comments, byte order marks, variables and files of variables."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from gateway.config import ConfigError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/|,(?=\s*[}\]])', re.DOTALL)
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_UNSUPPORTED = re.compile(r"\$\{(?:input|command|config|workspaceFolder|extensionInstallFolder):[^}]*\}")


def parse_json_with_comments(data: bytes) -> object:
    """Parse JSON with comments, trailing commas and a byte order mark.

    Raises:
        ValueError: it is not JSON.
    """
    text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    try:
        return json.loads(text)
    except ValueError:
        pass
    text = _TOKEN.sub(_keep_strings, text)
    return json.loads(_TOKEN.sub(_keep_strings, text))  # a comment may stand between a comma and its bracket


def _keep_strings(match: re.Match[str]) -> str:
    """Replace a comment by its line breaks, which errors count."""
    token = match[0]
    return token if token.startswith('"') else "\n" * token.count("\n") or " "


def expand_variables(value: object, environment: Mapping[str, str]) -> object:
    """Replace `${NAME}`, `${env:NAME}` and `${NAME:-default}` in every string.

    Raises:
        ConfigError: a variable is not set, or only an editor could know it.
    """
    if isinstance(value, dict):
        return {key: expand_variables(inner, environment) for key, inner in value.items()}  # pyright: ignore
    if isinstance(value, list):
        return [expand_variables(inner, environment) for inner in value]  # pyright: ignore
    if not isinstance(value, str):
        return value
    if (unsupported := _UNSUPPORTED.search(value)) is not None:
        raise ConfigError(f"the variable {unsupported[0][:100]} is not supported; use an environment variable")
    return _VARIABLE.sub(lambda match: _get_variable(match, environment), value)


def _get_variable(match: re.Match[str], environment: Mapping[str, str]) -> str:
    value = environment.get(match[1]) or match[2]
    if value is None:
        raise ConfigError(f"the environment variable {match[1]} is not set")
    return value


def read_env_file(path: str, directory: Path) -> dict[str, str]:
    """Read the variables of an `envFile`; relative to the directory of `mcp.json`.

    Raises:
        ConfigError: it cannot be read.
    """
    file = directory / Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"envFile: cannot read {file}: {reason}") from None
    values = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}

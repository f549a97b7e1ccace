"""Reads `mcp.json`, in the format of Claude Desktop, Cursor and VS Code."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config import ConfigError, Settings
from gateway.domain.messages import JsonObject
from gateway.ports.servers import ServerConfig, ServerConfigSource

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
DEFAULT_FILE = Path("mcp.json")
_LEGACY_AUDIENCE = "tools-server"
"""Audience that a tool server of release 0.1.0 expects."""


def load_servers(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[ServerConfig]:
    """The servers of MCP_CONFIG, else of MCP_SERVER_URL, else of `./mcp.json`, else none.

    Raises:
        ConfigError: the file cannot be read or is not JSON. A broken entry only disables itself.
    """
    if settings.mcp_config is not None:
        return _read_file(settings.mcp_config, "MCP_CONFIG", environment)
    if settings.mcp_server_url is not None:
        identity, audience = settings.mcp_server_identity or "none", None
        if settings.mcp_server_identity is None and settings.tools_server_secret is not None:
            identity, audience = "gateway", _LEGACY_AUDIENCE
        elif settings.mcp_server_identity is None and _is_own_server(settings):
            identity = "gateway"
        return [
            ServerConfig(name="tools", url=settings.mcp_server_url, prefix="", identity=identity, audience=audience)
        ]
    if DEFAULT_FILE.exists():
        return _read_file(DEFAULT_FILE, "mcp.json", environment)
    return []


def _is_own_server(settings: Settings) -> bool:
    return urlsplit(settings.mcp_server_url or "").hostname in settings.tools_server_names


class ServerConfigFile(ServerConfigSource):
    """The servers that `load_servers` reads from the settings and their file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self) -> list[ServerConfig]:
        return load_servers(self._settings)

    def get_version(self) -> tuple[int, int] | None:
        """Modification time and size of the file; None without a file."""
        if self._settings.mcp_config is None and self._settings.mcp_server_url is not None:
            return None
        try:
            state = (self._settings.mcp_config or DEFAULT_FILE).stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size


def _read_file(path: Path, setting: str, environment: Mapping[str, str]) -> list[ServerConfig]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{setting}: {path} is not valid JSON: {error}") from None
    entries = document.get("mcpServers", document.get("servers")) if isinstance(document, dict) else None  # pyright: ignore
    if not isinstance(entries, dict):
        raise ConfigError(f'{setting}: {path} must contain an object "mcpServers" with one entry per server')
    return [_parse_entry(str(name), entry, environment) for name, entry in entries.items()]  # pyright: ignore


def _parse_entry(name: str, entry: object, environment: Mapping[str, str]) -> ServerConfig:
    """The server's configuration; one with a `fault` if the entry is invalid."""
    try:
        if not isinstance(entry, dict):
            raise ConfigError("the entry must be an object")
        if "command" not in entry and "url" not in entry:
            raise ConfigError("the entry has neither a url nor a command")
        if "command" in entry and "url" in entry:
            raise ConfigError("the entry has both a url and a command")
        expanded_entry = cast("JsonObject", _expand_variables(entry, environment))  # pyright: ignore[reportUnknownArgumentType]
        return ServerConfig.model_validate({**expanded_entry, "name": name})
    except ConfigError as error:
        return _make_faulty(name, str(error), cast("object", entry))
    except ValidationError as error:
        first_error = error.errors()[0]
        return _make_faulty(
            name,
            f"{'.'.join(map(str, first_error['loc']))}: {first_error['msg'].removeprefix('Value error, ')}",
            cast("object", entry),
        )


def _make_faulty(name: str, fault: str, entry: object) -> ServerConfig:
    """A server that is not used, but reserves its names."""
    prefix = cast("JsonObject", entry).get("prefix") if isinstance(entry, dict) else None
    return ServerConfig.model_construct(name=name, fault=fault, prefix=prefix if isinstance(prefix, str) else None)


def _expand_variables(value: object, environment: Mapping[str, str]) -> object:
    """Replace `${NAME}` and `${NAME:-default}` in every string."""
    if isinstance(value, dict):
        return {key: _expand_variables(inner, environment) for key, inner in value.items()}  # pyright: ignore
    if isinstance(value, list):
        return [_expand_variables(inner, environment) for inner in value]  # pyright: ignore
    return _VARIABLE.sub(lambda match: _get_variable(match, environment), value) if isinstance(value, str) else value


def _get_variable(match: re.Match[str], environment: Mapping[str, str]) -> str:
    value = environment.get(match[1], "").rstrip("\r\n") or match[2]
    if value is None:
        raise ConfigError(f"the environment variable {match[1]} is not set")
    return value

"""Reads `mcp.json`, in the format of Claude Desktop, Cursor and VS Code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config import ConfigError, Settings
from gateway.domain.messages import JsonObject
from gateway.mcp_client.config_text import expand_variables, parse_json_with_comments, read_env_file
from gateway.ports.servers import ServerConfig, ServerConfigSource

_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
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
            ServerConfig(
                name="tools",
                url=settings.mcp_server_url,
                prefix="",
                identity=identity,
                audience=audience,
                proxy=urlsplit(settings.mcp_server_url).hostname not in _LOOPBACK_HOSTS,
            )
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
        document = parse_json_with_comments(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{setting}: {path} is not valid JSON: {error}") from None
    entries = document.get("mcpServers", document.get("servers")) if isinstance(document, dict) else None  # pyright: ignore
    if not isinstance(entries, dict):
        raise ConfigError(f'{setting}: {path} must contain an object "mcpServers" with one entry per server')
    directory = path.absolute().parent
    return [_parse_entry(str(name), entry, environment, directory) for name, entry in entries.items()]  # pyright: ignore


def _parse_entry(name: str, entry: object, environment: Mapping[str, str], directory: Path) -> ServerConfig:
    """The server's configuration; one with a `fault` if the entry is invalid."""
    try:
        if not isinstance(entry, dict):
            raise ConfigError("the entry must be an object")
        if "command" not in entry and "url" not in entry:
            raise ConfigError("the entry has neither a url nor a command")
        if "command" in entry and "url" in entry:
            raise ConfigError("the entry has both a url and a command")
        expanded_entry = cast("JsonObject", expand_variables(entry, environment))  # pyright: ignore[reportUnknownArgumentType]
        return ServerConfig.model_validate({**expanded_entry, **_read_paths(expanded_entry, directory), "name": name})
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


def _read_paths(entry: JsonObject, directory: Path) -> JsonObject:
    """Return the fields that name paths, relative to the file's directory."""
    fields: JsonObject = {}
    if isinstance(cwd := entry.get("cwd"), str):
        fields["cwd"] = str(directory / Path(cwd).expanduser())
    oauth = entry.get("oauth")
    if isinstance(oauth, dict) and isinstance(path := cast("JsonObject", oauth).get("assertion_file"), str):
        fields["oauth"] = {**oauth, "assertion_file": str(directory / Path(path).expanduser())}
    env_file, env = entry.get("envFile"), entry.get("env")
    if env_file is not None and not isinstance(env_file, str):
        raise ConfigError("envFile: must be the path of a file")
    if env_file and (env is None or isinstance(env, dict)):
        fields["env"] = {**read_env_file(env_file, directory), **(env or {})}
    return fields

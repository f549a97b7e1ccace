"""Which MCP servers to connect to: `mcp.json` in the shape that Claude Desktop, Cursor and VS Code use."""

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from gateway.config import ConfigError, Settings
from gateway.domain.messages import Approval

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
DEFAULT_FILE = Path("mcp.json")


class OAuthClient(BaseModel):
    """What an authorization server without dynamic registration gave out by hand; `scope` is what to ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_id: str = Field(min_length=1, max_length=500)
    client_secret: SecretStr | None = None
    scope: str | None = Field(default=None, max_length=1_000)


class ServerConfig(BaseModel):
    """One entry. `fault` says why it cannot be used; then nothing else of it counts.

    Either `url` (with `type` "sse" for the transport of old servers) or `command` with `args` and `env`. `prefix` goes
    before its tools' names (None: the server's name); `timeout` in seconds for one call; `identity` "gateway" sends a
    short-lived token that names the user, "header:NAME" passes on that header of the client's; `share` "user" opens a
    connection for each user; `allow` and `deny` are globs over its tools' own names; `approval` says which of its
    tools' calls a person must approve; `on_change` "hold" holds back a tool whose definition changes until approved;
    `as_tools` lets the model list and read its resources or prompts. A server that answers 401 is signed in to by
    OAuth, as `oauth` says where clients cannot register themselves, unless its entry brings an `Authorization` header.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    url: str = ""
    type: Literal["http", "streamable-http", "streamableHttp", "sse", "stdio"] | None = None
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] | None = Field(default=None, repr=False)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    prefix: str | None = Field(default=None, max_length=64)
    timeout: float | None = Field(default=None, gt=0)
    identity: str = Field(default="none", pattern=r"^(none|gateway|header:[A-Za-z0-9-]{1,64})$")
    share: Literal["all", "user"] = "all"
    on_change: Literal["flag", "hold"] = "flag"
    as_tools: tuple[Literal["resources", "prompts"], ...] = ()
    oauth: OAuthClient | None = None
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    approval: Approval = "never"
    disabled: bool = False
    fault: str | None = None

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be the http:// or https:// address of a streamable HTTP server")
        try:
            _ = urlsplit(value).port
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from None
        return value

    @property
    def transport(self) -> Literal["http", "sse", "stdio"]:
        if self.command:
            return "stdio"
        return "sse" if self.type == "sse" else "http"

    @property
    def signs_in(self) -> bool:
        """Whether a person may sign in to it: over HTTP, and with no credential of the entry's own."""
        own = any(name.lower() == "authorization" for name in self.headers)
        return self.transport != "stdio" and self.identity == "none" and not own

    @property
    def forwarded_header(self) -> str | None:
        """The header of a client's request that is passed on to this server."""
        return self.identity.removeprefix("header:") if self.identity.startswith("header:") else None

    def permits(self, tool: str) -> bool:
        """Whether the gateway may offer this tool; `deny` wins."""
        return _matches(tool, self.allow) and not _matches(tool, self.deny)


def _matches(tool: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(tool, glob) for glob in globs)


def load_servers(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[ServerConfig]:
    """The servers of MCP_CONFIG, else of MCP_SERVER_URL, else of `./mcp.json`, else none.

    Raises:
        ConfigError: the file cannot be read, or is no JSON. A broken entry only disables itself.
    """
    if settings.mcp_config is not None:
        return _read(settings.mcp_config, "MCP_CONFIG", environment)
    if settings.mcp_server_url is not None:
        identity = "gateway" if settings.tools_server_secret else "none"
        return [ServerConfig(name="tools", url=settings.mcp_server_url, prefix="", identity=identity)]
    if DEFAULT_FILE.exists():
        return _read(DEFAULT_FILE, "mcp.json", environment)
    return []


def _read(path: Path, setting: str, environment: Mapping[str, str]) -> list[ServerConfig]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{setting}: {path} is not valid JSON: {error}") from None
    entries = document.get("mcpServers", document.get("servers")) if isinstance(document, dict) else None  # pyright: ignore
    if not isinstance(entries, dict):
        raise ConfigError(f'{setting}: {path} must hold an object "mcpServers" with an entry a server')
    return [_entry(str(name), entry, environment) for name, entry in entries.items()]  # pyright: ignore


def _entry(name: str, entry: Any, environment: Mapping[str, str]) -> ServerConfig:
    """The entry's settings, or the entry with what is wrong with it."""
    try:
        if not isinstance(entry, dict):
            raise ConfigError("the entry must be an object")
        if "command" not in entry and "url" not in entry:
            raise ConfigError("the entry has neither a url nor a command")
        if "command" in entry and "url" in entry:
            raise ConfigError("the entry has both a url and a command")
        return ServerConfig.model_validate({**_expand(entry, environment), "name": name})
    except ConfigError as error:
        return _faulty(name, str(error))
    except ValidationError as error:
        first = error.errors()[0]
        return _faulty(name, f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}")


def _faulty(name: str, fault: str) -> ServerConfig:
    return ServerConfig.model_construct(
        name=name, url="", type=None, command="", args=(), env=None, headers={}, prefix=None, timeout=None,
        identity="none", share="all", on_change="flag", as_tools=(), oauth=None, allow=("*",), deny=(),
        approval="never", disabled=False, fault=fault,
    )  # fmt: skip


def _expand(value: Any, environment: Mapping[str, str]) -> Any:
    """`${NAME}` and `${NAME:-default}` in every string."""
    if isinstance(value, dict):
        return {key: _expand(inner, environment) for key, inner in value.items()}  # pyright: ignore
    if isinstance(value, list):
        return [_expand(inner, environment) for inner in value]  # pyright: ignore
    return _VARIABLE.sub(lambda match: _lookup(match, environment), value) if isinstance(value, str) else value


def _lookup(match: re.Match[str], environment: Mapping[str, str]) -> str:
    value = environment.get(match[1]) or match[2]
    if value is None:
        raise ConfigError(f"the environment variable {match[1]} is not set")
    return value

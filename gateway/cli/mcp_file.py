"""Changes of the configuration file of MCP servers."""

import json
from pathlib import Path

from gateway.config import ConfigError, Settings
from gateway.domain.messages import JsonObject
from gateway.mcp_client.server_config import DEFAULT_FILE


def find_server_file(settings: Settings) -> Path:
    """Return the file that configures the MCP servers.

    Raises:
        ConfigError: the settings name one server instead.
    """
    if settings.mcp_config is None and settings.mcp_server_url is not None:
        raise ConfigError(f"MCP_SERVER_URL is set, so {DEFAULT_FILE} is not read: set MCP_CONFIG to a file instead")
    return settings.mcp_config or DEFAULT_FILE


def write_entry(file: Path, name: str, entry: JsonObject | None) -> None:
    """Add an entry, or remove it with None.

    Other entries stay as they are.

    Raises:
        ConfigError: the file cannot be read or written, or has no entries of servers.
    """
    try:
        document: JsonObject = json.loads(file.read_text()) if file.exists() else {"mcpServers": {}}
        key = next((key for key in ("mcpServers", "servers") if key in document), None)
        servers: JsonObject | None = document[key] if key is not None else None
        if not isinstance(servers, dict):
            raise ConfigError(f'{file} must contain an object "mcpServers" with one entry per server')
        if entry is None:
            servers.pop(name, None)
        else:
            servers[name] = entry
        file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be changed: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None

"""The `_meta` of messages of the Model Context Protocol."""

from collections.abc import Mapping
from typing import Any, cast

LOG_LEVEL = "io.modelcontextprotocol/logLevel"
CONNECTION_KEYS = frozenset(
    {
        "progressToken",
        LOG_LEVEL,
        "io.modelcontextprotocol/protocolVersion",
        "io.modelcontextprotocol/clientInfo",
        "io.modelcontextprotocol/clientCapabilities",
        "io.modelcontextprotocol/serverInfo",
        "io.modelcontextprotocol/subscriptionId",
    }
)
"""Names that each party sets for its own connection."""


def remove_connection_keys(meta: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what belongs to the message itself, or None."""
    return {name: value for name, value in (meta or {}).items() if name not in CONNECTION_KEYS} or None


_UI_URI_NAMES = ("ui/resourceUri", "openai/outputTemplate")
"""Names in a tool's `_meta` that older servers use instead of `ui.resourceUri`."""


def get_ui_resource(meta: Mapping[str, Any] | None) -> str | None:
    """Return the URI of a tool's page (MCP Apps), or None."""
    ui = _get_ui(meta)
    uris = [ui.get("resourceUri"), *((meta or {}).get(name) for name in _UI_URI_NAMES)]
    return next((uri for uri in uris if isinstance(uri, str) and uri), None)


def replace_ui_resource(meta: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Return the `_meta` of a tool with another URI of its page."""
    changed = dict(meta) | {name: uri for name in _UI_URI_NAMES if name in meta}
    ui = _get_ui(meta)
    return changed | ({"ui": {**ui, "resourceUri": uri}} if "resourceUri" in ui else {})


def is_for_model(meta: Mapping[str, Any] | None) -> bool:
    """Return whether a model may see a tool.

    Some tools are for the pages of MCP Apps alone.
    """
    visibility = _get_ui(meta).get("visibility")
    if (meta or {}).get("openai/visibility") == "private":
        return False
    return not isinstance(visibility, list) or "model" in visibility


def _get_ui(meta: Mapping[str, Any] | None) -> Mapping[str, Any]:
    ui = (meta or {}).get("ui")
    return cast("Mapping[str, Any]", ui) if isinstance(ui, Mapping) else {}

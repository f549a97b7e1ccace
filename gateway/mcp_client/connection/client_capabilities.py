"""Capabilities that servers are told: those of the calling host."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

from mcp.server.apps import APP_MIME_TYPE
from mcp.server.apps import EXTENSION_ID as APPS_EXTENSION
from mcp.types import CLIENT_CAPABILITIES_META_KEY

from gateway.domain.hosts import HostProfile
from gateway.domain.messages import JsonObject
from gateway.mcp_client.tasks.protocol import TASKS_EXTENSION

GATEWAY_CAPABILITIES: JsonObject = {
    "elicitation": {"form": {}, "url": {}},
    "extensions": {APPS_EXTENSION: {"mimeTypes": [APP_MIME_TYPE]}, TASKS_EXTENSION: {}},
}
"""Capabilities of the gateway itself.

Its chats ask their users. Some servers list tools with pages (MCP Apps) only to clients that know pages. The gateway
follows tasks itself, so it declares them for every host.
"""
DIRECT_CALL = HostProfile(is_legacy=False, capabilities=GATEWAY_CAPABILITIES)
"""Profile of callers that are neither turns nor hosts."""
_HOST_CAPABILITIES = ("elicitation", "extensions", "sampling", "roots")

_calling_host: ContextVar[HostProfile | None] = ContextVar("mcp_calling_host", default=None)


@contextmanager
def calling_for(host: HostProfile | None) -> Generator[None]:
    """Send the requests of this block with the capabilities of a host."""
    token = _calling_host.set(host)
    try:
        yield
    finally:
        _calling_host.reset(token)


def declare_capabilities(method: str, params: JsonObject, session_capabilities: JsonObject) -> None:
    """Replace the capabilities that the SDK has put into a request.

    A legacy session has those of its handshake; in the current protocol each request has its own.
    """
    if method == "initialize":
        params["capabilities"] = _replace(params.get("capabilities"), session_capabilities)
        return
    meta: JsonObject = params.get("_meta") or {}
    if CLIENT_CAPABILITIES_META_KEY in meta:
        host = _calling_host.get()
        capabilities = session_capabilities if host is None else host.capabilities
        meta[CLIENT_CAPABILITIES_META_KEY] = _replace(meta[CLIENT_CAPABILITIES_META_KEY], capabilities)


def _replace(declared: JsonObject | None, capabilities: JsonObject) -> JsonObject:
    others = {name: value for name, value in (declared or {}).items() if name not in _HOST_CAPABILITIES}
    extensions = capabilities.get("extensions")
    tasks: JsonObject = {
        **(cast("JsonObject", extensions) if isinstance(extensions, dict) else {}),
        TASKS_EXTENSION: {},
    }
    return others | capabilities | {"extensions": tasks}

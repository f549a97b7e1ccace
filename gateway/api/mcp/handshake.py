"""Changes of the handshakes that hosts get, in both protocol eras."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mcp.server import NotificationOptions
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.server.models import InitializationOptions

from gateway.api.mcp.host import Context, get_principal
from gateway.api.mcp.tasks.messages import LEGACY_TASKS_CAPABILITY, TASK_VERSION
from gateway.domain.messages import JsonObject
from gateway.ports.tools import Toolbox

_HANDSHAKE_METHODS = ("initialize", "server/discover")
_ID_LENGTH = 8


class GatewayServer(Server[JsonObject]):
    """MCP server that announces in the handshake that its lists may change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, JsonObject] | None = None,
        extensions: dict[str, JsonObject] | None = None,
    ) -> InitializationOptions:
        """Build the options of the handshake of the legacy protocol."""
        options = notification_options or NotificationOptions(
            prompts_changed=True, resources_changed=True, tools_changed=True
        )
        return super().create_initialization_options(options, experimental_capabilities, extensions)


class HandshakeMiddleware:
    """Adds servers' instructions to handshakes, and makes a claim true.

    The instructions are those of the servers whose tools the user may use. Updates of single resources are claimed
    only if one of the user's servers announces them, and tasks of the legacy protocol in the version that has them.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Handle a message as a middleware of the SDK's server."""
        result = await call_next(ctx)
        if ctx.method not in _HANDSHAKE_METHODS or not isinstance(result, Mapping):
            return result
        handshake = dict(cast("Mapping[str, Any]", result))
        if handshake.get("protocolVersion") == TASK_VERSION:
            handshake["capabilities"] = {**handshake["capabilities"], "tasks": LEGACY_TASKS_CAPABILITY}
        principal = get_principal(ctx)
        resources = handshake["capabilities"].get("resources", {})
        resources["subscribe"] = self._toolbox.announces_updates(principal)
        servers = {spec.server for spec in self._toolbox.list_specs(principal) if principal.can_use_tool(spec)}
        parts = [part for part in self._toolbox.list_instructions() if part[0] in servers]
        return handshake | ({"instructions": join_instructions(parts)} if parts else {})


def join_instructions(parts: Sequence[tuple[str, str]]) -> str:
    """Join the unchanged texts of servers; a single one stays alone.

    Each text follows a line with its server's name. The line has a digest of all texts, so that no text can contain a
    line that begins another server's.
    """
    if len(parts) == 1:
        return parts[0][1]
    digest = hashlib.sha256("\0".join(text for _, text in parts).encode()).hexdigest()[:_ID_LENGTH]
    return "\n\n".join(f"[{digest}] Instructions of the MCP server {name!r}:\n{text}" for name, text in parts)

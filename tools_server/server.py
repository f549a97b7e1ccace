"""The MCP server: one line a tool family."""

import time
from typing import Any

from mcp.server import NotificationOptions
from mcp.server.caching import CacheHint
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from tools_server import calculator, fetch_page, tasks, web_search
from tools_server.auth import Authentication
from tools_server.config import Settings

VERSION = "0.1.0"
INSTRUCTIONS = """\
calculator is exact: use it for all arithmetic. web_search finds pages, fetch_page reads one. The task tools keep the \
user's own task list: look numbers up with list_tasks before you change or delete a task."""


def create_server(settings: Settings, store: tasks.TaskStore) -> MCPServer[Any]:
    """The server with all its tools. Its HTTP form is `create_app`; over stdio it runs as it is."""
    mcp: MCPServer[Any] = MCPServer(
        "tools",
        title="Tools",
        version=VERSION,
        instructions=INSTRUCTIONS,
        log_level="WARNING",
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="public")},
    )
    _tell_older_hosts_of_changes(mcp)
    calculator.register(mcp)
    web_search.register(mcp, web_search.make_backend(settings))
    fetch_page.register(mcp, fetch_page.Fetcher())
    tasks.register(mcp, store)
    _complete_arguments(mcp)
    _report_health(mcp, store)
    return mcp


def create_app(mcp: MCPServer[Any], settings: Settings) -> ASGIApp:
    """Streamable HTTP at `/mcp`, `/health`, and the guard before them."""
    hosts = [f"{host}:*" for host in ("127.0.0.1", "localhost", "[::1]")]
    security = TransportSecuritySettings(
        allowed_hosts=[*hosts, *settings.tools_server_allowed_hosts],
        allowed_origins=[*(f"http://{host}" for host in hosts), *settings.tools_server_allowed_origins],
    )
    app = mcp.streamable_http_app(transport_security=security, host=settings.tools_server_host)
    return Authentication(app, settings)


def _tell_older_hosts_of_changes(mcp: MCPServer[Any]) -> None:
    """Hosts of the handshake era are told that the list of tools may change; the SDK has no public way to say so."""
    low = mcp._lowlevel_server  # pyright: ignore[reportPrivateUsage]
    original = low.create_initialization_options

    def with_changes(*_arguments: Any, **_options: Any) -> Any:
        return original(NotificationOptions(tools_changed=True))

    low.create_initialization_options = with_changes


def _complete_arguments(mcp: MCPServer[Any]) -> None:
    @mcp.completion()
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        _context: CompletionContext | None,
    ) -> Completion | None:
        if isinstance(ref, ResourceTemplateReference) and argument.name == "status":
            return Completion(values=[s for s in ("all", "pending", "completed") if s.startswith(argument.value)])
        return None


def _report_health(mcp: MCPServer[Any], store: tasks.TaskStore) -> None:
    started = time.monotonic()

    @mcp.custom_route("/health", methods=["GET"])
    async def health(_request: Request) -> JSONResponse:
        database = await store.reachable()
        uptime = round(time.monotonic() - started, 1)
        state = "healthy" if database else "degraded"
        return JSONResponse({"status": state, "version": VERSION, "uptime_seconds": uptime, "database": database})

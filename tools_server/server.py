"""The MCP server: one line a tool family."""

import hashlib
import inspect
import secrets
import time
from typing import Any

from mcp import MCPError
from mcp.server import NotificationOptions
from mcp.server.caching import CacheHint
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.request_state import RequestStateSecurity
from mcp.server.subscriptions import ListenHandler
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    GetPromptResult,
    InputRequiredResult,
    PromptReference,
    ResourceTemplateReference,
    Tool,
)
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from tools_server import calculator, fetch_page, web_search
from tools_server.auth import AuthenticationMiddleware, get_request_user, metadata_routes
from tools_server.config import Settings
from tools_server.rest import add_rest_routes
from tools_server.tasks import tools as task_tools
from tools_server.tasks.store import TaskStore

VERSION = "0.2.0"
STATE_LIFETIME_SECONDS = 30 * 86_400.0
INSTRUCTIONS = """\
calculator is exact: use it for all arithmetic. web_search finds pages, fetch_page reads one. The task tools keep the \
user's own task list: look numbers up with list_tasks before you change or delete a task."""


class ToolServer(MCPServer[Any]):
    """The SDK's server, with what it has no public way to say."""

    def announce_list_changes(self) -> None:
        """Hosts of the handshake era are told that the list of tools may change."""
        low = self._lowlevel_server
        original = low.create_initialization_options

        def with_changes(*_arguments: Any, **_options: Any) -> Any:
            return original(NotificationOptions(tools_changed=True))

        low.create_initialization_options = with_changes

    def close_listen_streams(self) -> None:
        """End the open listen streams, each with its last message: clients see that it was meant."""
        entry = self._lowlevel_server.get_request_handler("subscriptions/listen")
        if entry is not None and isinstance(entry.handler, ListenHandler):
            entry.handler.close()

    async def list_tools(self) -> list[Tool]:
        """As the SDK does, without the indentation of the docstrings."""
        tools = await super().list_tools()
        return [tool.model_copy(update={"description": inspect.cleandoc(tool.description or "")}) for tool in tools]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """As the SDK does, but what is wrong with the arguments is said for a model, not for pydantic's users."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(error, UnexpectedToolError) or not isinstance(cause, ValidationError):
                raise
            raise ToolError(f"Wrong arguments for {name}: {_describe_problems(cause)}") from cause

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Any, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """As the SDK does, but a prompt or an argument that there is not is the caller's mistake, no internal error."""
        taken = {prompt.name: {each.name for each in prompt.arguments or ()} for prompt in await self.list_prompts()}
        if name not in taken:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {name}")
        if odd := sorted(set(arguments or ()) - taken[name]):
            raise MCPError(INVALID_PARAMS, f"The prompt {name} takes no argument {odd[0]!r}.")
        return await super().get_prompt(name, arguments, context)


def create_server(settings: Settings, store: TaskStore) -> ToolServer:
    """The server with all its tools. Its HTTP form is `create_app`; over stdio it runs as it is."""
    mcp = ToolServer(
        "tools",
        title="Tools",
        version=VERSION,
        instructions=INSTRUCTIONS,
        log_level="WARNING",
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="public")},
        request_state_security=_make_state_security(settings),
    )
    mcp.announce_list_changes()
    calculator.register_calculator(mcp)
    web_search.register_web_search(mcp, web_search.make_backend(settings))
    fetch_page.register_fetch_page(mcp, fetch_page.PageFetcher())
    task_tools.register_task_tools(mcp, store)
    _register_completion(mcp)
    _register_health(mcp, store)
    return mcp


def _make_state_security(settings: Settings) -> RequestStateSecurity:
    """How a question's state is sealed: for its user, and readable after a restart where there is a secret."""
    secret = settings.tools_server_secret
    key = hashlib.sha256(secret.get_secret_value().encode()).digest() if secret else secrets.token_bytes(32)
    return RequestStateSecurity(
        keys=[key], ttl=STATE_LIFETIME_SECONDS, bind_principal=lambda ctx: get_request_user(ctx.request)
    )


def create_app(mcp: ToolServer, settings: Settings) -> ASGIApp:
    """Streamable HTTP at `/mcp`, plain views of it, `/health`, and the guard before them."""
    local = [f"{host}:*" for host in ("127.0.0.1", "localhost", "[::1]")]
    security = TransportSecuritySettings(
        allowed_hosts=local + [form for host in settings.tools_server_allowed_hosts for form in _list_host_forms(host)],
        allowed_origins=[
            *(f"{scheme}://{host}" for scheme in ("http", "https") for host in local),
            *settings.tools_server_allowed_origins,
        ],
    )
    app = mcp.streamable_http_app(transport_security=security, host=settings.tools_server_host)
    add_rest_routes(app)
    app.routes.extend(metadata_routes(settings))
    return AuthenticationMiddleware(app, settings)


def _list_host_forms(host: str) -> list[str]:
    """A host that is named without a port may be asked at any."""
    return [host, f"{host}:*"] if ":" not in host or host.endswith("]") else [host]


def _describe_problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )


def _register_completion(mcp: ToolServer) -> None:
    @mcp.completion()
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        _context: CompletionContext | None,
    ) -> Completion | None:
        if isinstance(ref, ResourceTemplateReference) and argument.name == "status":
            return Completion(values=[s for s in ("all", "pending", "completed") if s.startswith(argument.value)])
        return None


def _register_health(mcp: ToolServer, store: TaskStore) -> None:
    started = time.monotonic()

    @mcp.custom_route("/health", methods=["GET"])
    async def health(_request: Request) -> JSONResponse:
        database = await store.is_reachable()
        uptime = round(time.monotonic() - started, 1)
        state = "healthy" if database else "degraded"
        return JSONResponse({"status": state, "version": VERSION, "uptime_seconds": uptime, "database": database})

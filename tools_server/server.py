"""The MCP server with all its tools, and its HTTP application."""

import asyncio
import hashlib
import inspect
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from mcp import MCPError
from mcp.server import NotificationOptions
from mcp.server.caching import CacheHint
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.request_state import RequestStateSecurity
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.server.subscriptions import ListenHandler, ToolsListChanged
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    GetPromptResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    PromptReference,
    ResourceTemplateReference,
    Tool,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway_runtime.cached_value import CachedValue
from gateway_runtime.outgoing.private_targets import TargetPolicy
from gateway_runtime.settings.hosts import normalize_host_pattern
from tools_server import calculator, fetch_page, web_search
from tools_server.auth import AuthenticationMiddleware, build_metadata_routes, get_request_user
from tools_server.config import LOOPBACK_HOSTS, Settings
from tools_server.http_tools.catalog import DefinitionCatalog
from tools_server.http_tools.openapi.importer import DocumentImporter
from tools_server.http_tools.routes import build_definition_routes
from tools_server.http_tools.secrets import SecretCipher
from tools_server.http_tools.sender import HttpSender
from tools_server.http_tools.service import DefinitionService
from tools_server.http_tools.store import DefinitionStore
from tools_server.request_body import RequestBodyMiddleware
from tools_server.request_origin import RequestOriginMiddleware
from tools_server.rest import add_rest_routes, answer_http_error
from tools_server.sessions import UserSessionManager
from tools_server.tasks import tools as task_tools
from tools_server.tasks.store import TaskStore

if TYPE_CHECKING:
    from mcp.server.models import InitializationOptions

    from gateway_runtime.telemetry.observer import Telemetry

VERSION = "0.2.0"
_HEALTH_SECONDS = 1.0
_NOTIFY_SECONDS = 2.0
STATE_LIFETIME_SECONDS = 30 * 86_400.0
INSTRUCTIONS = """\
calculator is exact: use it for all arithmetic. web_search finds pages, fetch_page reads one. The task tools keep the \
user's own task list: look numbers up with list_tasks before you change or delete a task."""


class ToolServer(MCPServer[object]):
    """The SDK's server, extended.

    It notifies of tool changes, can close listen streams, has readable errors, and offers defined tools.
    """

    _catalog: DefinitionCatalog | None = None
    _definitions: DefinitionService | None = None
    _importer: DocumentImporter | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._legacy_sessions: WeakSet[Connection] = WeakSet()

    def announce_list_changes(self) -> None:
        """Announce that the list of tools may change.

        Clients of the legacy protocol need the announcement.
        """
        server = self._lowlevel_server
        create_options = server.create_initialization_options

        def create_options_with_changes(*_arguments: object, **_options: object) -> "InitializationOptions":
            return create_options(NotificationOptions(tools_changed=True))

        server.create_initialization_options = create_options_with_changes

    def build_http_app(self, settings: Settings) -> Starlette:
        """Build the application with bounded sessions of each user."""
        manager = UserSessionManager(self._lowlevel_server, settings)
        routes = [Route("/mcp", StreamableHTTPASGIApp(manager)), *self._custom_starlette_routes]
        if self._definitions is not None and self._importer is not None:
            routes.extend(build_definition_routes(self._definitions, self._importer))

        @asynccontextmanager
        async def run(_app: Starlette) -> AsyncGenerator[None]:
            async with manager.run(), self.run_definitions():
                yield

        return Starlette(routes=routes, lifespan=run, exception_handlers={HTTPException: answer_http_error})

    def add_definitions(self, settings: Settings, store: TaskStore) -> None:
        """Offer the tools that people define, besides the registered ones."""
        definitions, cipher = DefinitionStore(store.database), SecretCipher(settings)
        sender = HttpSender(TargetPolicy(settings.tools_private_targets))
        url = settings.direct_postgres_url or store.database.url
        self._catalog = DefinitionCatalog(definitions, cipher, sender, url, self.notify_tools_changed)
        names = frozenset(tool.name for tool in self._tool_manager.list_tools())
        self._definitions = DefinitionService(definitions, self._catalog, cipher, names)
        self._importer = DocumentImporter(self._definitions, sender)

    @asynccontextmanager
    async def run_definitions(self) -> AsyncGenerator[None]:
        """Keep the defined tools current inside of the block."""
        if self._catalog is None:
            yield
            return
        async with self._catalog.run():
            yield

    async def notify_tools_changed(self) -> None:
        """Tell all hosts that the list of tools has changed."""
        await self._subscriptions.publish(ToolsListChanged())
        notifications = (_notify_session(session) for session in list(self._legacy_sessions))
        await asyncio.gather(*notifications)

    def close_listen_streams(self) -> None:
        """End the open listen streams, each with its last message.

        Clients thus do not see an error.
        """
        entry = self._lowlevel_server.get_request_handler("subscriptions/listen")
        if entry is not None and isinstance(entry.handler, ListenHandler):
            entry.handler.close()

    async def list_tools(self) -> list[Tool]:
        """List the tools like the SDK, without the indentation of their docstrings."""
        tools = await super().list_tools()
        listed = [tool.model_copy(update={"description": inspect.cleandoc(tool.description or "")}) for tool in tools]
        return listed if self._catalog is None else [*listed, *await self._catalog.list_tools()]

    async def _handle_list_tools(
        self, ctx: ServerRequestContext[object, Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        """Remember which sessions of the legacy protocol to notify of changes."""
        if ctx.session.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            self._legacy_sessions.add(ctx.session._connection)  # pyright: ignore[reportPrivateUsage]
        return await super()._handle_list_tools(ctx, params)

    def has_tool(self, name: str) -> bool:
        """Return whether a tool of this name is on offer."""
        is_defined = self._catalog is not None and self._catalog.find(name) is not None
        return is_defined or self._tool_manager.get_tool(name) is not None

    def _tool_input_schema(self, name: str) -> dict[str, Any] | None:
        defined = None if self._catalog is None else self._catalog.find(name)
        return super()._tool_input_schema(name) if defined is None else defined.definition.input_schema

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: "Context[object, Any] | None" = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool like the SDK.

        For wrong arguments the model gets a readable error instead of pydantic's.
        """
        if self._catalog is not None and self._tool_manager.get_tool(name) is None:
            defined = await self._catalog.find_loaded(name)
            if defined is not None:
                return await self._catalog.call(defined, arguments)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(error, UnexpectedToolError) or not isinstance(cause, ValidationError):
                raise
            raise ToolError(f"Wrong arguments for {name}: {_describe_problems(cause)}") from cause

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: "Context[object, Any] | None" = None
    ) -> GetPromptResult | InputRequiredResult:
        """Get a prompt like the SDK.

        An unknown prompt or argument is an error with `INVALID_PARAMS`.
        """
        prompts = await self.list_prompts()
        argument_names = {prompt.name: {argument.name for argument in prompt.arguments or ()} for prompt in prompts}
        if name not in argument_names:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {name}")
        if unknown := sorted(set(arguments or ()) - argument_names[name]):
            raise MCPError(INVALID_PARAMS, f"The prompt {name} takes no argument {unknown[0]!r}.")
        return await super().get_prompt(name, arguments, context)


def create_server(settings: Settings, store: TaskStore) -> ToolServer:
    """Create the server with all its tools; `create_app` serves it over HTTP."""
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
    web_search.register_web_search(mcp, web_search.create_backend(settings))
    fetch_page.register_fetch_page(mcp, fetch_page.PageFetcher())
    task_tools.register_task_tools(mcp, store)
    mcp.add_definitions(settings, store)
    _register_completion(mcp)
    _register_health(mcp, store)
    return mcp


async def _notify_session(session: Connection) -> None:
    """Notify a session.

    The session may have ended, or its client may not read.
    """
    with suppress(Exception):
        async with asyncio.timeout(_NOTIFY_SECONDS):
            await session.send_tool_list_changed()


def _make_state_security(settings: Settings) -> RequestStateSecurity:
    """Build the encryption of a question's state for its user.

    With TOOLS_SERVER_STATE_KEY or TOOLS_SERVER_SECRET the state is readable after a restart.
    """
    secret = settings.tools_server_state_key or settings.tools_server_secret
    key = hashlib.sha256(secret.get_secret_value().encode()).digest() if secret else secrets.token_bytes(32)
    return RequestStateSecurity(
        keys=[key], ttl=STATE_LIFETIME_SECONDS, bind_principal=lambda ctx: get_request_user(ctx.request)
    )


def create_app(mcp: ToolServer, settings: Settings, telemetry: "Telemetry | None" = None) -> ASGIApp:
    """Create the HTTP application: `/mcp`, `/tools`, `/tools/call` and `/health`."""
    own_origins = [settings.public_origin] if settings.public_origin else []
    own_hosts = [normalize_host_pattern(origin, keep_port=True) for origin in own_origins]
    local_origins = [f"{scheme}://{host}:*" for scheme in ("http", "https") for host in LOOPBACK_HOSTS]
    app = mcp.build_http_app(settings)
    add_rest_routes(app)
    app.routes.extend(build_metadata_routes(settings))
    guarded_app = RequestOriginMiddleware(
        AuthenticationMiddleware(RequestBodyMiddleware(app), settings),
        hosts=(*LOOPBACK_HOSTS, *settings.tools_server_allowed_hosts, *own_hosts),
        origins=(*local_origins, *settings.tools_server_allowed_origins, *own_origins),
    )
    if telemetry is None:
        return guarded_app
    from gateway_runtime.telemetry.asgi import RequestTelemetryMiddleware

    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    return RequestTelemetryMiddleware(guarded_app, telemetry, paths)


def _describe_problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )


def _register_completion(mcp: ToolServer) -> None:
    @mcp.completion()
    async def complete_status(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        _context: CompletionContext | None,
    ) -> Completion | None:
        if isinstance(ref, ResourceTemplateReference) and argument.name == "status":
            statuses = ("all", "pending", "completed")
            return Completion(values=[status for status in statuses if status.startswith(argument.value)])
        return None


def _register_health(mcp: ToolServer, store: TaskStore) -> None:
    started_at = time.monotonic()
    reachable = CachedValue(store.is_reachable, _HEALTH_SECONDS)  # many requests take one connection of the pool

    @mcp.custom_route("/health", methods=["GET"])
    async def get_health(_request: Request) -> JSONResponse:
        database = await reachable.get()
        uptime = round(time.monotonic() - started_at, 1)
        status = "healthy" if database else "degraded"
        return JSONResponse({"status": status, "version": VERSION, "uptime_seconds": uptime, "database": database})

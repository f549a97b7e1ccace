"""The gateway as an MCP server, at exactly `/mcp`: the tools, resources and prompts of every connected server at once.

Beside them stands `ask_agent`, which runs a turn. Who attaches here is who calls the HTTP API: the same keys, the same
turns. The host asks its user before a call, as hosts do; the approval policy of turns holds for `ask_agent`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import mcp.types as t
from mcp import MCPError
from mcp.server import NotificationOptions
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from gateway import __version__
from gateway.agent.service import TurnService
from gateway.api.mcp.ask_agent import ASK_AGENT, ask_agent, may_ask_agent
from gateway.api.mcp.host import HOST_GONE, Context, HostObserver, get_principal, mcp_errors
from gateway.api.mcp.schemas import parse_answers, to_call_result, to_input_required, to_mcp_tool
from gateway.api.mcp.session_forwarding import WorkerForwarder
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import LruDict
from gateway.common.logging import get_logger
from gateway.config import Settings, is_loopback
from gateway.domain.messages import JsonObject, Principal, ToolResult
from gateway.ports.tools import Listed, Toolbox

log = get_logger(__name__)

_SESSION_HEADER = "mcp-session-id"
_MAX_ROUNDS = 10
_MAX_LEGACY_SESSIONS = 1_000
_NOTIFY_TIMEOUT_SECONDS = 5.0


class McpEndpoint:
    """The ASGI application for `/mcp`. Serves while `running()`.

    A session of the handshake era lives in the worker where it began. Its id ends with that worker's name, so that any
    other one knows whom to pass a request on to.
    """

    def __init__(
        self, settings: Settings, turn_service: TurnService, toolbox: Toolbox, worker_id: UUID, database: str
    ) -> None:
        self._settings = settings
        self._forwarder = WorkerForwarder(worker_id, database, self)
        self._turn_service = turn_service
        self._toolbox = toolbox
        self._bus = InMemorySubscriptionBus()
        self._listening = ListenHandler(self._bus)
        self._manager = StreamableHTTPSessionManager(
            app=self._create_server(),
            security_settings=_transport_security(settings),
            max_request_body_size=settings.max_body_bytes,
        )
        self._app = StreamableHTTPASGIApp(self._manager)
        self._legacy_sessions = LruDict[str, ServerSession](_MAX_LEGACY_SESSIONS)

    @asynccontextmanager
    async def run_sessions(self) -> AsyncGenerator[None]:
        async with self._manager.run():
            try:
                yield
            finally:
                self._listening.close()
                await self._forwarder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, _, worker = Headers(scope=scope).get(_SESSION_HEADER, "").rpartition("-")
        if session and await self._forwarder.forward_request(worker, scope, receive, send):
            return
        principal: Principal = scope[PRINCIPAL_SCOPE_KEY]
        # httptools leaves blanks behind a value, which are no part of it: `Mcp-Name` must match the body's name.
        headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if session and worker == self._forwarder.name:
            MutableHeaders(raw=headers)[_SESSION_HEADER] = session
        # The SDK lets nobody into a session but who has begun it.
        user = AuthenticatedUser(
            AccessToken(token="", client_id=principal.key or "", scopes=[], subject=principal.user)
        )
        await self._app({**scope, "user": user, "headers": headers}, receive, self._add_worker_name(send))

    def _add_worker_name(self, send: Send) -> Send:
        async def naming(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if (session := headers.get(_SESSION_HEADER)) is not None:
                    await self._forwarder.start_listening()
                    headers[_SESSION_HEADER] = f"{session}-{self._forwarder.name}"
            await send(message)

        return naming

    async def notify_tools_changed(self) -> None:
        """Tell the hosts that listen, and those of the handshake era, on the stream that they hold open for it."""
        await self._bus.publish(ToolsListChanged())
        told = await asyncio.gather(*(self._notify_legacy_session(name) for name in list(self._legacy_sessions)))
        if told:
            log.debug("hosts_told", hosts=sum(told), lost=len(told) - sum(told))

    async def _notify_legacy_session(self, name: str) -> bool:
        try:
            async with asyncio.timeout(_NOTIFY_TIMEOUT_SECONDS):
                await self._legacy_sessions[name].send_tool_list_changed()
        except (TimeoutError, *HOST_GONE):
            self._legacy_sessions.pop(name, None)  # it is gone
            return False
        return True

    def _remember_session(self, ctx: Context) -> None:
        """Who lists tools in a session is told when they change."""
        request: object = ctx.request
        name = request.headers.get("mcp-session-id") if isinstance(request, Request) else None
        if name is not None:
            self._legacy_sessions[name] = ctx.session

    def stop_listening(self) -> None:
        """End the open listen streams, each with its last message."""
        self._listening.close()
        self._forwarder.abort_connections()

    def _create_server(self) -> Server[Any]:
        server: Server[Any] = Server(
            "agent-gateway",
            version=__version__,
            title="MCP agent gateway",
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete_argument,
            on_subscriptions_listen=self._listening,
        )
        options = server.create_initialization_options
        # Hosts of the handshake era are told here that the list of tools may change.

        def with_changes(*_arguments: Any, **_options: Any) -> Any:
            return options(NotificationOptions(tools_changed=True))

        server.create_initialization_options = with_changes
        return server

    # --- tools

    async def _list_tools(self, ctx: Context, _params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
        principal = get_principal(ctx)
        self._remember_session(ctx)
        specs = [spec for spec in self._toolbox.specs() if principal.can_use_tool(spec)]
        if may_ask_agent(principal):
            specs.append(ASK_AGENT)
        return t.ListToolsResult(tools=[to_mcp_tool(spec) for spec in specs])

    async def _call_tool(
        self, ctx: Context, params: t.CallToolRequestParams
    ) -> t.CallToolResult | t.InputRequiredResult:
        arguments = params.arguments or {}
        principal = get_principal(ctx)
        if principal.role == "viewer":
            raise MCPError(t.INVALID_REQUEST, "A viewer may not call tools.")
        host = HostObserver(ctx)
        if params.name == ASK_AGENT.name and may_ask_agent(principal):
            return to_call_result(*await ask_agent(self._turn_service, params, principal, host))
        spec = self._toolbox.find(params.name)
        if spec is None or not principal.can_use_tool(spec):
            raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name[:200]}")
        answers = parse_answers(params)
        for _ in range(_MAX_ROUNDS):
            result = await self._toolbox.call(spec, arguments, principal=principal, observer=host, answers=answers)
            if isinstance(result, ToolResult):
                return to_call_result(result)
            if not ctx.session.can_send_request:
                return to_input_required(result)
            answers = [await host.ask_and_keep(question, result.state) for question in result.questions]
        raise MCPError(t.INTERNAL_ERROR, f"The tool asked more than {_MAX_ROUNDS} times.")

    # --- resources and prompts

    async def _list_resources(self, ctx: Context, _params: t.PaginatedRequestParams | None) -> t.ListResourcesResult:
        return t.ListResourcesResult.model_validate({"resources": await self._list_items("resources", ctx)})

    async def _list_templates(
        self, ctx: Context, _params: t.PaginatedRequestParams | None
    ) -> t.ListResourceTemplatesResult:
        templates = await self._list_items("resource_templates", ctx)
        return t.ListResourceTemplatesResult.model_validate({"resourceTemplates": templates})

    async def _list_prompts(self, ctx: Context, _params: t.PaginatedRequestParams | None) -> t.ListPromptsResult:
        return t.ListPromptsResult.model_validate({"prompts": await self._list_items("prompts", ctx)})

    async def _list_items(self, kind: Listed, ctx: Context) -> list[JsonObject]:
        items = await self._toolbox.listed(kind, get_principal(ctx))
        return [{name: value for name, value in item.items() if name not in ("server", "prompt")} for item in items]

    async def _read_resource(self, ctx: Context, params: t.ReadResourceRequestParams) -> t.ReadResourceResult:
        with mcp_errors():
            read = await self._toolbox.read_resource(params.uri, get_principal(ctx))
        return t.ReadResourceResult.model_validate(read)

    async def _get_prompt(self, ctx: Context, params: t.GetPromptRequestParams) -> t.GetPromptResult:
        with mcp_errors():
            prompt = await self._toolbox.get_prompt(params.name, params.arguments or {}, get_principal(ctx))
        return t.GetPromptResult.model_validate(prompt)

    async def _complete_argument(self, ctx: Context, params: t.CompleteRequestParams) -> t.CompleteResult:
        ref = params.ref.model_dump(mode="json", by_alias=True, exclude_none=True)
        argument = params.argument.model_dump(mode="json")
        with mcp_errors():
            completed = await self._toolbox.complete(ref, argument, get_principal(ctx))
        return t.CompleteResult.model_validate(completed)


def _transport_security(settings: Settings) -> TransportSecuritySettings:
    """Protection against DNS rebinding on a loopback address. `SecurityMiddleware` checks the host, too."""
    if not is_loopback(settings.gateway_host) or settings.trusted_hosts:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    local = [f"{host}:*" for host in ("127.0.0.1", "localhost", "[::1]")]
    origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in local]
    return TransportSecuritySettings(
        allowed_hosts=[*local, *(host.removesuffix(":*") for host in local)],
        allowed_origins=[*origins, *settings.cors_origins],
    )

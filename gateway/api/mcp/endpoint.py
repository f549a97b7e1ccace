"""The gateway as an MCP server at `/mcp`, with toolsets below it.

It offers the tools, resources and prompts of every connected server, and `ask_agent`, which runs a turn.
Authentication, permissions and turns are those of the HTTP API. The approval policy of turns applies to `ask_agent`;
for the other tools, hosts ask their users before a call.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import mcp.types as t
import msgspec
from mcp import MCPError
from mcp.server.apps import EXTENSION_ID as APPS_EXTENSION
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerMiddleware
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.server.subscriptions import ListenHandler
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from gateway import __version__
from gateway.agent.service import TurnService
from gateway.api.deps import add_forwarded_headers
from gateway.api.mcp.app_resources import AppResources
from gateway.api.mcp.ask_agent import ASK_AGENT, ask_agent, may_ask_agent
from gateway.api.mcp.handshake import GatewayServer, HandshakeMiddleware
from gateway.api.mcp.host import SESSION_HEADER, Context, HostObserver, get_principal, get_session_name, mcp_errors
from gateway.api.mcp.legacy_sessions import LegacySessionManager
from gateway.api.mcp.list_changes import ListChangeAnnouncer
from gateway.api.mcp.pages import cut_page
from gateway.api.mcp.question_state import QuestionStates
from gateway.api.mcp.resource_subscriptions import ResourceSubscriptions
from gateway.api.mcp.resource_uris import qualify_duplicates, split_uri
from gateway.api.mcp.schemas import make_server_key, parse_answers, to_call_result, to_input_required, to_mcp_tool
from gateway.api.mcp.session_forwarding import WorkerForwarder
from gateway.api.mcp.suspended_calls import HostCall, SendCall, SuspendedCalls, find_holder, prepare_program
from gateway.api.mcp.tasks.host_tasks import HostTasks
from gateway.api.mcp.tasks.messages import mark_task_support
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.load import LoadMonitor
from gateway.common.logging import get_logger
from gateway.common.mcp_meta import LOG_LEVEL, remove_connection_keys
from gateway.common.timeouts import Timeouts
from gateway.config import Settings
from gateway.domain.errors import Overloaded
from gateway.domain.messages import JsonObject, ToolResult, ToolSpec
from gateway.domain.toolsets import bind_toolset
from gateway.ports.code import HostTools
from gateway.ports.tools import (
    ITEM_NAME_FIELDS,
    ChangeKind,
    HostExchange,
    InputNeeded,
    ItemKind,
    Toolbox,
    ToolCallRequest,
)
from gateway.store.lists.mcp_tasks import McpTaskStore

log = get_logger(__name__)

_TOOLSET_PATH = re.compile(r"/mcp/([^/]+)$")
_MAX_ROUNDS = 10


class McpEndpoint:
    """ASGI application for `/mcp`, which serves while `run_sessions()` is open.

    A session of the legacy protocol lives in the worker that created it. Its id ends with the worker's name, so that
    other workers can forward its requests. See docs/adr/0014.
    """

    def __init__(
        self,
        settings: Settings,
        turn_service: TurnService,
        toolbox: Toolbox,
        worker_id: UUID,
        database: str,
        load: LoadMonitor,
        timeouts: Timeouts,
        question_states: QuestionStates,
        programs: HostTools,
        tasks: McpTaskStore,
    ) -> None:
        self._settings = settings
        self._question_states = question_states
        self._load = load
        self._programs = programs
        self._forwarder = WorkerForwarder(worker_id, database, self, timeouts)
        self._turn_service = turn_service
        self._toolbox = toolbox
        self._list_changes = ListChangeAnnouncer()
        self._listening = ListenHandler(self._list_changes.bus)
        self._suspended = SuspendedCalls(self._forwarder.name, question_states)
        self._app_resources = AppResources()
        self._subscriptions = ResourceSubscriptions(toolbox, self._app_resources, self._list_changes.bus)
        self._log_levels: dict[str, str] = {}
        self._tasks = HostTasks(settings, turn_service, toolbox, tasks)
        self._server = self._create_server()
        self._manager = LegacySessionManager(self._server, settings, self._forget_session)
        self._app = StreamableHTTPASGIApp(self._manager)

    @asynccontextmanager
    async def run_sessions(self) -> AsyncGenerator[None]:
        """Serve sessions until the context is left."""
        async with self._manager.run():
            try:
                yield
            finally:
                self._close_listen_streams()
                await self._suspended.stop()
                await self._tasks.streams.stop()
                await self._forwarder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, _, worker = Headers(scope=scope).get(SESSION_HEADER, "").rpartition("-")
        holder, receive = (worker, receive) if session else await find_holder(scope, receive)
        if holder and await self._forwarder.forward_request(holder, scope, receive, send):
            return
        principal = add_forwarded_headers(scope[PRINCIPAL_SCOPE_KEY], Headers(scope=scope), self._toolbox)
        await self._toolbox.connect_user(principal)
        if (path := _TOOLSET_PATH.search(scope["path"])) is not None:
            principal = bind_toolset(principal, path[1])
            self._toolbox.list_missing_tools(principal)
        # httptools keeps trailing blanks of values; with them, `Mcp-Name` would not match the name in the body.
        headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if session and worker == self._forwarder.name:
            MutableHeaders(raw=headers)[SESSION_HEADER] = session
        # The SDK compares this user with the user who created the session, and rejects others.
        user = AuthenticatedUser(
            AccessToken(token="", client_id=principal.key or "", scopes=[], subject=principal.user)
        )
        caller = {"user": user, PRINCIPAL_SCOPE_KEY: principal}
        await self._app({**scope, **caller, "headers": headers}, receive, self._add_worker_name(send))

    def _add_worker_name(self, send: Send) -> Send:
        async def send_with_worker_name(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if (session := headers.get(SESSION_HEADER)) is not None:
                    await self._forwarder.start_listening()
                    headers[SESSION_HEADER] = f"{session}-{self._forwarder.name}"
            await send(message)

        return send_with_worker_name

    async def notify_changes(self, kinds: Collection[ChangeKind], user: str | None = None) -> None:
        """Tell hosts to read lists again; with a `user`, only that user's."""
        await self._list_changes.announce(kinds, user)

    def _remember_session(self, ctx: Context) -> None:
        """Remember a legacy session that lists something, to notify it of changes."""
        if (name := get_session_name(ctx)) is not None:
            self._list_changes.add_session(name, ctx.session, get_principal(ctx).user)

    @property
    def session_count(self) -> int:
        """Number of open legacy sessions of this worker."""
        return len(self._manager)

    def _forget_session(self, name: str) -> None:
        self._list_changes.remove_session(name)
        self._log_levels.pop(name, None)
        self._subscriptions.end_session(name)
        self._toolbox.close_host(name)
        self._tasks.streams.end_session(name)

    async def _set_log_level(self, ctx: Context, params: t.SetLevelRequestParams) -> t.EmptyResult:
        """Remember the lowest log level that a legacy host wants."""
        if (name := get_session_name(ctx)) is not None:
            self._log_levels[name] = params.level
        return t.EmptyResult()

    async def _on_roots_changed(self, ctx: Context, _params: t.NotificationParams) -> None:
        if (name := get_session_name(ctx)) is not None:
            await self._toolbox.announce_roots_change(name)

    def _get_log_level(self, ctx: Context) -> str | None:
        """Return the log level of this request or of its legacy session."""
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return _get_meta(ctx).get(LOG_LEVEL)
        return self._log_levels.get(get_session_name(ctx) or "")

    def stop_listening(self) -> None:
        """End the open listen streams, each with its final message."""
        self._close_listen_streams()
        self._forwarder.abort_connections()

    def _close_listen_streams(self) -> None:
        self._listening.close()
        self._subscriptions.close()

    def add_middleware(self, middleware: ServerMiddleware[JsonObject]) -> None:
        """Add a middleware around all messages, inside of the SDK's own span."""
        self._server.middleware.insert(1, middleware)

    def _create_server(self) -> Server[JsonObject]:
        server = GatewayServer(
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
            on_subscriptions_listen=self._listen,
        )
        server.add_request_handler("resources/subscribe", t.SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", t.UnsubscribeRequestParams, self._unsubscribe)
        server.add_request_handler("logging/setLevel", t.SetLevelRequestParams, self._set_log_level)
        server.add_notification_handler(
            "notifications/roots/list_changed", t.NotificationParams, self._on_roots_changed
        )
        server.extensions[APPS_EXTENSION] = {}
        server.middleware.append(HandshakeMiddleware(self._toolbox))
        self._tasks.register_methods(server)
        return server

    async def _listen(self, ctx: Context, params: t.SubscriptionsListenRequestParams) -> t.SubscriptionsListenResult:
        """Serve a listen stream of the current protocol."""
        with self._list_changes.bus.listening_as(get_principal(ctx).user):
            has_resources = bool(params.notifications.resource_subscriptions)
            listen = self._subscriptions.listen if has_resources else self._listening
            return await self._tasks.streams.listen(ctx, params, listen)

    async def _subscribe(self, ctx: Context, params: t.SubscribeRequestParams) -> t.EmptyResult:
        if (name := get_session_name(ctx)) is not None:
            await self._subscriptions.subscribe(ctx, name, params.uri)
        return t.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: t.UnsubscribeRequestParams) -> t.EmptyResult:
        if (name := get_session_name(ctx)) is not None:
            await self._subscriptions.unsubscribe(name, params.uri)
        return t.EmptyResult()

    # --- tools

    async def _list_tools(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
        principal = get_principal(ctx)
        self._remember_session(ctx)
        all_specs = self._toolbox.list_specs(principal)
        specs = [spec for spec in all_specs if principal.can_use_tool(spec)]
        if self._is_code_mode(ctx):
            specs = list(self._programs.list_specs(principal))
        if may_ask_agent(principal):
            specs.append(ASK_AGENT)
        page, cursor = cut_page(specs, params, lambda spec: spec.name)
        is_modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        shown = [self._app_resources.qualify_tool(spec, all_specs) for spec in page]
        tools = [
            mark_task_support(to_mcp_tool(spec, is_modern=is_modern), ctx.protocol_version, spec.runs_as_task)
            for spec in shown
        ]
        return t.ListToolsResult(tools=tools, next_cursor=cursor)

    async def _call_tool(
        self, ctx: Context, params: t.CallToolRequestParams
    ) -> t.CallToolResult | t.InputRequiredResult:
        principal = get_principal(ctx)
        if principal.role == "viewer":
            raise MCPError(t.INVALID_REQUEST, "A viewer may not call tools.")
        try:
            self._load.check_capacity()
        except Overloaded as error:
            raise MCPError(t.INTERNAL_ERROR, error.message) from None
        log_level = self._get_log_level(ctx)
        host = HostObserver(ctx, log_level)
        if params.name == ASK_AGENT.name and may_ask_agent(principal):
            result = to_call_result(
                *await ask_agent(self._turn_service, params, principal, host, self._settings.gateway_tools)
            )
        elif self._is_code_mode(ctx) and (run := self._programs.prepare_host_tool(params.name, principal)) is not None:
            result = await self._finish_call(ctx, params, params.name, host, lambda: prepare_program(params, run))
        else:
            spec = self._toolbox.find_tool(params.name, principal)
            if spec is None or not principal.can_use_tool(spec):
                raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name[:200]}")
            prepare = partial(self._prepare_call, ctx, params, spec, host, log_level)
            result = await self._finish_call(ctx, params, spec.identity, host, prepare)
        await host.wait_until_notified()
        return result

    def _is_code_mode(self, ctx: Context) -> bool:
        """Return whether the host's model writes programs."""
        asked = None if ctx.request is None else ctx.request.query_params.get("mode")
        if asked is not None:
            return asked == "code"
        of_key = get_principal(ctx).code
        return of_key == "only" or (of_key != "off" and self._settings.mcp_code_mode)

    async def _finish_call(
        self,
        ctx: Context,
        params: t.CallToolRequestParams,
        name: str,
        host: HostObserver,
        prepare: Callable[[], SendCall],
    ) -> t.CallToolResult | t.InputRequiredResult:
        """Continue the call that the host answers, or make a new one."""
        principal = get_principal(ctx)
        call = self._suspended.resume(params.request_state, name, principal)
        if call is not None:
            call.answer(host, parse_answers(params, None))
        else:
            call = HostCall(principal.user, prepare(), host, self._suspended.has_room)
        for _ in range(_MAX_ROUNDS):
            result = await call.wait()
            if isinstance(result, ToolResult):
                return to_call_result(result, is_modern=ctx.protocol_version in MODERN_PROTOCOL_VERSIONS)
            if not call.has_ended:
                await self._forwarder.start_listening()
                return to_input_required(self._suspended.suspend(call, result, name, principal))
            if not host.is_asked_inline and all(map(host.can_answer, result.questions)):
                return to_input_required(self._question_states.seal(result, name, principal))
            call.repeat([await host.collect_answer(question, result.state) for question in result.questions])
        raise MCPError(t.INTERNAL_ERROR, f"The tool asked questions more than {_MAX_ROUNDS} times.")

    def _prepare_call(
        self, ctx: Context, params: t.CallToolRequestParams, spec: ToolSpec, host: HostObserver, log_level: str | None
    ) -> SendCall:
        principal = get_principal(ctx)
        state = self._question_states.open(params.request_state, spec.identity, principal)
        request = ToolCallRequest(
            spec,
            params.arguments or {},
            principal,
            answers=parse_answers(params, state),
            idempotency_key=make_server_key(params, principal),
            is_whole=True,
            host=host.profile,
            meta=remove_connection_keys(_get_meta(ctx)) or {},
            log_level=log_level,
        )
        return lambda observer, answers: self._toolbox.call_tool(
            msgspec.structs.replace(request, observer=observer, answers=answers or request.answers)
        )

    # --- resources and prompts

    async def _list_resources(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListResourcesResult:
        return t.ListResourcesResult.model_validate(await self._list_items("resources", ctx, params))

    async def _list_templates(
        self, ctx: Context, params: t.PaginatedRequestParams | None
    ) -> t.ListResourceTemplatesResult:
        page = await self._list_items("resource_templates", ctx, params)
        return t.ListResourceTemplatesResult.model_validate({**page, "resourceTemplates": page["resource_templates"]})

    async def _list_prompts(self, ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListPromptsResult:
        return t.ListPromptsResult.model_validate(await self._list_items("prompts", ctx, params))

    async def _list_items(self, kind: ItemKind, ctx: Context, params: t.PaginatedRequestParams | None) -> JsonObject:
        self._remember_session(ctx)
        items = list(qualify_duplicates(kind, await self._toolbox.list_server_items(kind, get_principal(ctx))))
        page, cursor = cut_page(items, params, lambda item: f"{item['server']} {item[ITEM_NAME_FIELDS[kind]]}")
        shown = [{name: value for name, value in item.items() if name not in ("server", "prompt")} for item in page]
        return {kind: shown, "nextCursor": cursor}

    async def _answer_host(
        self,
        ctx: Context,
        params: t.InputResponseRequestParams,
        name: str,
        send: Callable[[HostExchange], Awaitable[JsonObject]],
        uri: str | None = None,
    ) -> JsonObject | t.InputRequiredResult:
        """Send a request that is not a call, with its server's questions."""
        host, principal = HostObserver(ctx), get_principal(ctx)
        answers = parse_answers(params, self._question_states.open(params.request_state, name, principal))
        meta = remove_connection_keys(_get_meta(ctx)) or {}
        for _ in range(_MAX_ROUNDS):
            try:
                with mcp_errors(ctx, uri):
                    return await send(HostExchange(host.profile, answers, meta))
            except InputNeeded as needed:
                pending = needed.pending
            if not ctx.session.can_send_request and all(map(host.can_answer, pending.questions)):
                return to_input_required(self._question_states.seal(pending, name, principal))
            answers = [await host.collect_answer(question, pending.state) for question in pending.questions]
        raise MCPError(t.INTERNAL_ERROR, f"The server asked questions more than {_MAX_ROUNDS} times.")

    async def _read_resource(
        self, ctx: Context, params: t.ReadResourceRequestParams
    ) -> t.ReadResourceResult | t.InputRequiredResult:
        server, uri = self._app_resources.find_server(params.uri, self._toolbox.list_specs(get_principal(ctx)))
        read = partial(self._toolbox.read_resource, uri, get_principal(ctx), server)
        result = await self._answer_host(ctx, params, f"resource {params.uri}", read, params.uri)
        if isinstance(result, t.InputRequiredResult):
            return result
        contents = [part | {"uri": params.uri} if part.get("uri") == uri else part for part in result["contents"]]
        return t.ReadResourceResult.model_validate({**result, "contents": contents})

    async def _get_prompt(
        self, ctx: Context, params: t.GetPromptRequestParams
    ) -> t.GetPromptResult | t.InputRequiredResult:
        get = partial(self._toolbox.get_prompt, params.name, params.arguments or {}, get_principal(ctx), None)
        result = await self._answer_host(ctx, params, f"prompt {params.name}", get)
        return result if isinstance(result, t.InputRequiredResult) else t.GetPromptResult.model_validate(result)

    async def _complete_argument(self, ctx: Context, params: t.CompleteRequestParams) -> t.CompleteResult:
        ref = params.ref.model_dump(mode="json", by_alias=True, exclude_none=True)
        argument = params.argument.model_dump(mode="json")
        server = None
        if isinstance(params.ref, t.ResourceTemplateReference):
            server, ref["uri"] = split_uri(params.ref.uri)
        with mcp_errors(ctx):
            known = params.context.arguments if params.context is not None else None
            completion = await self._toolbox.complete_argument(ref, argument, get_principal(ctx), server, known)
        return t.CompleteResult.model_validate(completion)


def _get_meta(ctx: Context) -> JsonObject:
    """Return the `_meta` of a request as the host wrote it."""
    return (ctx.params or {}).get("_meta") or {}


class McpRoute:
    """Forwards requests to the endpoint, which exists once the application has started."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._state.mcp(scope, receive, send)

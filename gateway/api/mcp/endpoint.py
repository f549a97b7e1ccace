"""The gateway as an MCP server, at exactly `/mcp`: the tools, resources and prompts of every connected server at once.

Beside them stands `ask_agent`, which runs a turn. Who attaches here is who calls the HTTP API: the same keys, the same
turns. The host asks its user before a call, as hosts do; the approval policy of turns holds for `ask_agent`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import mcp.types as t
from mcp import MCPError
from mcp.server import NotificationOptions
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
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
from gateway.agent.runner import Runner
from gateway.api.mcp.session_forwarding import Peers
from gateway.api.security.authentication import PRINCIPAL
from gateway.common.logging import get_logger
from gateway.config import Settings, is_loopback
from gateway.domain.errors import GatewayError, NotFound
from gateway.domain.events import ToolCallStarted, TurnCancelled, TurnFailed, TurnStarted
from gateway.domain.messages import (
    Answer,
    InputNeeded,
    JsonObject,
    KeptInput,
    Message,
    Parameters,
    Principal,
    Question,
    ToolResult,
    ToolSpec,
    TurnRequest,
    text_block,
)
from gateway.ports.tools import Listed, Toolbox

log = get_logger(__name__)

_SESSION = "mcp-session-id"
_MOST_ROUNDS = 10
_MAX_LEGACY_SESSIONS = 1_000
_NOTIFY_TIMEOUT_SECONDS = 5.0
ASK_AGENT = ToolSpec(
    name="ask_agent",
    server="",
    tool="ask_agent",
    title="Ask the agent",
    description=(
        "Give a task to the gateway's own agent: it works with the gateway's model and all of its tools, and answers "
        "in text. Use it for what takes several tools in a row. Pass the conversation_id of an answer to go on from it."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "description": "The task, with all that the agent must know."},
            "conversation_id": {"type": "string", "description": "From an earlier answer, to go on from it."},
            "model": {"type": "string", "description": "A model of the gateway's. Leave it out for the usual one."},
        },
        "required": ["prompt"],
        "additionalProperties": False,
    },
    output_schema={
        "type": "object",
        "properties": {
            "response": {"type": "string"},
            "turn_id": {"type": "string"},
            "conversation_id": {"type": ["string", "null"]},
        },
        "required": ["response", "turn_id"],
    },
    destructive=False,
)
Context = ServerRequestContext[Any, Any]


class McpEndpoint:
    """The ASGI application for `/mcp`. Serves while `running()`.

    A session of the handshake era lives in the worker where it began. Its id ends with that worker's name, so that any
    other one knows whom to pass a request on to.
    """

    def __init__(self, settings: Settings, runner: Runner, toolbox: Toolbox, worker_id: UUID, database: str) -> None:
        self._settings = settings
        self._peers = Peers(worker_id, database, self)
        self._runner = runner
        self._toolbox = toolbox
        self._bus = InMemorySubscriptionBus()
        self._listening = ListenHandler(self._bus)
        self._manager = StreamableHTTPSessionManager(
            app=self._server(), security_settings=_security(settings), max_request_body_size=settings.max_body_bytes
        )
        self._app = StreamableHTTPASGIApp(self._manager)
        self._legacy_sessions: OrderedDict[str, ServerSession] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self._manager.run():
            try:
                yield
            finally:
                self._listening.close()
                await self._peers.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, _, worker = Headers(scope=scope).get(_SESSION, "").rpartition("-")
        if session and await self._peers.pass_on(worker, scope, receive, send):
            return
        principal: Principal = scope[PRINCIPAL]
        # httptools leaves blanks behind a value, which are no part of it: `Mcp-Name` must match the body's name.
        headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        if session and worker == self._peers.name:
            MutableHeaders(raw=headers)[_SESSION] = session
        # The SDK lets nobody into a session but who has begun it.
        user = AuthenticatedUser(
            AccessToken(token="", client_id=principal.key or "", scopes=[], subject=principal.user)
        )
        await self._app({**scope, "user": user, "headers": headers}, receive, self._naming_worker(send))

    def _naming_worker(self, send: Send) -> Send:
        async def naming(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if (session := headers.get(_SESSION)) is not None:
                    await self._peers.open()
                    headers[_SESSION] = f"{session}-{self._peers.name}"
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
        except (TimeoutError, MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._legacy_sessions.pop(name, None)  # it is gone
            return False
        return True

    def _remember(self, ctx: Context) -> None:
        """Who lists tools in a session is told when they change."""
        request: object = ctx.request
        name = request.headers.get("mcp-session-id") if isinstance(request, Request) else None
        if name is not None:
            self._legacy_sessions[name] = ctx.session
            self._legacy_sessions.move_to_end(name)
            if len(self._legacy_sessions) > _MAX_LEGACY_SESSIONS:
                self._legacy_sessions.popitem(last=False)

    def stop_listening(self) -> None:
        """End the open listen streams, each with its last message."""
        self._listening.close()
        self._peers.hang_up()

    def _server(self) -> Server[Any]:
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
            on_completion=self._complete,
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
        principal = _principal(ctx)
        self._remember(ctx)
        specs = [spec for spec in self._toolbox.specs() if principal.may_use(spec)]
        return t.ListToolsResult(tools=[_tool(spec) for spec in (*specs, *_agent_for(principal))])

    async def _call_tool(
        self, ctx: Context, params: t.CallToolRequestParams
    ) -> t.CallToolResult | t.InputRequiredResult:
        arguments = params.arguments or {}
        principal = _principal(ctx)
        if principal.role == "viewer":
            raise MCPError(t.INVALID_REQUEST, "A viewer may not call tools.")
        if params.name == ASK_AGENT.name and _agent_for(principal):
            return await self._ask_agent(ctx, arguments)
        spec = self._toolbox.find(params.name)
        if spec is None or not principal.may_use(spec):
            raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name[:200]}")
        answers = _answers(params)
        observer = _Host(ctx)
        for _ in range(_MOST_ROUNDS):
            result = await self._toolbox.call(spec, arguments, principal=principal, observer=observer, answers=answers)
            if isinstance(result, ToolResult):
                return _result(result)
            if not ctx.session.can_send_request:
                return _asked(result)
            answers = [await observer.answered(question, result.state) for question in result.questions]
        raise MCPError(t.INTERNAL_ERROR, f"The tool asked more than {_MOST_ROUNDS} times.")

    async def _ask_agent(self, ctx: Context, arguments: JsonObject) -> t.CallToolResult:
        prompt = arguments.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            return _result(ToolResult("error", [text_block("prompt: a text is needed.")]))
        if len(prompt) > (most := self._settings.max_message_chars):
            told = f"prompt: at most {most:,} characters, not {len(prompt):,}."
            return _result(ToolResult("error", [text_block(told)]))
        request = TurnRequest(
            messages=(Message("user", prompt),),
            model=str(arguments.get("model") or self._settings.default_model),
            parameters=_defaults(self._settings),
            conversation_id=str(arguments.get("conversation_id") or "new"),
        )
        try:
            turn = await self._runner.start(request, _principal(ctx))
        except GatewayError as error:
            return _result(ToolResult("error", [text_block(error.message)]))
        turn.join()
        try:
            conversation, steps = None, 0
            async for batch in turn.log.follow():
                for entry in batch:
                    match entry.event:
                        case TurnStarted() as started:
                            conversation = started.conversation_id
                        case ToolCallStarted() as call:
                            steps += 1
                            await ctx.session.report_progress(steps, None, f"{call.tool} …")
                        case TurnFailed() | TurnCancelled() as end:
                            return _result(ToolResult("error", [text_block(end.error.message)]))
                        case _:
                            pass
        finally:
            turn.leave()
        told = turn.transcript.response or _waiting(turn.id)
        structured = {"response": told, "turn_id": str(turn.id), "conversation_id": conversation}
        return _result(ToolResult("ok", [text_block(told)], structured))

    # --- resources and prompts

    async def _list_resources(self, ctx: Context, _params: t.PaginatedRequestParams | None) -> t.ListResourcesResult:
        return t.ListResourcesResult.model_validate({"resources": await self._listed("resources", ctx)})

    async def _list_templates(
        self, ctx: Context, _params: t.PaginatedRequestParams | None
    ) -> t.ListResourceTemplatesResult:
        templates = await self._listed("resource_templates", ctx)
        return t.ListResourceTemplatesResult.model_validate({"resourceTemplates": templates})

    async def _list_prompts(self, ctx: Context, _params: t.PaginatedRequestParams | None) -> t.ListPromptsResult:
        return t.ListPromptsResult.model_validate({"prompts": await self._listed("prompts", ctx)})

    async def _listed(self, kind: Listed, ctx: Context) -> list[JsonObject]:
        items = await self._toolbox.listed(kind, _principal(ctx))
        return [{name: value for name, value in item.items() if name not in ("server", "prompt")} for item in items]

    async def _read_resource(self, ctx: Context, params: t.ReadResourceRequestParams) -> t.ReadResourceResult:
        with _told_to_host():
            read = await self._toolbox.read_resource(params.uri, _principal(ctx))
        return t.ReadResourceResult.model_validate(read)

    async def _get_prompt(self, ctx: Context, params: t.GetPromptRequestParams) -> t.GetPromptResult:
        with _told_to_host():
            prompt = await self._toolbox.get_prompt(params.name, params.arguments or {}, _principal(ctx))
        return t.GetPromptResult.model_validate(prompt)

    async def _complete(self, ctx: Context, params: t.CompleteRequestParams) -> t.CompleteResult:
        ref = params.ref.model_dump(mode="json", by_alias=True, exclude_none=True)
        argument = params.argument.model_dump(mode="json")
        with _told_to_host():
            completed = await self._toolbox.complete(ref, argument, _principal(ctx))
        return t.CompleteResult.model_validate(completed)


class _Host:
    """The host that has called: hears of progress, and asks its user where its protocol lets it be asked in a call."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._telling: set[asyncio.Task[None]] = set()

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._tell(self._ctx.session.report_progress(progress, total, message))

    def log(self, level: str, message: str) -> None:
        known: Any = level
        session: Any = self._ctx.session  # logging is deprecated in the protocol, and still what older hosts show
        self._tell(session.send_log_message(known, message, related_request_id=self._ctx.request_id))

    async def ask(self, question: Question) -> Answer:
        session = self._ctx.session
        if not session.can_send_request:
            return Answer("decline")
        try:
            if question.url is not None:
                told = await session.elicit_url(question.message, question.url, question.key, self._ctx.request_id)
            else:
                told = await session.elicit_form(question.message, question.schema or {}, self._ctx.request_id)
        except MCPError:  # the host cannot, or will not
            return Answer("decline")
        content: Any = told.content
        return Answer(told.action, content)

    async def answered(self, question: Question, state: str | None) -> KeptInput:
        return KeptInput(UUID(int=0), "", question, state, await self.ask(question))

    def _tell(self, telling: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(telling)
        self._telling.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("host_not_told", error=type(task.exception()).__name__)


class _told_to_host:  # noqa: N801 - reads as what it does
    """Our errors as JSON-RPC's."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, NotFound):
            raise MCPError(t.INVALID_PARAMS, error.message) from None
        if isinstance(error, GatewayError):
            raise MCPError(t.INTERNAL_ERROR, error.message) from None


def _principal(ctx: Context) -> Principal:
    request: object = ctx.request
    assert isinstance(request, Request)
    return request.scope[PRINCIPAL]


def _agent_for(principal: Principal) -> tuple[ToolSpec, ...]:
    """The agent, for those who may begin turns."""
    return (ASK_AGENT,) if principal.role != "viewer" and principal.may_enter("chat") else ()


def _tool(spec: ToolSpec) -> t.Tool:
    return t.Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=spec.input_schema,
        output_schema=spec.output_schema,
        annotations=t.ToolAnnotations(
            read_only_hint=spec.read_only,
            destructive_hint=spec.destructive,
            idempotent_hint=spec.idempotent,
            open_world_hint=spec.open_world,
        ),
    )


def _result(result: ToolResult) -> t.CallToolResult:
    if (refusal := result.refusal) is not None:
        raise MCPError(refusal["code"], refusal["message"], refusal["data"])
    told = {"content": result.content, "structuredContent": result.structured, "isError": result.outcome != "ok"}
    return t.CallToolResult.model_validate(told)


def _asked(needed: InputNeeded) -> t.InputRequiredResult:
    """The server's questions to whoever has called; its state goes with them, and comes back."""
    requests: dict[str, Any] = {}
    for question in needed.questions:
        params: JsonObject = {"mode": "form", "message": question.message, "requestedSchema": question.schema}
        if question.url is not None:
            params = {"mode": "url", "message": question.message, "url": question.url, "elicitationId": question.key}
        requests[question.key] = {"method": "elicitation/create", "params": params}
    told = {"resultType": "input_required", "inputRequests": requests, "requestState": needed.state}
    return t.InputRequiredResult.model_validate(told)


def _answers(params: t.CallToolRequestParams) -> list[KeptInput]:
    """What the host's user has answered, as the toolbox takes it."""
    answers: list[KeptInput] = []
    for key, response in (params.input_responses or {}).items():
        if isinstance(response, t.ElicitResult):
            content: Any = response.content
            question = Question(key, "question", "")
            answers.append(KeptInput(UUID(int=0), "", question, params.request_state, Answer(response.action, content)))
    return answers


def _defaults(settings: Settings) -> Parameters:
    return Parameters(
        settings.groq_temperature, settings.groq_top_p, settings.groq_max_tokens, None, settings.groq_reasoning_effort
    )


def _waiting(turn_id: UUID) -> str:
    return f"The agent waits for an answer of its user: see /api/v1/turns/{turn_id}."


def _security(settings: Settings) -> TransportSecuritySettings:
    """On this machine alone, a page in a browser must not reach us by a name of its own. See `Guard`, too."""
    if not is_loopback(settings.gateway_host) or settings.trusted_hosts:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    local = [f"{host}:*" for host in ("127.0.0.1", "localhost", "[::1]")]
    origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in local]
    return TransportSecuritySettings(
        allowed_hosts=[*local, *(host.removesuffix(":*") for host in local)],
        allowed_origins=[*origins, *settings.cors_origins],
    )

"""One MCP server: connected by a task of its own, kept connected, and asked from any task."""

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, cast

import httpx2
from mcp import Client, MCPError
from mcp.client.context import ClientRequestContext
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.types import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    CallToolResult,
    ElicitRequestParams,
    ElicitResult,
    Implementation,
    InputRequiredResult,
    LoggingMessageNotificationParams,
    ServerCapabilities,
    Tool,
    ToolListChangedNotification,
)

from gateway import __version__
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.common.urls import strip_url_secrets
from gateway.domain.messages import Answer, InputNeeded, JsonObject, KeptInput, Principal, Question
from gateway.mcp_client.caller_identity import TokenSigner, acting_for, forward
from gateway.mcp_client.elicitation import UnfitQuestion, answered, held_question, questions_of, responses_to
from gateway.mcp_client.http_transport import CONNECTION_CLOSED
from gateway.mcp_client.oauth.sign_in import Tokens
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.transports import open_way
from gateway.ports.tools import CallObserver, ServerStatus

log = get_logger(__name__)

T = TypeVar("T")
Ask = Callable[[Client], Awaitable[T]]
State = Literal["connecting", "up", "degraded", "needs_auth", "down", "disabled"]

_HANDSHAKE_SECONDS = 10.0
_START_SECONDS = 60.0
_LOOK_SECONDS = 30.0
_NO_LIMIT = 30 * 86400.0  # the SDK's own limit cannot stand still
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_MOST_PAGES, _MOST_TOOLS = 100, 1_000
_REFUSED: tuple[State, str] = ("needs_auth", "it refuses the credentials that it is sent")
_UNANSWERED = (MCPError, TimeoutError, ValueError, RuntimeError)
"""What the SDK raises where a list does not come; the last two over one that breaks the protocol."""
_GONE_MESSAGES = ("Session not found", "Session terminated")
_UNREADABLE = "Failed to parse"
"""So the SDK begins what it says of an answer that is none."""


class CallFailed(Exception):
    """A call had no result. `ran`: False if it provably never ran, None if nobody knows. `str()` is for the model.

    `lost`: the connection broke, so that another try may do better. `refusal` is the JSON-RPC error that the server
    answered with, if it was that. `sign_in`: somebody must sign in to the server first, which
    has refused the call with `challenge`.
    """

    def __init__(
        self,
        message: str,
        *,
        ran: bool | None,
        lost: bool = False,
        refusal: JsonObject | None = None,
        sign_in: bool = False,
        challenge: str = "",
    ) -> None:
        super().__init__(message)
        self.ran = ran
        self.lost = lost
        self.refusal = refusal
        self.sign_in = sign_in
        self.challenge = challenge


class Connection:
    """The SDK's `Client` to one server, entered and left by one task.

    A protocol 2026-07-28 client outlives its server's restarts: its listen stream tells when the server is away. An
    older one is bound to a session that the server forgets, so it is made anew. Calls wait `patience` seconds for a
    server that is just coming up, then fail.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        signer: TokenSigner | None,
        on_change: Callable[[], None],
        patience: float = 1.0,
        tokens: Tokens,
        principal: Principal | None = None,
    ) -> None:
        self.config = config
        self._tokens = tokens
        self.tools: tuple[Tool, ...] = ()
        self.instructions = ""
        self.checked = False
        self.tried = asyncio.Event()
        self._principal = principal
        self._hooks: list[Any] = [signer.add_token] if signer and config.identity == "gateway" else []
        if (header := config.forwarded_header) is not None:
            self._hooks.append(forward(header))
        self._on_change = on_change
        self._patience = patience
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._broken = asyncio.Event()
        self._stale = asyncio.Event()
        self._again = asyncio.Event()
        self._stopping = False
        self._owner: asyncio.Task[None] | None = None
        self._calls: set[_Call] = set()
        self._state: State = "connecting"
        self._since = datetime.now(UTC)
        self._reason: str | None = None
        self._version: str | None = None

    # --- life

    def start(self) -> None:
        if self.config.fault or self.config.disabled:
            self._become("disabled", self.config.fault or "disabled in the configuration")
            self.tried.set()
        else:
            with acting_for(self._principal) if self._principal else contextlib.nullcontext():
                self._owner = asyncio.create_task(self._own(), name=f"mcp {self.config.name}")

    async def retire(self, seconds: float) -> None:
        """Stop when the calls under way have ended, at most so many seconds from now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._calls:
                    await asyncio.wait([call.ended for call in self._calls])
        await self.stop()

    async def stop(self) -> None:
        """Leave the client, at most five seconds for a server that does not let go."""
        self._stopping = True
        self._broken.set()
        if self._owner is not None:
            await asyncio.wait({self._owner}, timeout=0.1 if self._client is None else 5)
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)

    async def _own(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._stopping:
            self._broken.clear()
            try:
                await self._connect_and_watch()
                pause = _SHORTEST_PAUSE
            except Exception as error:  # noqa: BLE001 - whatever ends a connection, another is tried; groups too
                state, reason = _REFUSED if self._tokens.refused else _reason(error)
                self._become(state, reason)
            finally:
                self._client = None
                self._up.clear()
                self.tried.set()
            if not self._stopping:
                self._again.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311
                        await self._again.wait()
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _connect_and_watch(self) -> None:
        """Stay connected until the connection breaks or is to stop. Runs whole in the owner's task."""
        patience = _START_SECONDS if self.config.transport == "stdio" else _HANDSHAKE_SECONDS
        async with contextlib.AsyncExitStack() as stack:
            way = await stack.enter_async_context(open_way(self.config, self._hooks, self._broken.set, self._tokens))
            async with asyncio.timeout(patience):
                client = await stack.enter_async_context(self._new_client(way.streams))
                await self._refresh(client)
            way.arm()
            self._client = client
            self._version = client.protocol_version
            self.instructions = client.instructions or ""
            self._become("up")
            self._up.set()
            self.tried.set()
            watching = asyncio.create_task(self._watch(client))
            try:
                await self._broken.wait()
            finally:
                self._client = None
                self._up.clear()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        if not self._stopping:
            ended = "its process ended" if self.config.transport == "stdio" else "the connection broke"
            self._become("down", f"the server forgot the session, or {ended}")

    def _new_client(self, streams: Any) -> Client:
        return Client(
            streams,
            read_timeout_seconds=_HANDSHAKE_SECONDS,
            message_handler=self._on_message,
            logging_callback=self._on_log,
            elicitation_callback=self._on_elicit,
            log_level="info",
            client_info=Implementation(name="agent-gateway", version=__version__),
        )

    async def _watch(self, client: Client) -> None:
        """Keep the tools fresh, and notice a server that is away."""
        while True:
            reason = "the server closed its stream of changes"
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    await self._refresh(client)  # nothing tells what changed while nobody listened
                    self._become("up")
                    self._up.set()
                    async for _ in changes:
                        await self._refresh(client)
            except ListenNotSupportedError:
                await self._watch_notifications(client)
            except (SubscriptionLost, *_UNANSWERED) as error:
                if isinstance(error, MCPError) and error.code == METHOD_NOT_FOUND:
                    reason = await self._look_now_and_then(client)
                else:
                    _, reason = _reason(error)
            self._up.clear()
            self._become("down", reason)
            if self.config.transport != "http":
                self._broken.set()  # nothing but a new connection brings it back
                return
            await asyncio.sleep(random.uniform(_SHORTEST_PAUSE, 2 * _SHORTEST_PAUSE))  # noqa: S311

    async def _look_now_and_then(self, client: Client) -> str:
        """A server of 2026-07-28 need not tell of changes; why it is away, once it is."""
        while True:
            try:
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await self._refresh(client)
            except _UNANSWERED as error:
                return _reason(error)[1]
            self._become("up")
            self._up.set()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch_notifications(self, client: Client) -> None:
        """Older servers push `tools/list_changed` into the session; it ends with the session."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._refresh(client)
            except _UNANSWERED:
                self._become("degraded", "its tools have changed, and it does not list them")
            else:
                self._become("up")

    async def _on_message(self, message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._stale.set()

    async def _on_log(self, params: LoggingMessageNotificationParams) -> None:
        if (call := self._call_meant()) is not None and call.observer is not None:
            call.observer.log(params.level, str(params.data))

    async def _on_elicit(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        """A server of the handshake era asks in the middle of a call. What names no call is declined."""
        call = self._call_meant()
        if call is None or call.observer is None:
            log.info("elicitation_declined", server=self.config.name, request=str(context.request_id))
            return ElicitResult(action="decline")
        return answered(await call.ask(held_question(params)))

    def _call_meant(self) -> "_Call | None":
        """The call whose response stream brought the message; or, where none did, the only one there is."""
        call = _current_call.get()
        if call is not None:
            return call
        return next(iter(self._calls)) if len(self._calls) == 1 else None

    async def _refresh(self, client: Client) -> None:
        tools: dict[str, Tool] = {}
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
            tools |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None or len(tools) >= _MOST_TOOLS:
                break
        found = tuple(sorted(tools.values(), key=lambda tool: tool.name)[:_MOST_TOOLS])
        self.checked = self.checked and found == self.tools
        self.tools = found
        self._on_change()

    def _become(self, state: State, reason: str | None = None) -> None:
        if state == self._state:
            return
        self._state, self._reason, self._since = state, reason, datetime.now(UTC)
        say = log.info if state == "up" else log.warning
        say("mcp_server", server=self.config.name, state=state, reason=reason, tools=len(self.tools))
        self._on_change()

    def forget_token(self) -> None:
        """What is kept of its grant may have changed."""
        self._tokens.forget()

    # --- use, from any task

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def needs_sign_in(self) -> bool:
        return self._state == "needs_auth" and self._tokens.may_come

    async def ready(self) -> tuple[Tool, ...]:
        """The server's tools, once it is connected.

        Raises:
            CallFailed: it is not.
        """
        await self._connected()
        return self.tools

    def status(self) -> ServerStatus:
        return ServerStatus(
            name=self.config.name,
            url=strip_url_secrets(self.config.url) or None,
            transport=self.config.transport,
            state=self._state,
            since=self._since.isoformat(timespec="milliseconds"),
            reason=self._reason,
            tools=len(self.tools) if self.up else 0,
            protocol_version=self._version,
        )

    async def call(
        self,
        tool: str,
        arguments: JsonObject,
        *,
        principal: Principal,
        timeout: float,
        observer: CallObserver | None,
        answers: Sequence[KeptInput] = (),
    ) -> CallToolResult | InputNeeded:
        """Run one tool as `principal`. Sent again once, and only if it provably never left or the session was gone.

        Raises:
            CallFailed: there is no result.
        """
        for _ in range(2):
            with contextlib.suppress(_NeverRan):
                return await self._call_once(tool, arguments, principal, timeout, observer, answers)
        raise self._unreachable()

    async def ask(self, question: Ask[T], *, principal: Principal, timeout: float) -> T:
        """Anything but a tool call: what the server has, what a resource holds, how a prompt reads.

        Raises:
            CallFailed: there is no answer.
        """
        client = await self._connected()
        try:
            async with asyncio.timeout(timeout):
                with acting_for(principal):
                    return await question(client)
        except TimeoutError:
            raise CallFailed(f"There was no answer within {timeout:g} seconds.", ran=None) from None
        except MCPError as error:
            failure = self._translated(error, client)
            raise failure if isinstance(failure, CallFailed) else self._unreachable() from error
        except (RuntimeError, ValueError) as error:  # what the SDK raises over an answer that breaks the protocol
            log.warning("mcp_bad_answer", server=self.config.name, error=type(error).__name__)
            raise CallFailed("The server's answer does not fit the protocol.", ran=True) from error

    @property
    def capabilities(self) -> ServerCapabilities | None:
        """What the server says it can do, while it is up."""
        return self._client.server_capabilities if self._client is not None and self.up else None

    async def _call_once(
        self,
        tool: str,
        arguments: JsonObject,
        principal: Principal,
        timeout: float,
        observer: CallObserver | None,
        answers: Sequence[KeptInput],
    ) -> CallToolResult | InputNeeded:
        client = await self._connected()
        deadline = PausableTimeout(timeout)
        try:
            async with deadline, _Call(observer, deadline, among=self._calls):
                with acting_for(principal):
                    result = await client.session.call_tool(
                        tool,
                        arguments,
                        read_timeout_seconds=_NO_LIMIT,
                        progress_callback=_progress_to(observer) if observer else None,
                        input_responses=responses_to(answers),
                        request_state=answers[0].state if answers else None,
                        allow_input_required=True,
                    )
                return questions_of(result) if isinstance(result, InputRequiredResult) else result
        except TimeoutError:
            raise CallFailed(
                f"There was no result within {timeout:g} seconds, and the call was given up.", ran=None
            ) from None
        except MCPError as error:
            raise self._translated(error, client) from error
        except UnfitQuestion as error:
            raise CallFailed(str(error), ran=False) from error
        except (RuntimeError, ValueError) as error:  # what the SDK raises over a result that breaks its own schema
            log.warning("mcp_bad_result", server=self.config.name, tool=tool, error=type(error).__name__)
            raise CallFailed("The server's result does not fit the tool's own output schema.", ran=True) from error

    async def _connected(self) -> Client:
        if self._state == "needs_auth":
            await self._try_again()
        try:
            async with asyncio.timeout(self._patience):
                if self._state == "connecting":
                    await self.tried.wait()
                    if self.needs_sign_in:
                        raise self._unauthorized()
                await self._up.wait()
        except TimeoutError:
            raise self._unreachable() from None
        if self._client is None:
            raise self._unreachable()
        return self._client

    async def _try_again(self) -> None:
        """Somebody may have signed in meanwhile.

        Raises:
            CallFailed: nobody has.
        """
        self.tried.clear()
        self._again.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await self.tried.wait()
        if self._state == "needs_auth":
            raise self._unauthorized()

    def _unauthorized(self) -> CallFailed:
        told = f"The MCP server {self.config.name!r} refuses the credentials that it is sent."
        return CallFailed(told, ran=False, sign_in=self._tokens.may_come, challenge=self._tokens.challenge)

    def _unreachable(self) -> CallFailed:
        return CallFailed(f"The MCP server {self.config.name!r} is not reachable now.", ran=False)

    def _translated(self, error: MCPError, client: Client) -> Exception:
        if self._tokens.refused:
            return self._unauthorized()
        if error.code == INVALID_REQUEST and error.message in _GONE_MESSAGES:
            self._lose(client)
            return _NeverRan()
        if error.code == PARSE_ERROR and error.message.startswith(_UNREADABLE):
            return CallFailed(f"The answer of the MCP server {self.config.name!r} cannot be read.", ran=None)
        if error.code == CONNECTION_CLOSED:
            unsent = isinstance(error.data, dict) and bool(error.data.get("unsent"))  # pyright: ignore
            if unsent:
                self._lose(client)
                return _NeverRan()
            if self.config.transport != "http":
                self._lose(client)
            told = f"The connection to the MCP server {self.config.name!r} was lost."
            return CallFailed(told, ran=None, lost=True)
        refusal = {"code": error.code, "message": error.message[:500], "data": error.data}
        return CallFailed(f"The MCP server refused the call: {error.message[:500]}", ran=False, refusal=refusal)

    def _lose(self, client: Client) -> None:
        """This client's server is gone: calls wait for the next one. A listening client finds out by itself."""
        if self._client is client:
            self._up.clear()
            self._broken.set()


class _Call:
    """One call under way, as what the server says meanwhile finds it."""

    def __init__(self, observer: CallObserver | None, deadline: PausableTimeout, *, among: "set[_Call]") -> None:
        self.observer = observer
        self._deadline = deadline
        self._among = among
        self._asking: set[asyncio.Task[Answer]] = set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._token: contextvars.Token[_Call | None] | None = None

    async def __aenter__(self) -> None:
        self._among.add(self)
        self._token = _current_call.set(self)

    async def __aexit__(self, *_: object) -> None:
        assert self._token is not None
        _current_call.reset(self._token)
        self._among.discard(self)
        self.ended.set_result(None)
        for task in self._asking:
            task.cancel()

    async def ask(self, question: Question) -> Answer:
        """A person's answer; the call's time stands still. A call that is over has cancelled its questions."""
        assert self.observer is not None
        task = asyncio.create_task(self.observer.ask(question))
        self._asking.add(task)
        try:
            with self._deadline.pause_timeout():
                await asyncio.wait((task,))
            return Answer("cancel") if task.cancelled() else task.result()
        finally:
            task.cancel()
            self._asking.discard(task)


_current_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("mcp_call", default=None)


class _NeverRan(Exception):
    """The request did not reach the tool: it may be sent again."""


def _progress_to(observer: CallObserver) -> Any:
    async def progress(progress: float, total: float | None, message: str | None) -> None:
        observer.progress(progress, total, message)

    return progress


def _reason(error: BaseException) -> tuple[State, str]:
    """What went wrong, for people: the innermost error's kind, without addresses or internals."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseException, error.exceptions[0])  # pyright: ignore[reportUnknownMemberType]
    match error:
        case httpx2.ConnectError():
            return "down", "nothing answers at its address"
        case TimeoutError() | httpx2.TimeoutException():
            return "down", "it does not answer in time"
        case httpx2.HTTPStatusError():
            return "down", f"it answers with the status {error.response.status_code}"
        case MCPError():
            return "down", f"it answered with an error: {error.message[:200]}"
        case ValueError() | RuntimeError():
            return "down", "its answer does not fit the protocol"
        case FileNotFoundError() | PermissionError():
            return "down", f"its command cannot be run: {error.strerror}"
        case _:
            return "down", f"the connection failed ({type(error).__name__})"

"""Requests over a connection, with timeouts, a retry and error translation."""

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar, cast
from uuid import UUID

import msgspec
from mcp import Client, MCPError
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    URL_ELICITATION_REQUIRED,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    RequestParamsMeta,
    TaskMetadata,
    Tool,
)

from gateway.common.concurrency import Deadline, wait_or_poll
from gateway.common.logging import get_logger
from gateway.common.mcp_meta import LOG_LEVEL
from gateway.common.pausable_timeout import PausableTimeout
from gateway.common.sanitize import clean_text
from gateway.domain.messages import PendingInput, Principal, Question, StoredQuestion
from gateway.mcp_client.caller_identity import acting_for
from gateway.mcp_client.connection.client_capabilities import calling_for
from gateway.mcp_client.connection.client_features import (
    declare_to_modern_server,
    parse_request_for_turn,
    require_approval_beside_people,
)
from gateway.mcp_client.connection.errors import (
    RequestNotSent,
    TokenUnavailable,
    ToolCallError,
    describe_token_problem,
    is_answer_too_large,
    is_grant_unavailable,
)
from gateway.mcp_client.connection.log_level import ServerLogLevel
from gateway.mcp_client.connection.ongoing_calls import OngoingCalls, make_progress_callback
from gateway.mcp_client.connection.output_check import OutputMismatch
from gateway.mcp_client.connection.roots import build_roots
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.elicitation import (
    UnsupportedElicitation,
    find_elicitation_ids,
    get_server_state,
    make_input_responses,
    parse_input_request,
    parse_request_for_host,
    withhold_roots_requests,
)
from gateway.mcp_client.http.call_lifetime import lasting_exchange
from gateway.mcp_client.http.start_check import checking_start
from gateway.mcp_client.http_transport import CONNECTION_CLOSED
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.mcp_client.results.normalize import restore_structure
from gateway.mcp_client.tasks.protocol import FetchTaskResult, TaskParams, requires_task, take_created_task
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import IDEMPOTENCY_KEY_META, ToolCallRequest

log = get_logger(__name__)

T = TypeVar("T")
ClientRequest = Callable[[Client], Awaitable[T]]

_RECONNECT_SECONDS = 10.0
_MAX_REFUSAL_LENGTH = 64 * 1024
_NO_TIMEOUT_SECONDS = 30 * 86400.0  # the SDK's own timeout cannot be paused
_MAX_ROOTS_ROUNDS = 5
_LOST_SESSION_MESSAGES = ("Session not found", "Session terminated")
_INLINE_QUESTION_VERSIONS = ("2025-06-18", "2025-11-25")
"""Versions of the protocol in which servers ask during a call."""
_PARSE_ERROR_PREFIX = "Failed to parse"
"""Start of the SDK's message about an answer that is not JSON-RPC."""


class RequestSender:
    """Sends requests over one connection, from any task.

    A request waits `connect_timeout_seconds` for a server that is starting, then fails. A call that reports progress
    may take `max_call_seconds`, and one that the server runs as a task `max_task_seconds`.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        status: ConnectionStatus,
        calls: OngoingCalls,
        tokens: AccessTokenProvider,
        uses_http: Callable[[], bool],
        connect_timeout_seconds: float,
        max_call_seconds: float,
        max_task_seconds: float,
        find_tool: Callable[[str], Tool | None],
    ) -> None:
        self._config = config
        self._status = status
        self._calls = calls
        self._tokens = tokens
        self._uses_http = uses_http
        self._connect_timeout_seconds = connect_timeout_seconds
        self._max_call_seconds = max_call_seconds
        self._max_task_seconds = max_task_seconds
        self._find_tool = find_tool
        self._log_level = ServerLogLevel(config.name)

    @property
    def needs_sign_in(self) -> bool:
        """Whether a user must sign in to the server, and can."""
        return self._status.state == "needs_auth" and self._tokens.can_sign_in

    async def send_tool_call(self, request: ToolCallRequest, timeout: float) -> CallToolResult | PendingInput:
        """Run a tool as the request's principal.

        Retries once, only if the request was not sent or the session was lost.

        Raises:
            ToolCallError: there is no result.
            TurnTakenOver: an attempt must not start, see `ToolCallRequest.require_lease`.
        """
        for _ in range(2):
            with contextlib.suppress(RequestNotSent):
                return await self._send_tool_call_once(request, timeout)
        raise self._unreachable_error()

    async def send_request(self, request: ClientRequest[T], *, principal: Principal, timeout: float) -> T:
        """Send a request that is not a tool call.

        Raises:
            ToolCallError: there is no answer.
        """
        self._admit_caller(principal)
        client = await self.wait_for_client()
        try:
            async with Deadline.after(timeout).limit():
                with acting_for(principal), lasting_exchange():
                    return await request(client)
        except TimeoutError:
            raise ToolCallError(f"There was no answer within {timeout:g} seconds.", did_run=None) from None
        except MCPError as error:
            failure = self._translate_error(error, client)
            raise failure if isinstance(failure, ToolCallError) else self._unreachable_error() from error
        except (RuntimeError, ValueError) as error:  # raised by the SDK for an answer that breaks the protocol
            log.warning("mcp_bad_answer", server=self._config.name, error=type(error).__name__)
            raise ToolCallError("The server's answer does not fit the protocol.", did_run=True) from error

    async def wait_for_client(self) -> Client:
        """The connected client.

        Raises:
            ToolCallError: the server is not available in time, or a user must sign in first.
        """
        status = self._status
        if status.state == "needs_auth":
            await self._retry_connection()
        try:
            async with Deadline.after(self._connect_timeout_seconds).limit():
                if status.state == "connecting":
                    await status.attempted_event.wait()
                    if status.lacks_credentials:
                        raise self._unauthorized_error()
                await status.available_event.wait()
        except TimeoutError:
            raise self._unreachable_error() from None
        if status.client is None:
            raise self._unreachable_error()
        return status.client

    async def _send_with_roots(
        self, client: Client, request: ToolCallRequest, report_progress: ProgressFnT
    ) -> CallToolResult | InputRequiredResult:
        """Make the call, and answer requests for roots.

        The entry's roots are for callers without roots. Turns answer by themselves, because a person may have to
        approve.
        """
        for _ in range(_MAX_ROOTS_ROUNDS):
            result = await self._send_or_fetch(client, request, report_progress)
            if not isinstance(result, InputRequiredResult) or not self._provides_roots(request):
                return result
            result = withhold_roots_requests(result)
            if result.input_requests:
                return result
            state = StoredQuestion(UUID(int=0), "", Question("", "host", ""), result.request_state)
            request = msgspec.structs.replace(request, answers=[state])
            request.require_lease()
        raise UnsupportedElicitation(f"The server asked for roots more than {_MAX_ROOTS_ROUNDS} times.")

    def _provides_roots(self, request: ToolCallRequest) -> bool:
        is_of_roots_host = request.host is not None and request.host.declares("roots")
        return bool(self._config.roots) and not request.is_in_turn and not is_of_roots_host

    async def _send_or_fetch(
        self, client: Client, request: ToolCallRequest, report_progress: ProgressFnT
    ) -> CallToolResult | InputRequiredResult:
        """Make the call, or fetch the result of its task."""
        tool, answers = request.spec.tool, request.answers
        if request.task is not None:
            fetch = FetchTaskResult(params=TaskParams(task_id=request.task.task_id))
            result = await client.session.send_request(fetch, CallToolResult, _NO_TIMEOUT_SECONDS)
            if not result.is_error:
                await client.session.validate_tool_result(tool, result)
            return result
        listed = self._find_tool(tool)
        if client.session.initialize_result is not None and listed is not None and requires_task(listed.execution):
            params = CallToolRequestParams(
                name=tool,
                arguments=request.arguments,
                task=TaskMetadata(ttl=round(self._max_task_seconds * 1000)),
                _meta=_make_meta(request),
            )
            call = CallToolRequest(params=params)
            return await client.session.send_request(
                call, CallToolResult, _NO_TIMEOUT_SECONDS, progress_callback=report_progress
            )
        answers_roots = request.is_in_turn or self._provides_roots(request)
        return await client.session.call_tool(
            tool,
            request.arguments,
            read_timeout_seconds=_NO_TIMEOUT_SECONDS,
            progress_callback=report_progress,
            input_responses=make_input_responses(answers, build_roots(self._config) if answers_roots else None),
            request_state=get_server_state(answers),
            meta=_make_meta(request),
            allow_input_required=True,
        )

    async def _send_tool_call_once(self, request: ToolCallRequest, timeout: float) -> CallToolResult | PendingInput:
        tool, observer = request.spec.tool, request.observer
        self._admit_caller(request.principal)
        client = await self.wait_for_client()
        pausable = PausableTimeout(timeout, max_seconds=max(timeout, self._max_call_seconds))
        shares_stream = not self._uses_http() or self._calls.asks_on_shared_stream
        takes_turns = shares_stream and client.protocol_version in _INLINE_QUESTION_VERSIONS
        try:
            async with pausable, self._calls.track_call(request, pausable, takes_turns=takes_turns):
                with (
                    acting_for(request.principal),
                    calling_for(None if request.is_in_turn else declare_to_modern_server(self._config, request.host)),
                    checking_start(request.require_lease),
                    lasting_exchange(),
                ):
                    await self._log_level.request_level(client, request.log_level)
                    request.require_lease()
                    result = await self._send_with_roots(client, request, make_progress_callback(observer, pausable))
                if isinstance(result, InputRequiredResult):
                    return self._parse_input_request(result, request)
                if (created := take_created_task(result.meta)) is not None:
                    task = created.to_server_task(self._config.name, self._max_task_seconds)
                    return PendingInput((), task=task)
                restore_structure(result)
                return result
        except TimeoutError:
            message = f"There was no result within {timeout:g} seconds, and the call was given up."
            raise ToolCallError(message, did_run=None) from None
        except MCPError as error:
            if error.code == URL_ELICITATION_REQUIRED:
                self._calls.expect_visits(find_elicitation_ids(error.data), observer)
            raise self._translate_error(error, client) from error
        except UnsupportedElicitation as error:
            raise ToolCallError(str(error), did_run=False) from error
        except (RuntimeError, ValueError) as error:  # the latter by the SDK, for a result that breaks the protocol
            log.warning(
                "mcp_bad_result", server=self._config.name, tool=clean_text(tool, 100), error=type(error).__name__
            )
            broken = "the tool's own output schema" if isinstance(error, OutputMismatch) else "the protocol"
            raise ToolCallError(f"The server's result does not fit {broken}.", did_run=True) from error

    def _parse_input_request(self, result: InputRequiredResult, request: ToolCallRequest) -> PendingInput:
        """Parse a server's questions to the caller."""
        if request.host is not None:
            return parse_input_request(result, partial(parse_request_for_host, request.host))
        config = self._config if request.is_in_turn else None
        pending = parse_input_request(result, partial(parse_request_for_turn, config))
        questions = require_approval_beside_people(pending.questions, self._config.name)
        return PendingInput(questions, pending.state)

    async def _retry_connection(self) -> None:
        """Ask for a connection attempt now: a user may have signed in.

        Raises:
            ToolCallError: the server still refuses the gateway.
        """
        self._status.attempted_event.clear()
        self._status.retry_event.set()
        await wait_or_poll(self._status.attempted_event, _RECONNECT_SECONDS)
        if self._status.state == "needs_auth":
            raise self._unauthorized_error()

    def _admit_caller(self, principal: Principal) -> None:
        try:
            self._tokens.admit_caller(principal)
        except TokenUnavailable as error:
            raise self._make_token_error(str(error)) from error

    def _make_token_error(self, problem: str) -> ToolCallError:
        return ToolCallError(f"The MCP server {self._config.name!r} was not asked: {problem}.", did_run=False)

    def _unauthorized_error(self) -> ToolCallError:
        if self._status.token_problem is not None and not self._tokens.is_refused:
            return self._make_token_error(self._status.token_problem)
        message = f"The MCP server {self._config.name!r} refuses the credentials that it is sent."
        return ToolCallError(
            message, did_run=False, needs_sign_in=self._tokens.can_sign_in, challenge=self._tokens.challenge
        )

    def _unreachable_error(self) -> ToolCallError:
        return ToolCallError(f"The MCP server {self._config.name!r} is not reachable now.", did_run=False)

    def _translate_error(self, error: MCPError, client: Client) -> ToolCallError | RequestNotSent:
        if is_grant_unavailable(error):
            message = f"The sign-in to {self._config.name!r} cannot be read: the gateway's database is unavailable."
            return ToolCallError(f"{message} Try again in a moment.", did_run=False, storage_unavailable=True)
        if (problem := describe_token_problem(error)) is not None:
            return self._make_token_error(problem)
        if self._tokens.is_refused:
            return self._unauthorized_error()
        if error.code == INVALID_REQUEST and error.message in _LOST_SESSION_MESSAGES:
            self._status.report_lost(client)
            return RequestNotSent()
        if is_answer_too_large(error):
            message = f"The answer of the MCP server {self._config.name!r} is too large, so it was not read."
            return ToolCallError(message, did_run=True)
        if error.code == PARSE_ERROR and error.message.startswith(_PARSE_ERROR_PREFIX):
            return ToolCallError(f"The answer of the MCP server {self._config.name!r} cannot be read.", did_run=None)
        if error.code == CONNECTION_CLOSED:
            return self._translate_closed_connection(error, client)
        refusal = {"code": error.code, "message": error.message[:_MAX_REFUSAL_LENGTH], "data": error.data}
        message = f"The MCP server refused the call: {clean_text(error.message, 500)}"
        return ToolCallError(message, did_run=False, refusal=refusal)

    def _translate_closed_connection(self, error: MCPError, client: Client) -> ToolCallError | RequestNotSent:
        unsent = isinstance(error.data, dict) and bool(error.data.get("unsent"))  # pyright: ignore
        if unsent:
            self._status.report_lost(client)
            return RequestNotSent()
        if not self._uses_http():
            self._status.report_lost(client)
        message = f"The connection to the MCP server {self._config.name!r} was lost."
        return ToolCallError(message, did_run=None, connection_lost=True)


def _make_meta(request: ToolCallRequest) -> RequestParamsMeta:
    """The `_meta` of a call.

    It has the host's, the idempotency key, and the level of logs that the host wants.
    """
    level = {LOG_LEVEL: request.log_level} if request.log_level is not None else {}
    return cast(RequestParamsMeta, {**request.meta, **level, IDEMPOTENCY_KEY_META: request.idempotency_key})

"""Progress, logs and questions for the host that called the MCP endpoint."""

import asyncio
import contextlib
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, cast, get_args
from uuid import UUID, uuid4

import anyio
import mcp.types as t
import msgspec
from mcp import MCPError
from mcp.server.apps import EXTENSION_ID as APPS_EXTENSION
from mcp.server.context import ServerRequestContext
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, McpServerError, NotFound
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import Answer, JsonObject, Principal, Question, StoredQuestion
from gateway.ports.tools import MAX_OBSERVED_MESSAGE_LENGTH, MAX_OBSERVED_MESSAGES, CallObserver

log = get_logger(__name__)

_NOTIFY_TIMEOUT_SECONDS = 5.0
_MAX_LOG_CHARS, _MAX_WAITING_LOG_CHARS = 64 * 1024, 4 * 1024 * 1024
_VISIT_VERSION = "2025-11-25"
"""Protocol version that announces the ends of visits to pages."""
_LEGACY_RESOURCE_NOT_FOUND = -32002
ROOTS_SECONDS = 10.0
"""Time in which a host must list its roots."""
SESSION_HEADER = "mcp-session-id"
LOG_LEVELS: tuple[str, ...] = get_args(t.LoggingLevel)

Context = ServerRequestContext[JsonObject, Request]
_CAPABILITIES = {"sampling/createMessage": "sampling", "roots/list": "roots"}
_HOST_REQUESTS: dict[str, tuple[type[t.CreateMessageRequest | t.ListRootsRequest], type[BaseModel]]] = {
    "sampling/createMessage": (t.CreateMessageRequest, t.CreateMessageResultWithTools),
    "roots/list": (t.ListRootsRequest, t.ListRootsResult),
}
HOST_GONE = (MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError)
"""Errors of a message that a host rejects or cannot receive.

A host that has disconnected cannot receive messages.
"""


class HostObserver(CallObserver):
    """Forwards progress, logs and questions of a call to its host.

    Log messages below `log_level` are left out, and very long ones truncated. While too many messages wait for a host
    that does not read them, new ones are dropped.
    """

    def __init__(self, ctx: Context, log_level: str | None = None) -> None:
        self._ctx = ctx
        self.profile = read_profile(ctx)
        self._log_level = log_level
        self._notifications = TaskSet("notify MCP host")
        self._waiting_log_chars = 0
        self._has_ended = False

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        if len(self._notifications) < MAX_OBSERVED_MESSAGES:
            message = message and message[:MAX_OBSERVED_MESSAGE_LENGTH]
            self._notifications.spawn(_send_notification(self._ctx.session.report_progress(progress, total, message)))

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        if self._log_level is not None and LOG_LEVELS.index(level) < LOG_LEVELS.index(self._log_level):
            return
        text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
        if len(text) > _MAX_LOG_CHARS:
            data = text = f"{text[:_MAX_LOG_CHARS]} [cut: {len(text):,} characters]"
        is_full = self._waiting_log_chars + len(text) > _MAX_WAITING_LOG_CHARS
        if not is_full and len(self._notifications) < MAX_OBSERVED_MESSAGES:
            self._waiting_log_chars += len(text)
            self._notifications.spawn(self._send_log(cast(t.LoggingLevel, level), data, logger, len(text)))

    async def _send_log(self, level: t.LoggingLevel, data: Any, logger: str | None, length: int) -> None:
        # Logging is deprecated in the protocol, but legacy hosts show it.
        notification = self._ctx.session.send_log_message(  # pyright: ignore[reportDeprecated]
            level, data, logger, related_request_id=self._ctx.request_id
        )
        try:
            await _send_notification(notification)
        finally:
            self._waiting_log_chars -= length

    def on_visit_ended(self, elicitation_id: str) -> None:
        if self._ctx.protocol_version == _VISIT_VERSION and len(self._notifications) < MAX_OBSERVED_MESSAGES:
            request_id = None if self._has_ended else self._ctx.request_id  # the call's stream ends with the call
            self._notifications.spawn(self._send_visit_ended(elicitation_id, request_id))

    async def _send_visit_ended(self, elicitation_id: str, request_id: t.RequestId | None) -> None:
        with contextlib.suppress(TimeoutError):  # the host reads nothing
            async with asyncio.timeout(_NOTIFY_TIMEOUT_SECONDS):
                await _send_notification(self._ctx.session.send_elicit_complete(elicitation_id, request_id))

    async def wait_until_notified(self) -> None:
        """Wait until the host has the progress and logs.

        They must precede the result. A host that does not read them has five seconds.
        """
        self._has_ended = True
        await self._notifications.wait(_NOTIFY_TIMEOUT_SECONDS)

    @property
    def is_asked_inline(self) -> bool:
        """Whether the host can be asked during a call."""
        return self._ctx.session.can_send_request

    def can_answer(self, question: Question) -> bool:
        """Return whether the host declared what a question needs."""
        if question.request is not None:
            return self.profile.declares(_CAPABILITIES[question.request["method"]])
        return self.profile.declares_elicitation("form" if question.url is None else "url")

    async def ask_user(self, question: Question) -> Answer:
        """Ask the host's user. A host that cannot ask declines."""
        session = self._ctx.session
        if not session.can_send_request or not self.can_answer(question):
            return Answer("decline")
        try:
            if question.request is not None:
                return await self._forward_request(question.request)
            if question.url is not None:
                elicitation_id = question.elicitation_id or str(uuid4())
                result = await session.elicit_url(question.message, question.url, elicitation_id, self._ctx.request_id)
            else:
                result = await session.elicit_form(question.message, question.schema or {}, self._ctx.request_id)
        except (MCPError, ValidationError):  # the host refuses, or its answer is not one
            return Answer("decline")
        return Answer(result.action, result.content)

    async def _forward_request(self, request: JsonObject) -> Answer:
        """Send a request for sampling or roots."""
        model, result_type = _HOST_REQUESTS[request["method"]]
        # The call's stream ends with the call; later requests use the stream of the session.
        metadata = None if self._has_ended else ServerMessageMetadata(related_request_id=self._ctx.request_id)
        seconds = ROOTS_SECONDS if model is t.ListRootsRequest else None
        result = await self._ctx.session.send_request(
            model.model_validate(request), result_type, seconds, metadata=metadata
        )
        return Answer("accept", result.model_dump(mode="json", by_alias=True, exclude_none=True))

    async def collect_answer(self, question: Question, state: str | None) -> StoredQuestion:
        """Ask the host's user; return the question with its answer.

        `state` is the asking server's state, which the toolbox returns to it.
        """
        return StoredQuestion(UUID(int=0), "", question, state, await self.ask_user(question))


async def _send_notification(notification: Coroutine[object, object, None]) -> None:
    try:
        await notification
    except HOST_GONE as error:
        log.debug("host_notification_failed", error=type(error).__name__)


@contextmanager
def mcp_errors(ctx: Context, uri: str | None = None) -> Generator[None]:
    """Convert the gateway's errors to JSON-RPC errors.

    An error of a server is forwarded. Errors of a missing resource name its `uri`, with the code of the host's
    protocol.
    """
    is_modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    not_found_code = t.INVALID_PARAMS if is_modern or uri is None else _LEGACY_RESOURCE_NOT_FOUND
    not_found_data = None if uri is None else {"uri": uri}
    try:
        yield
    except NotFound as error:
        raise MCPError(not_found_code, error.message, not_found_data) from None
    except McpServerError as error:
        if (refusal := error.refusal) is None:
            raise MCPError(t.INTERNAL_ERROR, error.message) from None
        code, data = refusal["code"], refusal["data"]
        if code == _LEGACY_RESOURCE_NOT_FOUND:
            code, data = not_found_code, data or not_found_data
        raise MCPError(code, refusal["message"], data) from None
    except GatewayError as error:
        raise MCPError(t.INTERNAL_ERROR, error.message) from None


def read_profile(ctx: Context) -> HostProfile:
    """Return what the host of a request can do.

    An `elicitation` without modes is that of forms, as in versions before 2025-11-25.
    """
    declared = ctx.session.client_capabilities or t.ClientCapabilities()
    capabilities: JsonObject = {}
    if (elicitation := declared.elicitation) is not None:
        has_url = elicitation.url is not None
        modes = {"form": elicitation.form is not None or not has_url, "url": has_url}
        capabilities["elicitation"] = {mode: {} for mode, is_declared in modes.items() if is_declared}
    if (sampling := declared.sampling) is not None:
        parts = {"context": sampling.context, "tools": sampling.tools}
        capabilities["sampling"] = {part: {} for part, value in parts.items() if value is not None}
    if declared.roots is not None:
        capabilities["roots"] = {"listChanged": True} if declared.roots.list_changed else {}
    if (apps := (declared.extensions or {}).get(APPS_EXTENSION)) is not None:
        capabilities["extensions"] = {APPS_EXTENSION: apps}
    is_legacy = ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS
    return HostProfile(is_legacy, capabilities, (get_session_name(ctx) or "") if is_legacy else "")


def get_session_name(ctx: Context) -> str | None:
    """Return the name of the host's legacy session."""
    return None if ctx.request is None else ctx.request.headers.get(SESSION_HEADER)


def get_principal(ctx: Context) -> Principal:
    """Return the authenticated caller of an MCP request."""
    assert ctx.request is not None
    return ctx.request.scope[PRINCIPAL_SCOPE_KEY]

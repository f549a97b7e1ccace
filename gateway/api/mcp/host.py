"""The host that has called the MCP endpoint: it hears of progress, and asks its user."""

from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anyio
import mcp.types as t
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from starlette.requests import Request

from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, NotFound
from gateway.domain.messages import Answer, Principal, Question, StoredQuestion

log = get_logger(__name__)

Context = ServerRequestContext[Any, Any]
HOST_GONE = (MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError)
"""What a message to a host raises that does not take it, or is gone."""


class HostObserver:
    """Passes progress and logs of a call on to its host, and asks the host's user where its protocol allows that."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._notifications = TaskSet("notify MCP host")

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._notifications.spawn(_notify(self._ctx.session.report_progress(progress, total, message)))

    def log(self, level: str, message: str) -> None:
        known: Any = level
        session: Any = self._ctx.session  # logging is deprecated in the protocol, and still what older hosts show
        self._notifications.spawn(
            _notify(session.send_log_message(known, message, related_request_id=self._ctx.request_id))
        )

    async def ask(self, question: Question) -> Answer:
        session = self._ctx.session
        if not session.can_send_request:
            return Answer("decline")
        try:
            if question.url is not None:
                result = await session.elicit_url(question.message, question.url, question.key, self._ctx.request_id)
            else:
                result = await session.elicit_form(question.message, question.schema or {}, self._ctx.request_id)
        except MCPError:  # the host cannot, or will not
            return Answer("decline")
        content: Any = result.content
        return Answer(result.action, content)

    async def ask_and_keep(self, question: Question, state: str | None) -> StoredQuestion:
        """The question with its answer and the asking server's state, as the toolbox takes it back."""
        return StoredQuestion(UUID(int=0), "", question, state, await self.ask(question))


async def _notify(notification: Coroutine[object, object, None]) -> None:
    try:
        await notification
    except HOST_GONE as error:
        log.debug("host_not_notified", error=type(error).__name__)


@contextmanager
def mcp_errors() -> Generator[None]:
    """Raise the gateway's errors as errors of JSON-RPC."""
    try:
        yield
    except NotFound as error:
        raise MCPError(t.INVALID_PARAMS, error.message) from None
    except GatewayError as error:
        raise MCPError(t.INTERNAL_ERROR, error.message) from None


def get_principal(ctx: Context) -> Principal:
    request: object = ctx.request
    assert isinstance(request, Request)
    return request.scope[PRINCIPAL_SCOPE_KEY]

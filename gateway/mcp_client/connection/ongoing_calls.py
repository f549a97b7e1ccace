"""Tool calls in progress, and the messages that belong to them."""

import asyncio
import contextlib
import contextvars

from mcp.client.context import ClientRequestContext
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import ElicitRequestParams, ElicitResult, LoggingMessageNotificationParams

from gateway.common.concurrency import Deadline, WorkInterrupted, run_until
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.domain.messages import Answer, Question
from gateway.mcp_client.elicitation import UnsupportedElicitation, make_elicit_result, make_inline_question
from gateway.ports.tools import CallObserver

log = get_logger(__name__)


class OngoingCalls:
    """The calls in progress over one connection.

    Its `on_…` methods are the SDK client's callbacks.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._calls: set[_OngoingCall] = set()

    def track_call(self, observer: CallObserver | None, timeout: PausableTimeout) -> "_OngoingCall":
        """A context manager around one call."""
        return _OngoingCall(observer, timeout, self._calls)

    @property
    def is_idle(self) -> bool:
        """Whether no call is in progress."""
        return not self._calls

    async def wait_until_idle(self, seconds: float) -> None:
        """Wait until no call is in progress, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with Deadline.after(seconds).limit():
                while self._calls:
                    await asyncio.wait([call.end for call in self._calls])

    async def on_log(self, params: LoggingMessageNotificationParams) -> None:
        """Pass a log line to the observer of its call."""
        if (call := self._find_call()) is not None and call.observer is not None:
            call.observer.on_log(params.level, str(params.data))

    async def on_elicit(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        """Ask the user of a call a question of a legacy server.

        A question that belongs to no call is declined.
        """
        call = self._find_call()
        if call is None or call.observer is None:
            log.info("elicitation_declined", server=self._server, request=str(context.request_id))
            return ElicitResult(action="decline")
        try:
            question = make_inline_question(params)
        except UnsupportedElicitation as error:
            log.warning("elicitation_refused", server=self._server, reason=str(error))
            return ElicitResult(action="decline")
        return make_elicit_result(await call.ask_user(question))

    def _find_call(self) -> "_OngoingCall | None":
        """The call that a message belongs to.

        The call whose response stream carried it; without one, the only call in progress.
        """
        call = _current_call.get()
        if call is not None:
            return call
        return next(iter(self._calls)) if len(self._calls) == 1 else None


class _OngoingCall:
    """A call in progress.

    Messages of the server find it by the context variable.
    """

    def __init__(self, observer: CallObserver | None, timeout: PausableTimeout, calls: "set[_OngoingCall]") -> None:
        self.observer = observer
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = timeout
        self._calls = calls
        self._token: contextvars.Token[_OngoingCall | None] | None = None

    async def __aenter__(self) -> None:
        self._calls.add(self)
        self._token = _current_call.set(self)

    async def __aexit__(self, *_: object) -> None:
        assert self._token is not None
        _current_call.reset(self._token)
        self._calls.discard(self)
        self.end.set_result(None)

    async def ask_user(self, question: Question) -> Answer:
        """A person's answer.

        The call's timeout is paused meanwhile; the end of the call cancels the question.
        """
        assert self.observer is not None
        try:
            with self._timeout.pause_timeout():
                return await run_until(self.observer.ask_user(question), asyncio.wait((self.end,)))
        except WorkInterrupted:
            return Answer("cancel")


_current_call: contextvars.ContextVar[_OngoingCall | None] = contextvars.ContextVar("mcp_call", default=None)


def make_progress_callback(observer: CallObserver) -> ProgressFnT:
    """The SDK's progress callback for an observer."""

    async def report_progress(progress: float, total: float | None, message: str | None) -> None:
        observer.on_progress(progress, total, message)

    return report_progress

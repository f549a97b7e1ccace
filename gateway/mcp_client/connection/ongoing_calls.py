"""Tool calls in progress, and the messages that belong to them."""

import asyncio
import contextlib
import contextvars
from collections.abc import Iterable

import msgspec
from mcp.client import IncomingMessage
from mcp.client.context import ClientRequestContext
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    CreateMessageResultWithTools,
    ElicitCompleteNotification,
    ElicitRequestParams,
    ElicitResult,
    ErrorData,
    ListRootsResult,
    LoggingMessageNotificationParams,
    RequestId,
)
from pydantic import TypeAdapter, ValidationError

from gateway.common.concurrency import Deadline, LruDict, WorkInterrupted, run_until
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.domain.messages import Answer, Question
from gateway.mcp_client.connection.client_features import parse_request_for_turn
from gateway.mcp_client.connection.question_routing import QuestionRouter, TurnsToAsk
from gateway.mcp_client.connection.roots import HostRoots, build_roots
from gateway.mcp_client.elicitation import (
    UnsupportedElicitation,
    make_elicit_result,
    make_host_request,
    make_inline_question,
)
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import CallObserver, ToolCallRequest

log = get_logger(__name__)

_REFUSED_CODE = -1
"""Code for a sampling request that the user of a host refuses."""
_SAMPLING_RESULT: TypeAdapter[CreateMessageResultWithTools | CreateMessageResult] = TypeAdapter(
    CreateMessageResultWithTools | CreateMessageResult
)
_MAX_VISITS = 1_000


class OngoingCalls:
    """The calls in progress over one connection.

    Its `on_…` methods are the SDK client's callbacks. `host_roots`: those of the only host that the connection serves;
    None: the server gets the roots of its entry.
    """

    def __init__(self, config: ServerConfig, host_roots: HostRoots | None = None) -> None:
        self._config, self._server = config, config.name
        self._host_roots = host_roots
        self._calls: set[OngoingCall] = set()
        self._router: QuestionRouter[OngoingCall] = QuestionRouter()
        self._turns: TurnsToAsk[OngoingCall] = TurnsToAsk(self._router)
        self._visits: LruDict[str, CallObserver] = LruDict(_MAX_VISITS)
        self.asks_on_shared_stream = False
        """Whether a question has arrived that did not name its call."""
        self.begin_session = self._router.begin_session
        self.on_answered = self._router.on_answered
        self.on_cancelled = self._router.on_cancelled

    def track_call(
        self, request: ToolCallRequest, timeout: PausableTimeout, *, takes_turns: bool = False
    ) -> "OngoingCall":
        """A context manager around one call.

        A call that `takes_turns` waits until no other call can ask. The timeout does not count that.
        """
        needs_turn = takes_turns and self._turns.may_ask(request.spec.tool)
        return OngoingCall(request, timeout, self._calls, self._router, self._turns, needs_turn=needs_turn)

    def on_sent(self, request_id: RequestId, method: str) -> None:
        """The gateway sends a request, in the task of its call."""
        self._router.on_sent(request_id, method, _current_call.get())

    async def stop(self) -> None:
        """Stop what waits for calls that were given up."""
        await self._turns.stop()

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
            call.observer.on_log(params.level, params.data, params.logger)

    async def on_message(self, message: IncomingMessage) -> None:
        """Pass the end of a visit to the call that asked."""
        if isinstance(message, ElicitCompleteNotification):
            elicitation_id = message.params.elicitation_id
            if (observer := self._visits.pop(elicitation_id, None)) is not None:
                observer.on_visit_ended(elicitation_id)

    def expect_visits(self, elicitation_ids: Iterable[str | None], observer: CallObserver | None) -> None:
        """Remember who is told the end of visits to pages."""
        for elicitation_id in elicitation_ids:
            if elicitation_id is not None and observer is not None:
                self._visits[elicitation_id] = observer

    async def on_elicit(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        """Ask the user of a call a question of a legacy server.

        A question that belongs to no call is declined.
        """
        call = await self._find_asking_call(context)
        if call is None:
            return ElicitResult(action="decline")
        try:
            question = make_inline_question(params)
        except UnsupportedElicitation as error:
            log.warning("elicitation_refused", server=self._server, reason=str(error))
            return ElicitResult(action="decline")
        self.expect_visits((question.elicitation_id,), call.observer)
        return make_elicit_result(await call.ask_user(question))

    async def on_sample(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult | CreateMessageResultWithTools | ErrorData:
        """Pass a legacy server's sampling request to its call's host or turn."""
        call = await self._find_asking_call(context)
        question = None if call is None else self._make_sampling_question(call, CreateMessageRequest(params=params))
        if call is None or question is None:
            return ErrorData(code=_REFUSED_CODE, message="No host of a call samples for this server.")
        answer = await call.ask_user(question)
        try:
            return _SAMPLING_RESULT.validate_python(answer.content if answer.action == "accept" else None)
        except ValidationError:
            return ErrorData(code=_REFUSED_CODE, message="The sampling request was refused.")

    def _make_sampling_question(self, call: "OngoingCall", request: CreateMessageRequest) -> Question | None:
        if call.request.host is not None:
            return make_host_request("sampling", request)
        config = self._config if call.request.is_in_turn else None
        question = parse_request_for_turn(config, "sampling", request)
        return question and msgspec.structs.replace(question, held=True)

    async def on_list_roots(self, context: ClientRequestContext) -> ListRootsResult | ErrorData:
        """Answer with the roots of the session's host, or the entry's."""
        log.debug("roots_listed", server=self._server, request=str(context.request_id))
        return build_roots(self._config) if self._host_roots is None else await self._host_roots.read()

    async def _find_asking_call(self, context: ClientRequestContext) -> "OngoingCall | None":
        """The call that a new question belongs to, if it can ask."""
        call = _current_call.get()
        if call is None:
            self.asks_on_shared_stream = True
            call = await self._router.find_asking_call()
        for asking in self._calls if call is None else (call,):
            asking.has_asked = True
        if call is None or call.observer is None or call.end.done():
            log.info("elicitation_declined", server=self._server, request=str(context.request_id))
            return None
        return call

    def _find_call(self) -> "OngoingCall | None":
        """The call that a message belongs to.

        The call whose response stream carried it; without one, the only call in progress.
        """
        call = _current_call.get()
        if call is not None:
            return call
        return next(iter(self._calls)) if len(self._calls) == 1 else None


class OngoingCall:
    """A call in progress.

    Messages of the server find it by the context variable.
    """

    def __init__(
        self,
        request: ToolCallRequest,
        timeout: PausableTimeout,
        calls: "set[OngoingCall]",
        router: "QuestionRouter[OngoingCall]",
        turns: "TurnsToAsk[OngoingCall]",
        *,
        needs_turn: bool,
    ) -> None:
        self.request = request
        self.observer = request.observer
        self._tool = request.spec.tool
        self._router = router
        self._turns = turns
        self._needs_turn = needs_turn
        self.has_asked = False
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = timeout
        self._calls = calls
        self._token: contextvars.Token[OngoingCall | None] | None = None

    async def __aenter__(self) -> None:
        self._calls.add(self)
        try:
            await self._wait_for_turn()
        except BaseException:
            self._calls.discard(self)
            self.end.set_result(None)
            raise
        self._token = _current_call.set(self)

    async def _wait_for_turn(self) -> None:
        if self._needs_turn:
            with self._timeout.pause_timeout():
                await self._turns.take(self, self._tool)

    async def __aexit__(self, *_: object) -> None:
        assert self._token is not None
        _current_call.reset(self._token)
        self._calls.discard(self)
        self.end.set_result(None)
        if self._router.on_call_ended(self):
            self._turns.give_back_when_ended(self)
        else:
            self._turns.give_back(self)
            self._turns.on_call_ended(self._tool, has_asked=self.has_asked)

    async def ask_user(self, question: Question) -> Answer:
        """A person's answer.

        The call's timeout is paused meanwhile; the end of the call cancels the question.
        """
        try:
            with self._timeout.pause_timeout():
                return await run_until(self._ask_in_turn(question), asyncio.wait((self.end,)))
        except WorkInterrupted:
            return Answer("cancel")
        finally:
            if self.end.done():
                self._turns.give_back(self)

    async def _ask_in_turn(self, question: Question) -> Answer:
        assert self.observer is not None
        async with self._turns.asking(self, self._tool):
            return await self.observer.ask_user(question)


_current_call: contextvars.ContextVar[OngoingCall | None] = contextvars.ContextVar("mcp_call", default=None)


def make_progress_callback(observer: CallObserver | None, timeout: PausableTimeout) -> ProgressFnT:
    """The SDK's progress callback: it extends the timeout, and notifies the observer."""

    async def report_progress(progress: float, total: float | None, message: str | None) -> None:
        timeout.extend_timeout()
        if observer is not None:
            observer.on_progress(progress, total, message)

    return report_progress

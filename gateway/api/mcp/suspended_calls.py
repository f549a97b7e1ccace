"""Calls of legacy servers that ask hosts of the current protocol.

A legacy server asks during a call. Hosts of protocol 2026-07-28 cannot be asked during a call: they get the question as
the call's result, and send the call again with the answer. Until then the server's call stays open here.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import mcp.types as t
import msgspec
from mcp import MCPError
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from gateway.api.mcp.host import HostObserver
from gateway.api.mcp.question_state import QuestionStates
from gateway.common.concurrency import Deadline, TaskSet, WorkInterrupted, run_until
from gateway.common.logging import get_logger
from gateway.domain.messages import Answer, PendingInput, Principal, Question, StoredQuestion, ToolResult
from gateway.ports.code import RunHostTool
from gateway.ports.tools import CallObserver

log = get_logger(__name__)

MAX_SUSPENDED_CALLS, MAX_USER_SUSPENDED_CALLS = 200, 20
ANSWER_SECONDS = 600.0
"""Time that a host has for an answer."""
_ANSWER_TEXT = b'"requestState"'
_STATE = re.compile(r"held-([0-9a-f]{32})\.(.+)", re.DOTALL)
"""Worker that holds the call, and the sealed name of the call."""


SendCall = Callable[[CallObserver, Sequence[StoredQuestion]], Awaitable[ToolResult | PendingInput]]
"""Makes a call, with answers to its last questions."""


class HostCall(CallObserver):
    """A call in its own task.

    It outlives a request of its host.
    A host that can be asked during a call is asked; for another one the questions wait for its next request.
    """

    def __init__(self, user: str, send: SendCall, host: HostObserver, has_room: Callable[[str], bool]) -> None:
        self.user = user
        self._send = send
        self._answers: Sequence[StoredQuestion] = ()
        self._host = host
        self._has_room = has_room
        self._asked = asyncio.Event()
        self._waiting: dict[str, tuple[Question, asyncio.Future[Answer]]] = {}
        self._shown: set[str] = set()
        """Waiting questions that the host knows."""
        self._task = TaskSet("call of MCP host", log_errors=False)
        self._result = self._start()

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._host.on_progress(progress, total, message)

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        self._host.on_log(level, data, logger)

    def on_visit_ended(self, elicitation_id: str) -> None:
        self._host.on_visit_ended(elicitation_id)

    async def ask_user(self, question: Question) -> Answer:
        if self._host.is_asked_inline:
            return await self._host.ask_user(question)
        if self.has_ended or not self._host.can_answer(question) or not self._has_room(self.user):
            return Answer("decline")
        key, answer = uuid4().hex, asyncio.get_running_loop().create_future()
        self._waiting[key] = (msgspec.structs.replace(question, key=key), answer)
        self._asked.set()
        try:
            return await answer
        finally:
            self._waiting.pop(key, None)
            self._shown.discard(key)

    def _start(self) -> asyncio.Future[ToolResult | PendingInput]:
        result: asyncio.Future[ToolResult | PendingInput] = asyncio.get_running_loop().create_future()
        self._task.spawn(self._run(result))
        return result

    async def _run(self, result: asyncio.Future[ToolResult | PendingInput]) -> None:
        try:
            result.set_result(await self._send(self, self._answers))
        except asyncio.CancelledError:
            result.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised where the result is awaited
            result.set_exception(error)

    async def wait(self) -> ToolResult | PendingInput:
        """Wait for the result or for a question.

        The call ends with the task that waits for it.
        """
        try:
            with suppress(WorkInterrupted):
                await run_until(self._asked.wait(), asyncio.wait((self._result,)))
            if self._result.done():
                return self._result.result()
            self._shown.update(self._waiting)
            return PendingInput(tuple(question for question, _ in self._waiting.values()))
        except BaseException:
            await self.cancel()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether the server has answered."""
        return self._result.done()

    def repeat(self, answers: Sequence[StoredQuestion]) -> None:
        """Send the call again, with answers to the questions of its result."""
        self._answers = answers
        self._result = self._start()

    def answer(self, host: HostObserver, answers: Sequence[StoredQuestion]) -> None:
        """Deliver answers of the host's next request.

        A question without one is declined, unless it was asked after the host's last request.
        """
        self._host = host
        if self._shown.issuperset(self._waiting):
            self._asked.clear()
        given = {stored.question.key: stored.answer for stored in answers}
        for key, (_, waiting) in self._waiting.items():
            if key in self._shown and not waiting.done():
                waiting.set_result(given.get(key) or Answer("decline"))

    async def cancel(self) -> None:
        """Cancel the call."""
        await self._task.stop()


def prepare_program(params: t.CallToolRequestParams, run: RunHostTool) -> SendCall:
    """Prepare a program.

    Raises:
        MCPError: the host has a state, which only calls that wait can have.
    """
    if params.request_state is not None:
        raise MCPError(t.INVALID_PARAMS, "The requestState is not valid: call the tool again.")
    return lambda observer, _: run(params.arguments or {}, observer)


class SuspendedCalls:
    """Calls that wait for answers, bounded in number and time."""

    def __init__(self, worker: str, states: QuestionStates) -> None:
        self._worker = worker
        self._states = states
        self._calls: dict[str, tuple[HostCall, asyncio.Event]] = {}
        """Suspended calls by name, each with the event of its answer."""
        self._expiries = TaskSet("expire suspended MCP call")

    def has_room(self, user: str) -> bool:
        """Whether another call of a user may wait for an answer."""
        own = sum(call.user == user for call, _ in self._calls.values())
        return len(self._calls) < MAX_SUSPENDED_CALLS and own < MAX_USER_SUSPENDED_CALLS

    def suspend(self, call: HostCall, pending: PendingInput, tool: str, principal: Principal) -> PendingInput:
        """Hold a call until its host answers.

        Returns the questions, with a state.
        """
        name, answered = uuid4().hex, asyncio.Event()
        self._calls[name] = (call, answered)
        self._expiries.spawn(self._expire(name, call, answered))
        sealed = self._states.seal(msgspec.structs.replace(pending, state=name), tool, principal)
        return msgspec.structs.replace(sealed, state=f"held-{self._worker}.{sealed.state}")

    async def _expire(self, name: str, call: HostCall, answered: asyncio.Event) -> None:
        try:
            async with Deadline.after(ANSWER_SECONDS).limit():
                await answered.wait()
        except TimeoutError:
            log.info("suspended_call_expired")
        finally:
            if self._calls.pop(name, None) is not None:
                await call.cancel()

    def resume(self, state: str | None, tool: str, principal: Principal) -> HostCall | None:
        """Return the call that a host's state names.

        None: the state is not one of a suspended call.

        Raises:
            MCPError: the call has ended, or belongs to another user or tool.
        """
        match = _STATE.fullmatch(state or "")
        if match is None:
            return None
        call, answered = self._calls.pop(self._states.open(match[2], tool, principal) or "", (None, None))
        if call is None or answered is None:
            raise MCPError(t.INVALID_PARAMS, "The call no longer waits for this answer: call the tool again.")
        answered.set()
        return call

    async def stop(self) -> None:
        """Cancel all calls that wait."""
        await self._expiries.stop()


async def find_holder(scope: Scope, receive: Receive) -> tuple[str | None, Receive]:
    """Return the worker of the answered call, and the messages again.

    Only calls of tools are read here, and those of the legacy protocol name a session.
    """
    if Headers(scope=scope).get("mcp-method") != "tools/call":
        return None, receive
    messages: list[Message] = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)
    waiting = iter(messages)

    async def receive_again() -> Message:
        return next(waiting, None) or await receive()

    return _read_holder(body) if _ANSWER_TEXT in body else None, receive_again


class _Params(msgspec.Struct):
    requestState: str = ""  # noqa: N815 - the protocol's name


class _Call(msgspec.Struct):
    params: _Params


def _read_holder(body: bytes) -> str | None:
    try:
        match = _STATE.fullmatch(msgspec.json.decode(body, type=_Call).params.requestState)
    except msgspec.MsgspecError:  # the SDK refuses it
        return None
    return match[1] if match else None

"""Polls, continues and cancels the tasks of servers."""

import asyncio
import time
from functools import partial
from uuid import uuid4

import msgspec
from mcp.types import INTERNAL_ERROR, CallToolResult, EmptyResult, InputRequiredResult, Result
from mcp.types.version import LATEST_MODERN_VERSION
from pydantic import ValidationError

from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.common.pausable_timeout import PausableTimeout
from gateway.common.sanitize import clean_text
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import Answer, JsonObject, PendingInput, Principal, Question, StoredQuestion
from gateway.domain.server_tasks import ServerTask
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.mcp_client.connection_pool import ConnectionPool
from gateway.mcp_client.elicitation import (
    UnsupportedElicitation,
    make_input_responses,
    parse_input_request,
    parse_request_for_host,
)
from gateway.mcp_client.results.normalize import normalize_result, restore_structure
from gateway.mcp_client.tasks.protocol import (
    CancelTask,
    GetTask,
    TaskParams,
    TaskState,
    UpdateTask,
    UpdateTaskParams,
)
from gateway.ports.server_tasks import TaskClient
from gateway.ports.tools import CallObserver, ToolCallRequest

log = get_logger(__name__)

_REQUEST_SECONDS = 10.0
_PERSON = HostProfile(False, {})
"""The person of a turn answers questions of tasks.

Tasks get no sampling and no roots.
"""
_UNKNOWN = "The server no longer knows the task of this call."
_TOO_LONG = "The task of this call took too long, and was cancelled."


class ServerTasks(TaskClient):
    """See `TaskClient`. Also goes on with calls whose tasks are settled."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._cancellations = TaskSet("mcp task cancellation")

    async def stop_cancellations(self) -> None:
        """Wait a moment for cancellations under way."""
        await self._cancellations.stop()

    async def is_task_settled(self, task: ServerTask, principal: Principal) -> bool:
        """See `TaskClient.is_task_settled`."""
        connection = self._pool.get_connection(task.server, principal)
        if connection is None or time.time() >= task.deadline:
            return True
        try:
            return (await _get_state(connection, task, principal)).status != "working"
        except ToolCallError as error:
            return error.needs_sign_in or error.refusal is not None

    async def cancel_server_task(self, task: ServerTask, principal: Principal) -> bool:
        """See `TaskClient.cancel_server_task`."""
        connection = self._pool.get_connection(task.server, principal)
        if connection is None:
            return True
        request = CancelTask(params=TaskParams(task_id=task.task_id))
        try:
            await connection.send_request(
                lambda client: client.session.send_request(request, Result),
                principal=principal,
                timeout=_REQUEST_SECONDS,
            )
        except ToolCallError as error:
            log.info("mcp_task_not_cancelled", server=task.server, reason=str(error)[:200])
            return error.needs_sign_in or error.refusal is not None or time.time() >= task.deadline
        return True

    async def resume_call(
        self, connection: ServerConnection, request: ToolCallRequest, timeout: float
    ) -> CallToolResult | PendingInput:
        """Go on with a call whose task is settled.

        Raises:
            ToolCallError: there is no result.
        """
        task = request.task
        assert task is not None
        if request.answers:
            await self._send_answers(connection, request, task)
            return PendingInput((), task=task)
        try:
            state = await _get_state(connection, task, request.principal)
        except ToolCallError as error:
            if error.refusal is not None:
                raise ToolCallError(f"{_UNKNOWN} {error}", did_run=None) from error
            if error.needs_sign_in or time.time() >= task.deadline:
                raise
            return PendingInput((), task=task)
        return await self._use_state(connection, request, state, timeout)

    async def _use_state(
        self, connection: ServerConnection, request: ToolCallRequest, state: TaskState, timeout: float
    ) -> CallToolResult | PendingInput:
        task = request.task
        assert task is not None
        if state.status == "cancelled":
            raise ToolCallError("The server has cancelled the task of this call.", did_run=None)
        if state.input_requests:
            return _ask_questions(state.input_requests, request, task)
        if state.status == "working":
            if time.time() < task.deadline:
                return PendingInput((), task=task)
            await self.cancel_server_task(task, request.principal)
            raise ToolCallError(_TOO_LONG, did_run=None)
        if state.error is not None:
            raise _make_refusal(state.error)
        if state.result is not None:
            return _read_result(state.result)
        try:
            return await connection.send_tool_call(request, timeout)
        except ToolCallError as error:
            if state.status == "input_required" and error.did_run is None and time.time() < task.deadline:
                return PendingInput((), task=task)  # the server works on after the answer
            raise

    async def _send_answers(self, connection: ServerConnection, request: ToolCallRequest, task: ServerTask) -> None:
        try:
            responses = make_input_responses(request.answers, None) or {}
        except UnsupportedElicitation as error:
            raise ToolCallError(str(error), did_run=None) from error
        dumped = {
            key: value.model_dump(mode="json", by_alias=True, exclude_none=True) for key, value in responses.items()
        }
        update = UpdateTask(params=UpdateTaskParams(task_id=task.task_id, input_responses=dumped))
        request.require_lease()
        await connection.send_request(
            lambda client: client.session.send_request(update, EmptyResult),
            principal=request.principal,
            timeout=_REQUEST_SECONDS,
        )

    async def follow_call(
        self, connection: ServerConnection, request: ToolCallRequest, task: ServerTask, timeout: float
    ) -> CallToolResult:
        """Wait for a task here, for a call that cannot be suspended.

        The end of the call, also by its timeout, cancels the task.

        Raises:
            ToolCallError: there is no result.
        """
        request, limit = msgspec.structs.replace(request, answers=(), task=task), PausableTimeout(timeout)
        try:
            async with limit:
                while True:
                    await asyncio.sleep(task.choose_poll_pause())
                    result = await self.resume_call(connection, request, timeout)
                    if not isinstance(result, PendingInput):
                        return result
                    with limit.pause_timeout():
                        answers = [await _answer_now(request.observer, question) for question in result.questions]
                    request = msgspec.structs.replace(request, answers=answers)
        except TimeoutError:
            self._cancellations.spawn(self._cancel_followed(task, request.principal))
            message = f"There was no result within {timeout:g} seconds, and the task was cancelled."
            raise ToolCallError(message, did_run=None) from None
        except asyncio.CancelledError:
            self._cancellations.spawn(self._cancel_followed(task, request.principal))
            raise

    async def _cancel_followed(self, task: ServerTask, principal: Principal) -> None:
        if not await self.cancel_server_task(task, principal):
            log.warning("mcp_task_left_running", server=task.server)


async def _get_state(connection: ServerConnection, task: ServerTask, principal: Principal) -> TaskState:
    """Ask for the state of a task.

    Raises:
        ToolCallError: there is no answer.
    """
    request = GetTask(params=TaskParams(task_id=task.task_id))
    return await connection.send_request(
        lambda client: client.session.send_request(request, TaskState), principal=principal, timeout=_REQUEST_SECONDS
    )


async def _answer_now(observer: CallObserver | None, question: Question) -> StoredQuestion:
    answer = Answer("decline", by="gateway") if observer is None else await observer.ask_user(question)
    return StoredQuestion(uuid4(), "", question, answer=answer)


def _ask_questions(requests: JsonObject, request: ToolCallRequest, task: ServerTask) -> PendingInput:
    """The questions of a task of the extension.

    Raises:
        ToolCallError: it asks for something that a user cannot answer here.
    """
    raw = {"resultType": "input_required", "inputRequests": requests}
    try:
        parse_request = partial(parse_request_for_host, request.host or _PERSON)
        asked = parse_input_request(InputRequiredResult.model_validate(raw, by_name=False), parse_request)
    except (UnsupportedElicitation, ValidationError) as error:
        reason = str(error) if isinstance(error, UnsupportedElicitation) else "The task's questions cannot be read."
        raise ToolCallError(reason, did_run=None) from error
    return PendingInput(asked.questions, task=task)


def _make_refusal(error: JsonObject) -> ToolCallError:
    """The JSON-RPC error with which a task has failed."""
    code, text = error.get("code"), error.get("message")
    message = text if isinstance(text, str) else "The task has failed."
    is_number = isinstance(code, int) and not isinstance(code, bool)
    refusal = {"code": code if is_number else INTERNAL_ERROR, "message": message, "data": error.get("data")}
    return ToolCallError(f"The task of this call has failed: {clean_text(message, 500)}", did_run=True, refusal=refusal)


def _read_result(raw: JsonObject) -> CallToolResult:
    """The result that a task of the extension has.

    Raises:
        ToolCallError: it does not fit the protocol.
    """
    normalize_result("tools/call", {}, raw, LATEST_MODERN_VERSION)
    try:
        result = CallToolResult.model_validate(raw, by_name=False)
    except ValidationError as error:
        raise ToolCallError("The result of the task does not fit the protocol.", did_run=True) from error
    restore_structure(result)
    return result

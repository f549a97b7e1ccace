"""Answers the requests of MCP hosts about tasks.

A task is a turn: any worker answers for it, and it survives its worker. Its owner is the turn's. For others it does not
exist.
"""

import contextlib
from typing import Any, cast
from uuid import UUID

import mcp.types as t
from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.shared.message import ServerMessageMetadata
from msgspec.structs import replace
from pydantic import ValidationError

from gateway.agent.service import FollowedTurn, TurnService
from gateway.api.mcp.ask_agent import ASK_AGENT, build_agent_result
from gateway.api.mcp.host import Context, HostObserver, get_principal, mcp_errors
from gateway.api.mcp.schemas import to_call_result
from gateway.api.mcp.tasks.messages import (
    RELATED_TASK_META,
    TASKS_EXTENSION,
    TaskRequestParams,
    TaskUpdateParams,
    check_task_request,
    choose_call_status,
    choose_status,
    describe_task,
    dump_call_result,
    get_uuid_time,
    has_expired,
    is_modern_host,
    list_input_requests,
    make_elicitation,
    make_oldest_id,
    to_host_question,
)
from gateway.api.mcp.tasks.starter import TaskStarter
from gateway.api.mcp.tasks.status_stream import StatusStreams
from gateway.common.logging import get_logger
from gateway.config import Settings
from gateway.domain.errors import Conflict, InvalidRequest, JournalExpired, NotFound
from gateway.domain.events import InputRequired, TurnCancelled, TurnFailed
from gateway.domain.messages import Answer, JsonObject, Principal, StoredQuestion, ToolResult
from gateway.domain.toolsets import limit_to_own_turns
from gateway.ports.tools import Toolbox
from gateway.store.lists.mcp_tasks import TASK_ECHO_KEY, McpTaskStore, TaskRow
from gateway.wire.turn_summary import TurnSummary

log = get_logger(__name__)

_PAGE_SIZE = 50
_MAX_ANSWERS = 50
_NO_SUCH_TASK = "Task not found"
_EXPIRED = "Task has expired"


class HostTasks:
    """Answers requests about tasks; as a middleware, it starts them."""

    def __init__(self, settings: Settings, service: TurnService, toolbox: Toolbox, tasks: McpTaskStore) -> None:
        self._max_ttl = settings.mcp_task_ttl
        self._service = service
        self._tasks = tasks
        self._starter = TaskStarter(settings, service, toolbox, tasks)
        self.streams = StatusStreams(service, self.describe_current)

    def register_methods(self, server: Server[JsonObject]) -> None:
        server.extensions[TASKS_EXTENSION] = {}
        server.middleware.append(self)
        server.add_request_handler("tasks/get", TaskRequestParams, self._get)
        server.add_request_handler("tasks/cancel", TaskRequestParams, self._cancel)
        server.add_request_handler("tasks/update", TaskUpdateParams, self._update)
        server.add_request_handler("tasks/result", TaskRequestParams, self._fetch_result)
        server.add_request_handler("tasks/list", t.PaginatedRequestParams, self._list)

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Check requests about tasks, and answer calls that shall be tasks."""
        if ctx.method.startswith("tasks/"):
            check_task_request(ctx)
        if ctx.method != "tools/call" or (spec := self._starter.find_task_tool(ctx)) is None:
            return await call_next(ctx)
        result = await self._starter.start_task(ctx, spec)
        if result is None:
            return await call_next(ctx)
        if "task" in result:
            self.streams.follow_for_session(ctx, result["task"]["taskId"])
        return result

    # --- requests about tasks

    async def find_turn(self, principal: Principal, task_id: str) -> FollowedTurn:
        """Return the turn of a principal's task.

        A credential that is limited to some tools finds only what it started.

        Raises:
            MCPError: there is no such task.
        """
        try:
            turn = await self._service.get_turn(UUID(task_id), limit_to_own_turns(principal))
        except (ValueError, NotFound):
            raise MCPError(t.INVALID_PARAMS, _NO_SUCH_TASK) from None
        if TASK_ECHO_KEY not in turn.echo:
            raise MCPError(t.INVALID_PARAMS, _NO_SUCH_TASK)
        if has_expired(turn.id, turn.echo[TASK_ECHO_KEY]["ttl"]):
            raise MCPError(t.INVALID_PARAMS, _EXPIRED)
        return turn

    async def _get(self, ctx: Context, params: TaskRequestParams) -> JsonObject:
        with mcp_errors(ctx):
            return await self.describe_current(ctx, params.task_id)

    async def describe_current(self, ctx: Context, task_id: str) -> JsonObject:
        """Describe a task as it is now.

        Raises:
            MCPError: there is no such task.
        """
        turn = await self.find_turn(get_principal(ctx), task_id)
        questions = await self._list_questions(turn)
        is_modern = is_modern_host(ctx)
        status = _choose_turn_status(turn, questions, is_modern=is_modern)
        asked_at = max((get_uuid_time(stored.id) for stored in questions), default=None)
        ttl_ms = turn.echo[TASK_ECHO_KEY]["ttl"]
        task = describe_task(turn.id, status, turn.completed_at or asked_at, ttl_ms, is_modern=is_modern)
        if not is_modern or status in ("working", "cancelled"):
            return task
        if status == "input_required":
            return {**task, "inputRequests": list_input_requests(HostObserver(ctx), questions)}
        return {**task, **await self._read_outcome(turn)}

    async def _list_questions(self, turn: FollowedTurn) -> list[StoredQuestion]:
        return [] if turn.has_ended else await self._service.list_open_questions(turn)

    async def _read_outcome(self, turn: FollowedTurn) -> JsonObject:
        try:
            return {
                "result": dump_call_result(await self._read_result(turn, is_modern=True)) | {"resultType": "complete"}
            }
        except MCPError as error:
            return {"error": error.error.model_dump(mode="json", exclude_none=True)}

    async def _read_result(self, turn: FollowedTurn, *, is_modern: bool) -> t.CallToolResult:
        """Return the result of a task that has ended.

        Raises:
            MCPError: the call ended with a JSON-RPC error, or its events were deleted.
        """
        try:
            summary = await self._service.wait_for_turn(turn, TurnSummary)
        except JournalExpired:
            raise MCPError(t.INVALID_PARAMS, _EXPIRED) from None
        if not turn.is_direct:
            return to_call_result(*build_agent_result(turn.id, summary), is_modern=is_modern)
        if isinstance(summary.end, TurnFailed | TurnCancelled):
            raise MCPError(t.INTERNAL_ERROR, summary.end.error.message)
        call = next(iter(summary.calls.values()))
        result = ToolResult("ok" if call.outcome == "ok" else "error", call.content, call.structured)
        result = replace(result, refusal=call.refusal, meta=call.meta)
        return to_call_result(result, is_modern=is_modern)

    async def _cancel(self, ctx: Context, params: TaskRequestParams) -> JsonObject:
        principal = get_principal(ctx)
        _check_may_change(principal)
        with mcp_errors(ctx):
            turn = await self.find_turn(principal, params.task_id)
            if is_modern_host(ctx):
                await self._service.cancel_turn(turn)
                return {}
            if turn.has_ended or turn.cancel_requested:
                raise MCPError(t.INVALID_PARAMS, "The task has ended.")
            await self._service.cancel_turn(turn)
            return await self.describe_current(ctx, params.task_id)

    async def _update(self, ctx: Context, params: TaskUpdateParams) -> JsonObject:
        principal = get_principal(ctx)
        _check_may_change(principal)
        if len(params.input_responses) > _MAX_ANSWERS:
            raise MCPError(t.INVALID_PARAMS, f"inputResponses: at most {_MAX_ANSWERS} are allowed.")
        with mcp_errors(ctx):
            turn = await self.find_turn(principal, params.task_id)
            for stored in await self._list_questions(turn):
                if (response := params.input_responses.get(str(stored.id))) is not None:
                    await self._answer(turn, stored, _parse_answer(response, stored.id), principal)
        return {}

    async def _answer(self, turn: FollowedTurn, stored: StoredQuestion, answer: Answer, principal: Principal) -> None:
        try:
            with contextlib.suppress(Conflict):  # another client has answered meanwhile
                answered = await self._service.get_turn_to_answer(turn.id, principal)
                await self._service.answer_question(answered, stored.id, replace(answer, by=principal.user))
        except InvalidRequest as error:
            raise MCPError(t.INVALID_PARAMS, f"inputResponses.{stored.id}: {error.message}") from None

    async def _list(self, ctx: Context, params: t.PaginatedRequestParams) -> JsonObject:
        principal = get_principal(ctx)
        try:
            before = None if params.cursor is None else UUID(params.cursor)
        except ValueError:
            raise MCPError(t.INVALID_PARAMS, "cursor: is not one of an earlier page.") from None
        reader = limit_to_own_turns(principal)
        with mcp_errors(ctx):
            rows, has_more = await self._tasks.list_page(
                reader, limit=_PAGE_SIZE, before=before, oldest=make_oldest_id(self._max_ttl)
            )
        tasks = [_describe_row(row) for row in rows if not has_expired(row.id, row.mark["ttl"])]
        return {"tasks": tasks} | ({"nextCursor": str(rows[-1].id)} if has_more else {})

    # --- tasks/result of protocol 2025-11-25

    async def _fetch_result(self, ctx: Context, params: TaskRequestParams) -> JsonObject:
        """Wait for a task's end, and ask its questions meanwhile."""
        principal, meta = get_principal(ctx), {RELATED_TASK_META: {"taskId": params.task_id}}
        with mcp_errors(ctx):
            turn = await self.find_turn(principal, params.task_id)
            if not turn.has_ended:
                await self._follow_to_end(ctx, turn, meta)
                turn = await self.find_turn(principal, params.task_id)
            result = dump_call_result(await self._read_result(turn, is_modern=False))
        return result | {"_meta": {**(result.get("_meta") or {}), **meta}}

    async def _follow_to_end(self, ctx: Context, turn: FollowedTurn, meta: JsonObject) -> None:
        may_answer, asked = _may_change(get_principal(ctx)), set[UUID]()
        async with contextlib.aclosing(self._service.follow_to_end(turn)) as batches:
            async for batch in batches:
                if not may_answer or not any(isinstance(entry.event, InputRequired) for entry in batch):
                    continue
                for stored in await self._service.list_open_questions(turn):
                    if stored.id not in asked:
                        asked.add(stored.id)
                        await self._ask_host(ctx, turn, stored, meta)

    async def _ask_host(self, ctx: Context, turn: FollowedTurn, stored: StoredQuestion, meta: JsonObject) -> None:
        """Ask the host's user.

        A question that the host cannot show, or whose answer does not fit, stays open for other clients.
        """
        question = to_host_question(stored)
        if not HostObserver(ctx).can_answer(question):
            return
        request = t.ElicitRequest.model_validate(make_elicitation(question, meta), by_name=False)
        metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
        try:
            result = await ctx.session.send_request(request, t.ElicitResult, metadata=metadata)
            answer = Answer(result.action, cast("JsonObject | None", result.content))
            await self._answer(turn, stored, answer, get_principal(ctx))
        except (MCPError, ValidationError) as error:
            log.info("question_of_task_not_answered", turn_id=str(turn.id), reason=type(error).__name__)


def _choose_turn_status(turn: FollowedTurn, questions: list[StoredQuestion], *, is_modern: bool) -> str:
    status = choose_status(turn.status, cancel_requested=turn.cancel_requested, asks=bool(questions))
    if turn.is_direct:
        return choose_call_status(status, turn.finish_reason, is_modern=is_modern)
    # A turn that fails has an error result: in the extension such a task is completed.
    return "completed" if is_modern and status == "failed" else status


def _describe_row(row: TaskRow) -> JsonObject:
    status = choose_status(row.status, cancel_requested=row.cancel_requested, asks=row.status == "waiting")
    if row.mark["tool"] != ASK_AGENT.name:
        status = choose_call_status(status, row.finish_reason, is_modern=False)
    return describe_task(row.id, status, row.completed_at, row.mark["ttl"], is_modern=False)


def _parse_answer(response: Any, input_id: UUID) -> Answer:
    try:
        given = t.ElicitResult.model_validate(response, by_name=False)
    except ValidationError:
        raise MCPError(t.INVALID_PARAMS, f"inputResponses.{input_id}: is not an answer to a question.") from None
    return Answer(given.action, cast("JsonObject | None", given.content) if given.action == "accept" else None)


def _may_change(principal: Principal) -> bool:
    return principal.role != "viewer"


def _check_may_change(principal: Principal) -> None:
    if not _may_change(principal):
        raise MCPError(t.INVALID_REQUEST, "A viewer may not change tasks.")

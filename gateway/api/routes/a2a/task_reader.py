"""Reads tasks of A2A from the turns of a caller."""

import base64
import binascii
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC
from uuid import UUID

from a2a.types import a2a_pb2 as types
from a2a.utils import errors as a2a_errors
from starlette.datastructures import State

from gateway.agent.service import TurnHandle, TurnService
from gateway.api.turn_folding import fold_stored_events
from gateway.common.pages import Page
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.store.conversations import ConversationStore
from gateway.store.lists.tasks import ListedTask, TaskFilter, TaskListStore
from gateway.store.models import Turn
from gateway.store.turns import TurnStore
from gateway.wire.a2a.tasks import SIGN_IN_STATUS, TaskHead, TaskWriter, find_status


class TaskReader:
    """Reads tasks of one caller, on any worker."""

    def __init__(self, state: State, principal: Principal) -> None:
        self._principal = principal
        self._service: TurnService = state.turn_service
        self._turns: TurnStore = state.turns
        self._conversations: ConversationStore = state.conversations
        self._lists: TaskListStore = state.task_lists

    async def read_page(
        self, conditions: TaskFilter, *, limit: int, before: UUID | None
    ) -> tuple[Page[ListedTask], int]:
        """Return a page of tasks, newest first, and their number in all."""
        page = await self._lists.list_page(self._principal, conditions, limit=limit, before=before)
        return page, await self._lists.count_tasks(self._principal, conditions)

    async def find_turn(self, task_id: str) -> TurnHandle:
        with _task_not_found():
            return await self._service.get_turn(_parse_id(task_id), self._principal)

    async def get_stored(self, task_id: str) -> Turn:
        with _task_not_found():
            return await self._turns.get_turn(_parse_id(task_id), self._principal)

    async def read_task(self, turn: TurnHandle) -> tuple[TaskWriter, int]:
        """Read a turn's task, and the number of its last stored event."""
        return await self.fold_turn(await self._turns.get_turn(turn.id, self._principal))

    async def read_head(self, turn: TurnHandle) -> TaskHead:
        """Read what a task has of its turn's request."""
        return build_head(await self._turns.get_turn(turn.id, self._principal))

    async def fold_turn(self, stored: Turn) -> tuple[TaskWriter, int]:
        """Fold a turn's stored events.

        Return the fold and the last number.
        """
        writer = TaskWriter(build_head(stored))
        seq = await fold_stored_events(self._turns, stored, writer.write_event)
        return writer, seq

    async def get_turn_to_answer(self, task_id: str) -> TurnHandle:
        with _task_not_found():
            return await self._service.get_turn_to_answer(_parse_id(task_id), self._principal)

    async def check_context(self, turn_id: UUID, context_id: str | None) -> None:
        """Check that a message to a task names its context, if any.

        Raises:
            InvalidParamsError: the context is another.
        """
        if not context_id:
            return
        stored = await self._turns.get_turn(turn_id, self._principal)
        if stored.conversation_id is None and context_id == str(turn_id):
            return
        try:
            found = await self._conversations.get_conversation(context_id, self._principal)
        except (NotFound, ValueError):
            found = None
        if found is None or found.id != stored.conversation_id:
            raise a2a_errors.InvalidParamsError("message.contextId: is not the context of this task.")

    async def build_filter(self, params: types.ListTasksRequest) -> TaskFilter | None:
        """Return the conditions of a list.

        None: no turn can meet them.
        """
        conversation_id = status = since = None
        if params.context_id:
            try:
                found = await self._conversations.get_conversation(params.context_id, self._principal)
            except (NotFound, ValueError):
                return None
            conversation_id = found.id
        if params.status:
            if params.status not in types.TaskState.values():
                raise a2a_errors.InvalidParamsError("status: is not a state of tasks.")
            status = find_status(types.TaskState.Name(params.status))
            if status is None:
                return None
        if params.HasField("status_timestamp_after"):
            try:
                since = params.status_timestamp_after.ToDatetime(tzinfo=UTC)
            except (ValueError, OverflowError):
                raise a2a_errors.InvalidParamsError("statusTimestampAfter: is not a time.") from None
        if status in ("waiting", SIGN_IN_STATUS):
            return TaskFilter(conversation_id, "waiting", status == SIGN_IN_STATUS, since)
        return TaskFilter(conversation_id, status, since=since)


@contextmanager
def _task_not_found() -> Generator[None]:
    try:
        yield
    except NotFound:
        raise a2a_errors.TaskNotFoundError from None


def _parse_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        raise NotFound from None


def parse_page_token(token: str) -> UUID:
    try:
        return UUID(bytes=base64.urlsafe_b64decode(token + "=="))
    except (binascii.Error, ValueError):
        raise a2a_errors.InvalidParamsError("pageToken: is not one of this list.") from None


def build_head(stored: Turn) -> TaskHead:
    echo: JsonObject = stored.options.get("echo") or {}
    conversation = str(stored.conversation_id) if stored.conversation_id else None
    changed_at = stored.completed_at or stored.created_at
    return TaskHead(str(stored.id), stored.prompt, echo.get("message_id"), conversation, changed_at)


def format_page_token(turn_id: UUID) -> str:
    """Return the token of the page below a turn."""
    return base64.urlsafe_b64encode(turn_id.bytes).decode().rstrip("=")

"""Notifications about the status of tasks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import mcp.types as t
from mcp import MCPError
from mcp.server.session import ServerSession

from gateway.agent.service import TurnService
from gateway.api.mcp.host import HOST_GONE, Context, get_principal
from gateway.api.mcp.tasks.messages import require_extension
from gateway.common.concurrency import Deadline, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.events import InputRequired, InputResolved, TurnCancelled, TurnCompleted, TurnFailed, TurnResumed
from gateway.domain.messages import JsonObject

log = get_logger(__name__)

MAX_STREAM_TASKS = 50
_MAX_FOLLOWED = 500
"""Tasks of a worker that are followed at once; others are polled."""
_NOTIFY_TIMEOUT_SECONDS = 5.0
_CHANGES = (InputRequired, InputResolved, TurnResumed, TurnCompleted, TurnFailed, TurnCancelled)
_SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"

Describe = Callable[[Context, str], Awaitable[JsonObject]]
"""Describes the task of this id; raises MCPError if there is none."""
Listen = Callable[[Context, t.SubscriptionsListenRequestParams], Awaitable[t.SubscriptionsListenResult]]


class StatusStreams:
    """Follows tasks for hosts, which may also poll.

    A legacy host is told on the stream of its session, one of the current protocol on its listen stream.
    """

    def __init__(self, service: TurnService, describe: Describe) -> None:
        self._service = service
        self._describe = describe
        self._followers = TaskSet("status of mcp task")
        self._sessions: dict[str, set[asyncio.Task[None]]] = {}
        self._followed = 0

    # --- legacy sessions

    def follow_for_session(self, ctx: Context, task_id: str) -> None:
        """Follow a task that a legacy session has just started."""
        name = None if ctx.request is None else ctx.request.headers.get("mcp-session-id")
        if name is None:
            return
        followers = self._sessions.setdefault(name, set())
        if len(followers) < MAX_STREAM_TASKS:

            async def notify(task: JsonObject) -> None:
                params = t.TaskStatusNotificationParams.model_validate(task, by_name=False)
                await _send(ctx.session, t.TaskStatusNotification(params=params), None)

            follower = self._followers.spawn(self._follow(ctx, task_id, notify))
            followers.add(follower)
            follower.add_done_callback(followers.discard)

    def end_session(self, name: str) -> None:
        """Follow no more tasks for a legacy session."""
        for follower in self._sessions.pop(name, ()):
            follower.cancel()

    # --- listen streams

    async def listen(
        self, ctx: Context, params: t.SubscriptionsListenRequestParams, listen: Listen
    ) -> t.SubscriptionsListenResult:
        """Serve a listen stream, also with the tasks that it names.

        Raises:
            MCPError: it names tasks, and the host does not declare the extension.
        """
        requested: Any = (params.notifications.model_extra or {}).get("taskIds")
        if not requested:
            return await listen(ctx, params)
        require_extension(ctx)
        if not isinstance(requested, list) or not all(
            isinstance(task_id, str) for task_id in cast("list[Any]", requested)
        ):
            raise MCPError(t.INVALID_PARAMS, "notifications.taskIds: must be a list of strings.")
        task_ids = await self._list_known(ctx, list(dict.fromkeys(cast("list[str]", requested)))[:MAX_STREAM_TASKS])
        followers = TaskSet("status of mcp task")
        session = _ListenSession(ctx.session, task_ids, lambda: self._start_followers(ctx, task_ids, followers))
        try:
            return await listen(replace(ctx, session=cast("ServerSession", session)), params)
        finally:
            await followers.stop()

    async def _list_known(self, ctx: Context, task_ids: Sequence[str]) -> list[str]:
        known: list[str] = []
        for task_id in task_ids:
            try:
                await self._describe(ctx, task_id)
            except (MCPError, GatewayError):
                continue
            known.append(task_id)
        return known

    def _start_followers(self, ctx: Context, task_ids: Sequence[str], followers: TaskSet) -> None:
        async def notify(task: JsonObject) -> None:
            await _send(ctx.session, _TaskNotification(params={**task, "_meta": meta}), ctx.request_id)

        meta = {_SUBSCRIPTION_ID: ctx.request_id}
        for task_id in task_ids:
            followers.spawn(self._follow(ctx, task_id, notify))

    # --- both

    async def _follow(self, ctx: Context, task_id: str, notify: Callable[[JsonObject], Awaitable[None]]) -> None:
        """Notify of each change of a task's status until it has ended.

        The first notification has the status at the start.
        """
        if self._followed >= _MAX_FOLLOWED:
            return
        self._followed += 1
        try:
            status = await self._notify_change(ctx, task_id, "", notify)
            turn = await self._service.get_turn(UUID(task_id), get_principal(ctx))
            async with aclosing(self._service.follow_to_end(turn)) as batches:
                async for batch in batches:
                    if any(isinstance(entry.event, _CHANGES) for entry in batch):
                        status = await self._notify_change(ctx, task_id, status, notify)
        except (GatewayError, MCPError, TimeoutError, *HOST_GONE) as error:
            log.debug("task_not_followed", task_id=task_id, reason=type(error).__name__)
        finally:
            self._followed -= 1

    async def _notify_change(
        self, ctx: Context, task_id: str, known: str, notify: Callable[[JsonObject], Awaitable[None]]
    ) -> str:
        task = await self._describe(ctx, task_id)
        if task["status"] != known:
            await notify(task)
        return task["status"]

    async def stop(self) -> None:
        """Follow no more tasks for legacy sessions."""
        await self._followers.stop()


class _TaskNotification(t.Notification[JsonObject, Any]):
    """`notifications/tasks` of the extension."""

    method: Any = "notifications/tasks"
    params: JsonObject


class _ListenSession:
    """A session that acknowledges tasks, too.

    `on_acknowledged` is called after the acknowledgement, which must be the first message.
    """

    def __init__(self, session: ServerSession, task_ids: list[str], on_acknowledged: Callable[[], None]) -> None:
        self._session = session
        self._task_ids = task_ids
        self._on_acknowledged = on_acknowledged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def send_notification(
        self, notification: t.ServerNotification, related_request_id: t.RequestId | None = None
    ) -> None:
        is_first = isinstance(notification, t.SubscriptionsAcknowledgedNotification)
        if is_first:
            accepted = notification.params.notifications.model_copy(update={"taskIds": self._task_ids})
            params = notification.params.model_copy(update={"notifications": accepted})
            notification = notification.model_copy(update={"params": params})
        await self._session.send_notification(notification, related_request_id)
        if is_first:
            self._on_acknowledged()


async def _send(session: ServerSession, notification: Any, request_id: t.RequestId | None) -> None:
    async with Deadline.after(_NOTIFY_TIMEOUT_SECONDS).limit():
        await session.send_notification(notification, request_id)

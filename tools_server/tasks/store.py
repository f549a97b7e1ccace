"""Tasks in Postgres, separate for each user."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tools_server.common.database import DatabaseUnavailable, ToolsDatabase
from tools_server.tasks import calls
from tools_server.tasks.calls import CallKey
from tools_server.tasks.models import Task, TaskCounter

Status = Literal["pending", "completed"]

MAX_LISTED, MAX_TASKS = 200, 10_000
_MAX_LISTED_DESCRIPTION_LENGTH = 200


class TaskView(BaseModel):
    id: int
    title: str
    description: str = ""
    status: Status
    created_at: datetime
    completed_at: datetime | None = None

    def to_line(self) -> str:
        return f"#{self.id} [{self.status}] {self.title}"

    def to_lines(self) -> str:
        details = " ".join(self.description.split())
        if len(details) > _MAX_LISTED_DESCRIPTION_LENGTH:
            details = f"{details[:_MAX_LISTED_DESCRIPTION_LENGTH]}…"
        return f"{self.to_line()}\n    Details: {details}" if details else self.to_line()


class TaskList(BaseModel):
    tasks: list[TaskView]
    total: int = Field(description="How many there are, of which the first 200 are listed.")


class TasksUnavailable(Exception):
    """Error of an unavailable database of tasks.

    `in_doubt`: the connection failed during a commit.
    """

    def __init__(self, *, in_doubt: bool) -> None:
        super().__init__(
            "The connection to the tasks' database failed during the change, which may have been saved or not. "
            "Look with list_tasks."
            if in_doubt
            else "The tasks' database cannot be reached now, and nothing was changed. Try again later."
        )


class TooManyTasks(Exception):
    """The user has `MAX_TASKS` tasks."""


class UnknownTask(Exception):
    """Error of a user without a task of this id.

    `existing` are up to 20 of the user's tasks.
    """

    def __init__(self, task_id: int, existing: list[TaskView]) -> None:
        super().__init__(task_id)
        self.task_id = task_id
        self.existing = existing


class TaskStore:
    """Tasks in Postgres. Each operation is one short transaction for one user.

    An operation ends after `timeout_seconds`, of which it waits at most half for a connection of the pool.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self.database = ToolsDatabase(url, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self.database.close()

    async def is_reachable(self) -> bool:
        """Return whether the database answers within two seconds."""
        try:
            async with self._open_session(timeout=2.0, changes=False) as session:
                await session.exec(select(1))
        except TasksUnavailable:
            return False
        return True

    async def add_task(self, user: str, title: str, description: str, call: CallKey | None = None) -> TaskView:
        """Add a task with the user's next id.

        A repeated `call` returns the task that the first one added.

        Raises:
            TooManyTasks: the user has `MAX_TASKS` tasks.
            KeyReused: the key of `call` belongs to another call.
            TasksUnavailable: the database is unavailable.
        """
        next_id_query = insert(TaskCounter).values(user_id=user, last_id=1)
        next_id_query = next_id_query.on_conflict_do_update(
            index_elements=["user_id"], set_={"last_id": col(TaskCounter.last_id) + 1}
        ).returning(col(TaskCounter.last_id))
        count_query = select(func.count()).select_from(Task).where(Task.user_id == user)

        async def add(session: AsyncSession) -> TaskView:
            # The counter's row is locked until the commit, so concurrent additions of one user run one by one.
            task_id: int = (await session.exec(next_id_query)).scalar_one()  # pyright: ignore
            if (await session.exec(count_query)).one() >= MAX_TASKS:
                raise TooManyTasks
            task = Task(user_id=user, id=task_id, title=title, description=description)
            session.add(task)
            await session.flush()
            await session.refresh(task)
            return _to_view(task)

        return await self._change(user, call, add)

    async def list_tasks(self, user: str, status: Status | None) -> TaskList:
        """List the first `MAX_LISTED` tasks by id.

        With a `status` of None, list pending and completed tasks.

        Raises:
            TasksUnavailable: the database is unavailable.
        """
        query = select(Task).where(Task.user_id == user)
        count_query = select(func.count()).select_from(Task).where(Task.user_id == user)
        if status is not None:
            query, count_query = query.where(Task.status == status), count_query.where(Task.status == status)
        async with self._open_session(changes=False) as session:
            tasks = (await session.exec(query.order_by(col(Task.id)).limit(MAX_LISTED))).all()
            total = (await session.exec(count_query)).one()
        return TaskList(tasks=[_to_view(task) for task in tasks], total=total)

    async def complete_task(self, user: str, task_id: int, call: CallKey | None = None) -> TaskView:
        """Mark a task as completed; the time of an earlier completion stays.

        Raises:
            UnknownTask: the user has no such task.
            KeyReused: the key of `call` belongs to another call.
            TasksUnavailable: the database is unavailable.
        """

        async def complete(session: AsyncSession) -> TaskView:
            task = await self._get_task(session, user, task_id)
            if task.status != "completed":
                task.status, task.completed_at = "completed", datetime.now(UTC)
            return _to_view(task)

        return await self._change(user, call, complete)

    async def update_task(
        self, user: str, task_id: int, title: str | None, description: str | None, call: CallKey | None = None
    ) -> TaskView:
        """Change title and description; None leaves one unchanged. Raises like `complete_task`."""

        async def update(session: AsyncSession) -> TaskView:
            task = await self._get_task(session, user, task_id)
            task.title = task.title if title is None else title
            task.description = task.description if description is None else description
            return _to_view(task)

        return await self._change(user, call, update)

    async def delete_task(self, user: str, task_id: int, call: CallKey | None = None) -> TaskView:
        """Delete a task and return it. Raises like `complete_task`."""

        async def delete(session: AsyncSession) -> TaskView:
            task = await self._get_task(session, user, task_id)
            await session.delete(task)
            return _to_view(task)

        return await self._change(user, call, delete)

    async def find_result(self, user: str, call: CallKey) -> TaskView | None:
        """Return the task that an earlier call has returned.

        Raises like `complete_task`.
        """
        async with self._open_session(changes=False) as session:
            result = await calls.find_result(session, user, call)
        return None if result is None else TaskView.model_validate_json(result)

    async def _change(
        self, user: str, call: CallKey | None, change: Callable[[AsyncSession], Awaitable[TaskView]]
    ) -> TaskView:
        """Run a change in one transaction; once for each key."""
        async with self._open_session() as session:
            if call is None:
                return await change(session)
            result = await calls.claim_call(session, user, call)
            if result is not None:
                return TaskView.model_validate_json(result)
            view = await change(session)
            await calls.save_result(session, user, call, view.model_dump_json())
            return view

    async def _get_task(self, session: AsyncSession, user: str, task_id: int) -> Task:
        query = select(Task).where(Task.user_id == user, Task.id == task_id).with_for_update()
        task = (await session.exec(query)).first()
        if task is None:
            others = await session.exec(select(Task).where(Task.user_id == user).order_by(col(Task.id)).limit(20))
            raise UnknownTask(task_id, [_to_view(other) for other in others])
        return task

    @asynccontextmanager
    async def _open_session(
        self, *, timeout: float | None = None, changes: bool = True
    ) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that commits at the end of the block.

        `changes`: whether the block changes rows.

        Raises:
            TasksUnavailable: the database is unavailable, or block and commit took longer than `timeout` seconds.
        """
        try:
            async with self.database.session(timeout=timeout, changes=changes) as session:
                yield session
        except DatabaseUnavailable as error:
            raise TasksUnavailable(in_doubt=error.in_doubt) from error


def _to_view(task: Task) -> TaskView:
    return TaskView.model_validate(task, from_attributes=True)

"""Tasks in Postgres: per user, with small ids that count from 1 and are never used again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

import asyncpg
import structlog
from pydantic import BaseModel, Field
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tools_server.tasks.models import Task, TaskCounter

log = structlog.stdlib.get_logger(__name__)

Status = Literal["pending", "completed"]

MAX_LISTED, MAX_TASKS = 200, 10_000
_MAX_SHOWN_CHARS = 200  # of a description, in a list
_UNAVAILABLE_ERRORS = (
    OSError,
    TimeoutError,
    NoFreeConnection,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,  # there, but not migrated yet
    asyncpg.InvalidSchemaNameError,
)


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
        shown = details if len(details) <= _MAX_SHOWN_CHARS else f"{details[:_MAX_SHOWN_CHARS]}…"
        return f"{self.to_line()}\n    Details: {shown}" if details else self.to_line()


class TaskList(BaseModel):
    tasks: list[TaskView]
    total: int = Field(description="How many there are, of which the first 200 are listed.")


class TasksUnavailable(Exception):
    """The tasks' database cannot be reached. `in_doubt`: it went away while a change was being kept."""

    def __init__(self, *, in_doubt: bool) -> None:
        super().__init__(
            "The tasks' database went away: it is not known whether the change was kept. Look with list_tasks."
            if in_doubt
            else "The tasks' database cannot be reached now, and nothing was changed. Try again later."
        )


class TooManyTasks(Exception):
    """The user has as many tasks as there may be."""


class UnknownTask(Exception):
    """The user has no task of that id; `existing` are some that there are."""

    def __init__(self, task_id: int, existing: list[TaskView]) -> None:
        super().__init__(task_id)
        self.task_id = task_id
        self.existing = existing


class TaskStore:
    """Tasks in Postgres. Every operation is one short transaction, of one user.

    An operation ends after `timeout_seconds`, of which it waits at most half for a connection of the pool.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._engine = create_async_engine(
            url,
            pool_size=4,
            max_overflow=8,
            pool_timeout=timeout_seconds / 2,
            # A restart of Postgres between two calls goes unseen. Trying again instead could add a task twice.
            pool_pre_ping=True,
            connect_args={"timeout": 3},
            hide_parameters=True,
        )
        self._sessions = async_sessionmaker(self._engine, class_=AsyncSession, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

    async def is_reachable(self) -> bool:
        try:
            async with self._open_session(timeout=2.0, changes=False) as session:
                await session.exec(select(1))
        except TasksUnavailable:
            return False
        return True

    async def add_task(self, user: str, title: str, description: str) -> TaskView:
        counted = insert(TaskCounter).values(user_id=user, last_id=1)
        counted = counted.on_conflict_do_update(
            index_elements=["user_id"], set_={"last_id": col(TaskCounter.last_id) + 1}
        ).returning(col(TaskCounter.last_id))
        counting = select(func.count()).select_from(Task).where(Task.user_id == user)
        async with self._open_session() as session:
            # The counter's row is locked until the commit: concurrent adds of one user take their turns.
            task_id: int = (await session.exec(counted)).scalar_one()  # pyright: ignore
            if (await session.exec(counting)).one() >= MAX_TASKS:
                raise TooManyTasks
            task = Task(user_id=user, id=task_id, title=title, description=description)
            session.add(task)
            await session.flush()
            await session.refresh(task)
            return _to_view(task)

    async def list_tasks(self, user: str, status: Status | None) -> TaskList:
        query = select(Task).where(Task.user_id == user)
        counting = select(func.count()).select_from(Task).where(Task.user_id == user)
        if status is not None:
            query, counting = query.where(Task.status == status), counting.where(Task.status == status)
        async with self._open_session(changes=False) as session:
            tasks = (await session.exec(query.order_by(col(Task.id)).limit(MAX_LISTED))).all()
            total = (await session.exec(counting)).one()
        return TaskList(tasks=[_to_view(task) for task in tasks], total=total)

    async def complete_task(self, user: str, task_id: int) -> TaskView:
        async with self._open_session() as session:
            task = await self._get_task(session, user, task_id)
            if task.status != "completed":
                task.status, task.completed_at = "completed", datetime.now(UTC)
            return _to_view(task)

    async def update_task(self, user: str, task_id: int, title: str | None, description: str | None) -> TaskView:
        async with self._open_session() as session:
            task = await self._get_task(session, user, task_id)
            task.title = task.title if title is None else title
            task.description = task.description if description is None else description
            return _to_view(task)

    async def delete_task(self, user: str, task_id: int) -> TaskView:
        async with self._open_session() as session:
            task = await self._get_task(session, user, task_id)
            await session.delete(task)
            return _to_view(task)

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
        """One transaction, kept at the end of the block.

        Raises:
            TasksUnavailable: the database is away, or took longer than `timeout` seconds.
        """
        committing = False
        try:
            async with asyncio.timeout(timeout or self._timeout_seconds), self._sessions() as session:
                yield session
                committing = changes
                await session.commit()
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            if not _is_unavailable(error):
                raise
            log.warning("task_database_away", error=type(error).__name__)
            raise TasksUnavailable(in_doubt=committing) from error


def _is_unavailable(error: BaseException) -> bool:
    """Whether the database was away, rather than at odds with what was asked of it."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error.orig and error.orig.__cause__, _UNAVAILABLE_ERRORS)
    return isinstance(error, _UNAVAILABLE_ERRORS)


def _to_view(task: Task) -> TaskView:
    return TaskView.model_validate(task, from_attributes=True)

"""Tasks per user, in Postgres: table, store, tools."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import structlog
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field
from sqlalchemy import CheckConstraint, Column, DateTime, Integer, Text, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import Field as ColumnField
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tools_server.auth import current_user

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")
Status = Literal["pending", "completed"]

MOST_TITLE, MOST_DESCRIPTION = 200, 2_000
MOST_LISTED, MOST_TASKS = 200, 10_000


class Task(SQLModel, table=True):
    """A task. Its id counts from 1 for each user, and is never used again."""

    __tablename__: ClassVar[Any] = "tasks"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'completed')", name="ck_tasks_status"),
        {"schema": "tools"},
    )

    user_id: str = ColumnField(sa_column=Column(Text, primary_key=True))
    id: int = ColumnField(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    title: str = ColumnField(sa_type=Text)
    description: str = ColumnField(default="", sa_column=Column(Text, nullable=False, server_default=""))
    status: str = ColumnField(default="pending", sa_type=Text)
    created_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )
    completed_at: datetime | None = ColumnField(default=None, sa_column=Column(DateTime(timezone=True)))


class TaskCounter(SQLModel, table=True):
    """The last id that a user's tasks have used."""

    __tablename__: ClassVar[Any] = "task_counters"
    __table_args__: ClassVar[Any] = {"schema": "tools"}

    user_id: str = ColumnField(sa_column=Column(Text, primary_key=True))
    last_id: int


class TaskView(BaseModel):
    id: int
    title: str
    description: str = ""
    status: Status
    created_at: datetime
    completed_at: datetime | None = None

    def line(self) -> str:
        return f"#{self.id} [{self.status}] {self.title}"


class TaskList(BaseModel):
    tasks: list[TaskView]
    total: int = Field(description="How many there are, of which the first 200 are listed.")


class TaskChanged(BaseModel):
    task: TaskView


class TaskDeleted(BaseModel):
    deleted: TaskView


class TasksUnavailable(Exception):
    """The tasks' database cannot be reached."""


class TooManyTasks(Exception):
    """The user has as many tasks as there may be."""


class UnknownTask(Exception):
    """The user has no task of that id; `existing` are some that there are."""

    def __init__(self, task_id: int, existing: list[TaskView]) -> None:
        super().__init__(task_id)
        self.task_id = task_id
        self.existing = existing


class TaskStore:
    """Tasks in Postgres. Every operation is one short transaction, of one user."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(
            url, pool_size=4, max_overflow=8, pool_timeout=5, pool_pre_ping=True, connect_args={"timeout": 3}
        )
        self._sessions = async_sessionmaker(self._engine, class_=AsyncSession, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

    async def reachable(self) -> bool:
        try:
            async with asyncio.timeout(2), self._session() as session:
                await session.exec(select(1))
        except (TasksUnavailable, TimeoutError):
            return False
        return True

    async def add(self, user: str, title: str, description: str) -> TaskView:
        counted = insert(TaskCounter).values(user_id=user, last_id=1)
        counted = counted.on_conflict_do_update(
            index_elements=["user_id"], set_={"last_id": col(TaskCounter.last_id) + 1}
        ).returning(col(TaskCounter.last_id))
        counting = select(func.count()).select_from(Task).where(Task.user_id == user)
        async with self._session() as session:
            # The counter's row is locked until the commit: concurrent adds of one user take their turns.
            task_id: int = (await session.exec(counted)).scalar_one()  # pyright: ignore
            if (await session.exec(counting)).one() >= MOST_TASKS:
                raise TooManyTasks
            task = Task(user_id=user, id=task_id, title=title, description=description)
            session.add(task)
            await session.flush()
            await session.refresh(task)
            return _view(task)

    async def list(self, user: str, status: Status | None) -> TaskList:
        query = select(Task).where(Task.user_id == user)
        counting = select(func.count()).select_from(Task).where(Task.user_id == user)
        if status is not None:
            query, counting = query.where(Task.status == status), counting.where(Task.status == status)
        async with self._session() as session:
            tasks = (await session.exec(query.order_by(col(Task.id)).limit(MOST_LISTED))).all()
            total = (await session.exec(counting)).one()
        return TaskList(tasks=[_view(task) for task in tasks], total=total)

    async def complete(self, user: str, task_id: int) -> TaskView:
        async with self._session() as session:
            task = await self._get(session, user, task_id)
            if task.status != "completed":
                task.status, task.completed_at = "completed", datetime.now(UTC)
            return _view(task)

    async def update(self, user: str, task_id: int, title: str | None, description: str | None) -> TaskView:
        async with self._session() as session:
            task = await self._get(session, user, task_id)
            task.title = task.title if title is None else title
            task.description = task.description if description is None else description
            return _view(task)

    async def delete(self, user: str, task_id: int) -> TaskView:
        async with self._session() as session:
            task = await self._get(session, user, task_id)
            await session.delete(task)
            return _view(task)

    async def _get(self, session: AsyncSession, user: str, task_id: int) -> Task:
        query = select(Task).where(Task.user_id == user, Task.id == task_id).with_for_update()
        task = (await session.exec(query)).first()
        if task is None:
            others = await session.exec(select(Task).where(Task.user_id == user).order_by(col(Task.id)).limit(20))
            raise UnknownTask(task_id, [_view(other) for other in others])
        return task

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[AsyncSession]:
        try:
            async with self._sessions() as session:
                yield session
                await session.commit()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("task_database", error=type(error).__name__)
            raise TasksUnavailable from error


def _view(task: Task) -> TaskView:
    return TaskView.model_validate(task, from_attributes=True)


# --- the tools


TaskId = Annotated[int, Field(description="The task's number, as list_tasks shows it: #3 is 3.", ge=1, le=2**31 - 1)]
Title = Annotated[str, Field(description="What is to be done, in a few words.", min_length=1, max_length=MOST_TITLE)]
Description = Annotated[str, Field(description="Details, if there are any.", max_length=MOST_DESCRIPTION)]

_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_DELETES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


def register(mcp: MCPServer[Any], store: TaskStore) -> None:
    @mcp.tool(title="Add a task", annotations=_ADDS)
    async def add_task(
        title: Title, ctx: Context[Any], description: Description = ""
    ) -> Annotated[CallToolResult, TaskChanged]:
        """Add a task to the user's list. Returns its number. Add each task once; to change one use update_task."""
        task = await _answer(store.add(current_user(ctx), _clean_title(title), _clean(description)))
        return _said(f"Added task #{task.id}: {task.title}", TaskChanged(task=task))

    @mcp.tool(title="List tasks", annotations=_READS)
    async def list_tasks(
        ctx: Context[Any],
        status: Annotated[
            Literal["all", "pending", "completed"], Field(description="Which ones: pending are those still to do.")
        ] = "all",
    ) -> Annotated[CallToolResult, TaskList]:
        """List the user's tasks, oldest first, each with its number and whether it is pending or completed."""
        found = await _answer(store.list(current_user(ctx), None if status == "all" else status))
        return _said(_listing(found, status), found)

    @mcp.tool(title="Complete a task", annotations=_CHANGES)
    async def complete_task(task_id: TaskId, ctx: Context[Any]) -> Annotated[CallToolResult, TaskChanged]:
        """Mark a task as completed. Take its number from list_tasks; never guess it."""
        task = await _answer(store.complete(current_user(ctx), task_id))
        return _said(f"Completed task #{task.id}: {task.title}", TaskChanged(task=task))

    @mcp.tool(title="Change a task", annotations=_CHANGES)
    async def update_task(
        task_id: TaskId, ctx: Context[Any], title: Title | None = None, description: Description | None = None
    ) -> Annotated[CallToolResult, TaskChanged]:
        """Change a task's title or description, or both. What is not given stays as it is."""
        if title is None and description is None:
            raise ToolError("Give a new title or a new description.")
        new_title = None if title is None else _clean_title(title)
        new_description = None if description is None else _clean(description)
        task = await _answer(store.update(current_user(ctx), task_id, new_title, new_description))
        return _said(f"Changed task #{task.id}: {task.title}", TaskChanged(task=task))

    @mcp.tool(title="Delete a task", annotations=_DELETES)
    async def delete_task(task_id: TaskId, ctx: Context[Any]) -> Annotated[CallToolResult, TaskDeleted]:
        """Delete a task for good. To mark it as done use complete_task. Take its number from list_tasks."""
        task = await _answer(store.delete(current_user(ctx), task_id))
        return _said(f"Deleted task #{task.id}: {task.title}", TaskDeleted(deleted=task))

    @mcp.resource("tasks://{status}", title="Tasks", mime_type="text/plain")
    async def tasks_by_status(status: str, ctx: Context[Any]) -> str:
        """The user's tasks, one a line. The status is all, pending or completed."""
        chosen = _STATUSES.get(status, "unknown")
        if chosen == "unknown":
            raise ToolError("The status is all, pending or completed.")
        return _listing(await _answer(store.list(current_user(ctx), chosen)), status)

    @mcp.prompt(title="Plan my day")
    async def plan_day(ctx: Context[Any]) -> str:
        """Plan the day from the user's pending tasks."""
        found = await _answer(store.list(current_user(ctx), "pending"))
        return (
            "Plan my day from my pending tasks. Put the urgent and the short ones first, group what belongs together, "
            f"say what can wait, and ask me where something is unclear.\n\n{_listing(found, 'pending')}"
        )


_STATUSES: dict[str, Any] = {"all": None, "pending": "pending", "completed": "completed"}


async def _answer(work: Awaitable[T]) -> T:
    """The store's result, its failures as something a model can act on."""
    try:
        return await work
    except UnknownTask as error:
        there = "; ".join(task.line() for task in error.existing) or "none at all"
        raise ToolError(f"The user has no task #{error.task_id}. There are: {there}.") from None
    except TooManyTasks:
        raise ToolError(f"The user has {MOST_TASKS} tasks, which is the most. Delete some first.") from None
    except TasksUnavailable:
        raise ToolError("The tasks' database cannot be reached now. Nothing was changed. Try again later.") from None


def _listing(found: TaskList, status: str) -> str:
    kind = "" if status == "all" else f"{status} "
    if not found.tasks:
        return f"There are no {kind}tasks."
    more = f"\n… and {found.total - len(found.tasks)} more." if found.total > len(found.tasks) else ""
    return "\n".join(task.line() for task in found.tasks) + more


def _said(text: str, structured: BaseModel) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=structured.model_dump(mode="json")
    )


def _clean(text: str) -> str:
    """Postgres keeps no NUL character."""
    return text.replace("\x00", "").strip()


def _clean_title(title: str) -> str:
    cleaned = " ".join(_clean(title).split())
    if not cleaned:
        raise ToolError("The title is empty. Say in a few words what is to be done.")
    return cleaned

"""The task tools, the resource `tasks://{status}` and the prompt `plan_day`."""

from collections.abc import Awaitable
from typing import Annotated, Literal, TypeVar

from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.types import INTERNAL_ERROR, CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from tools_server.auth import get_current_user
from tools_server.tasks.calls import DEDUPLICATES, KEY_META, KeyReused, parse_call_key
from tools_server.tasks.store import (
    MAX_TASKS,
    Status,
    TaskList,
    TaskStore,
    TasksUnavailable,
    TaskView,
    TooManyTasks,
    UnknownTask,
)

T = TypeVar("T")

MAX_TITLE_LENGTH, MAX_DESCRIPTION_LENGTH = 200, 2_000


class TaskChoice(BaseModel):
    task_id: int = Field(description="The number of the task that is meant.", ge=1)


class TaskChanged(BaseModel):
    task: TaskView


class TaskDeleted(BaseModel):
    deleted: TaskView


TaskId = Annotated[int, Field(description="The task's number, as list_tasks shows it: #3 is 3.", ge=1, le=2**31 - 1)]
Title = Annotated[
    str, Field(description="What is to be done, in a few words.", min_length=1, max_length=MAX_TITLE_LENGTH)
]
Description = Annotated[str, Field(description="Details, if there are any.", max_length=MAX_DESCRIPTION_LENGTH)]
NewTitle = Annotated[Title | None, Field(description="The new title; left out, it stays as it is.")]
NewDescription = Annotated[
    Description | None, Field(description="The new details; left out, they stay as they are; empty, they are removed.")
]

_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_DELETES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


def register_task_tools(mcp: MCPServer[object], store: TaskStore) -> None:
    """Add the tools, the resource and the prompt to a server."""
    _register_add_and_list_tools(mcp, store)
    _register_change_tools(mcp, store)
    _register_delete_tool(mcp, store)
    _register_resource_and_prompt(mcp, store)


def _register_add_and_list_tools(mcp: MCPServer[object], store: TaskStore) -> None:
    @mcp.tool(title="Add a task", annotations=_ADDS, meta=DEDUPLICATES)
    async def add_task(
        title: Title, ctx: Context[object], description: Description = ""
    ) -> Annotated[CallToolResult, TaskChanged]:
        """Add a task to the user's list. Returns its number. Add each task once; to change one use update_task."""
        title, description = _clean_title(title), _clean_text(description)
        call = parse_call_key(ctx, "add_task", title, description)
        task = await _call_store(store.add_task(get_current_user(ctx), title, description, call))
        return _make_result(f"Added task #{task.id}: {task.title}", TaskChanged(task=task))

    @mcp.tool(title="List tasks", annotations=_READS)
    async def list_tasks(
        ctx: Context[object],
        status: Annotated[
            Literal["all", "pending", "completed"], Field(description="Which ones: pending are those still to do.")
        ] = "all",
    ) -> Annotated[CallToolResult, TaskList]:
        """List the user's tasks, oldest first, each with its number and whether it is pending or completed."""
        tasks = await _call_store(store.list_tasks(get_current_user(ctx), _STATUSES[status]))
        return _make_result(_format_list(tasks, status), tasks)


def _register_change_tools(mcp: MCPServer[object], store: TaskStore) -> None:
    @mcp.tool(title="Complete a task", annotations=_CHANGES, meta=DEDUPLICATES)
    async def complete_task(task_id: TaskId, ctx: Context[object]) -> Annotated[CallToolResult, TaskChanged]:
        """Mark a task as completed. Take its number from list_tasks; never guess it."""
        call = parse_call_key(ctx, "complete_task", task_id)
        task = await _call_store(store.complete_task(get_current_user(ctx), task_id, call))
        return _make_result(f"Completed task #{task.id}: {task.title}", TaskChanged(task=task))

    @mcp.tool(title="Change a task", annotations=_CHANGES, meta=DEDUPLICATES)
    async def update_task(
        task_id: TaskId, ctx: Context[object], title: NewTitle = None, description: NewDescription = None
    ) -> Annotated[CallToolResult, TaskChanged]:
        """Change a task's title or description, or both. What is not given stays as it is."""
        if title is None and description is None:
            raise ToolError("Give a new title or a new description.")
        new_title = None if title is None else _clean_title(title)
        new_description = None if description is None else _clean_text(description)
        call = parse_call_key(ctx, "update_task", task_id, new_title, new_description)
        task = await _call_store(store.update_task(get_current_user(ctx), task_id, new_title, new_description, call))
        return _make_result(f"Changed task #{task.id}: {task.title}", TaskChanged(task=task))


def _register_delete_tool(mcp: MCPServer[object], store: TaskStore) -> None:
    async def choose_task(
        ctx: Context[object], task_id: int | None, title: str | None
    ) -> TaskChoice | Elicit[TaskChoice]:
        """Find the task by number or title.

        If several tasks have the title, the user is asked.
        """
        if task_id is not None:
            return TaskChoice(task_id=task_id)
        if not title:
            raise ToolError("Give the task's number, or its title.")
        call = parse_call_key(ctx, "delete_task", task_id, title)
        if call is not None and (deleted := await _call_store(store.find_result(get_current_user(ctx), call))):
            return TaskChoice(task_id=deleted.id)
        tasks = (await _call_store(store.list_tasks(get_current_user(ctx), None))).tasks
        matches = _find_by_title(tasks, title)
        if not matches:
            raise ToolError(f"The user has no task called {title!r}. There are: {_format_line(tasks[:20])}.")
        if len(matches) == 1:
            return TaskChoice(task_id=matches[0].id)
        lines = "\n".join(task.to_line() for task in matches)
        return Elicit(f"Several tasks are called {title!r}. Which one is to be deleted?\n{lines}", TaskChoice)

    @mcp.tool(title="Delete a task", annotations=_DELETES, meta=DEDUPLICATES)
    async def delete_task(
        ctx: Context[object],
        chosen: Annotated[TaskChoice, Resolve(choose_task)],
        task_id: Annotated[TaskId | None, Field(description="The task's number, if you know it.")] = None,
        title: Annotated[str | None, Field(description="Else its title.", max_length=MAX_TITLE_LENGTH)] = None,
    ) -> Annotated[CallToolResult, TaskDeleted]:
        """Delete a task for good, by its number or else by its title. To mark it as done use complete_task.

        Where several tasks have the title, the user is asked which one is meant.
        """
        call = parse_call_key(ctx, "delete_task", task_id, title)
        task = await _call_store(store.delete_task(get_current_user(ctx), chosen.task_id, call))
        return _make_result(f"Deleted task #{task.id}: {task.title}", TaskDeleted(deleted=task))


def _register_resource_and_prompt(mcp: MCPServer[object], store: TaskStore) -> None:
    @mcp.resource("tasks://{status}", title="Tasks", mime_type="text/plain")
    async def tasks_by_status(status: str, ctx: Context[object]) -> str:
        """The user's tasks, one a line.

        The status is all, pending or completed.
        """
        if status not in _STATUSES:
            raise ResourceNotFoundError("There are tasks://all, tasks://pending and tasks://completed.")
        try:
            tasks = await store.list_tasks(get_current_user(ctx), _STATUSES[status])
        except TasksUnavailable as error:
            raise ResourceError(str(error)) from None
        return _format_list(tasks, status)

    @mcp.prompt(title="Plan my day")
    async def plan_day(ctx: Context[object]) -> str:
        """Plan the day from the user's pending tasks."""
        try:
            tasks = await store.list_tasks(get_current_user(ctx), "pending")
        except TasksUnavailable as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from None
        return (
            "Plan my day from my pending tasks. Put the urgent and the short ones first, group what belongs together, "
            f"say what can wait, and ask me where something is unclear.\n\n{_format_list(tasks, 'pending')}"
        )


_STATUSES: dict[str, Status | None] = {"all": None, "pending": "pending", "completed": "completed"}


async def _call_store(operation: Awaitable[T]) -> T:
    """Await an operation of the store.

    Its errors become tool errors that a model can act on.
    """
    try:
        return await operation
    except UnknownTask as error:
        message = f"The user has no task #{error.task_id}. There are: {_format_line(error.existing)}."
        raise ToolError(message) from None
    except TooManyTasks:
        raise ToolError(f"The user has {MAX_TASKS} tasks, which is the maximum. Delete some first.") from None
    except KeyReused:
        raise ToolError(f"_meta: {KEY_META} belongs to another call.") from None
    except TasksUnavailable as error:
        raise ToolError(str(error)) from None


def _find_by_title(tasks: list[TaskView], title: str) -> list[TaskView]:
    """Find the tasks with a title, regardless of case.

    Without an equal title, the tasks whose title contains it are returned.
    """
    folded = title.strip().casefold()
    exact = [task for task in tasks if task.title.casefold() == folded]
    return exact or [task for task in tasks if folded in task.title.casefold()]


def _format_line(tasks: list[TaskView]) -> str:
    return "; ".join(task.to_line() for task in tasks) or "none at all"


def _format_list(tasks: TaskList, status: str) -> str:
    kind = "" if status == "all" else f"{status} "
    if not tasks.tasks:
        return f"There are no {kind}tasks."
    omitted = f"\n… and {tasks.total - len(tasks.tasks)} more." if tasks.total > len(tasks.tasks) else ""
    return "\n".join(task.to_lines() for task in tasks.tasks) + omitted


def _make_result(text: str, structured: BaseModel) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=structured.model_dump(mode="json")
    )


def _clean_text(text: str) -> str:
    """Remove NUL characters, which Postgres cannot store, and surrounding blanks."""
    return text.replace("\x00", "").strip()


def _clean_title(title: str) -> str:
    cleaned = " ".join(_clean_text(title).split())
    if not cleaned:
        raise ToolError("The title is empty. Say in a few words what is to be done.")
    return cleaned

"""The messages of tasks, in both protocol eras.

Protocol 2025-11-25 has tasks in its core: a client asks for one with `task` in its call, and fetches the result with
`tasks/result`. In 2026-07-28 they are the extension `io.modelcontextprotocol/tasks`: the server decides, a call returns
`resultType: "task"`, and the task itself has the result. The SDK knows the types of the first only.
"""

import time
from typing import Any, Literal, cast

from mcp.types import Request, RequestParams, Result
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field, FiniteFloat, ValidationError

from gateway.common.sanitize import clean_text
from gateway.domain.messages import JsonObject
from gateway.domain.server_tasks import MAX_POLL_SECONDS, MIN_POLL_SECONDS, ServerTask

TASKS_EXTENSION = "io.modelcontextprotocol/tasks"
TASK_META = "mcp-agent-gateway/task"
"""Name in `_meta` of a result whose call became a task."""
RELATED_TASK_META = "io.modelcontextprotocol/related-task"

MAX_TASK_ID_LENGTH = 1_024
_MAX_MESSAGE_LENGTH = 500
_DEFAULT_POLL_SECONDS = 2.0


class TaskState(Result):
    """State of a task as its server describes it.

    `result`, `error` and `input_requests` are those of the extension; `ttl` and `poll_interval` are in milliseconds.
    """

    task_id: str = Field(min_length=1, max_length=MAX_TASK_ID_LENGTH)
    status: Literal["working", "input_required", "completed", "failed", "cancelled"]
    status_message: str | None = None
    ttl: FiniteFloat | None = Field(default=None, strict=True)
    ttl_ms: FiniteFloat | None = Field(default=None, strict=True)
    poll_interval: FiniteFloat | None = Field(default=None, strict=True)
    poll_interval_ms: FiniteFloat | None = Field(default=None, strict=True)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    input_requests: dict[str, Any] | None = None

    def to_server_task(self, server: str, max_seconds: float) -> ServerTask:
        """The task that has just been created."""
        now = time.time()
        ttl = self.ttl if self.ttl is not None else self.ttl_ms
        seconds = max_seconds if ttl is None or ttl <= 0 else min(ttl / 1000, max_seconds)
        message = clean_text(self.status_message or "", _MAX_MESSAGE_LENGTH)
        return ServerTask(server, self.task_id, now, now + seconds, self.get_poll_seconds(), message)

    def get_poll_seconds(self) -> float:
        """The server's interval, within bounds."""
        interval = self.poll_interval if self.poll_interval is not None else self.poll_interval_ms
        seconds = _DEFAULT_POLL_SECONDS if interval is None else interval / 1000
        return min(max(seconds, MIN_POLL_SECONDS), MAX_POLL_SECONDS)


class TaskParams(RequestParams):
    """Parameters of a request about a task."""

    task_id: str


class UpdateTaskParams(TaskParams):
    """Parameters of `tasks/update`."""

    input_responses: dict[str, Any]


class _TaskRequest(Request[TaskParams, Any]):
    """A request about a task; over HTTP, a header repeats its id."""

    name_param = "taskId"


class GetTask(_TaskRequest):
    """`tasks/get`."""

    method: Any = "tasks/get"


class CancelTask(_TaskRequest):
    """`tasks/cancel`."""

    method: Any = "tasks/cancel"


class FetchTaskResult(_TaskRequest):
    """`tasks/result` of protocol 2025-11-25."""

    method: Any = "tasks/result"


class UpdateTask(Request[UpdateTaskParams, Any]):
    """`tasks/update` of the extension."""

    name_param = "taskId"
    method: Any = "tasks/update"


def supports_task(execution: Any) -> bool:
    """Whether a tool of protocol 2025-11-25 may run as a task."""
    return getattr(execution, "task_support", None) in ("optional", "required")


def requires_task(execution: Any) -> bool:
    """Whether a tool of protocol 2025-11-25 runs as a task only."""
    return getattr(execution, "task_support", None) == "required"


def move_created_task(params: JsonObject, result: JsonObject, version: str) -> bool:
    """Move a created task into `_meta` of an empty result, in place.

    The SDK's types of a call's result have no place for it. Returns whether there was one.
    """
    meta: Any = result.get("_meta")
    if isinstance(meta, dict):
        cast("JsonObject", meta).pop(TASK_META, None)
    if version in MODERN_PROTOCOL_VERSIONS:
        task: Any = dict(result) if result.get("resultType") == "task" else None
    else:
        task = result.get("task") if params.get("task") is not None and "content" not in result else None
    if not isinstance(task, dict):
        return False
    result.clear()
    result.update({"content": [], "_meta": {TASK_META: task}})
    return True


def take_created_task(meta: JsonObject | None) -> TaskState | None:
    """The task in `_meta` of a call's result.

    Raises:
        ValueError: the server's task does not fit the protocol.
    """
    if not meta or TASK_META not in meta:
        return None
    return parse_task_state(meta[TASK_META])


def parse_task_state(value: Any) -> TaskState:
    """A task as its server describes it.

    Raises:
        ValueError: it does not fit the protocol.
    """
    try:
        return TaskState.model_validate(value, by_name=False)
    except ValidationError as error:
        raise ValueError("the task does not fit the protocol") from error

"""The messages of tasks for hosts, in both protocol eras.

Protocol 2025-11-25: a host sends `task` with a call, and fetches the result with `tasks/result`. 2026-07-28: a host
that declares the extension `io.modelcontextprotocol/tasks` gets a task where the gateway chooses so, and the task has
the result.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import mcp.types as t
from mcp import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from gateway.api.mcp.host import Context, HostObserver
from gateway.domain.messages import JsonObject, Question, StoredQuestion

TASKS_EXTENSION = "io.modelcontextprotocol/tasks"
TASK_VERSION = "2025-11-25"
"""The legacy version of the protocol that has tasks."""
LEGACY_TASKS_CAPABILITY: JsonObject = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
RELATED_TASK_META = "io.modelcontextprotocol/related-task"
POLL_MS = 1_000
MIN_TTL_SECONDS = 60.0
_UUID7_TIME_SHIFT = 80
_HEADER_MISMATCH = -32020
_MISSING_CAPABILITY = -32021


class TaskRequestParams(t.RequestParams):
    """Parameters of a request about a task."""

    task_id: str


class TaskUpdateParams(TaskRequestParams):
    """Parameters of `tasks/update`."""

    input_responses: dict[str, Any]


def is_modern_host(ctx: Context) -> bool:
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def declares_tasks(params: Mapping[str, Any]) -> bool:
    """Return whether a request of the current protocol declares the extension."""
    value: Any = params
    for name in ("_meta", t.CLIENT_CAPABILITIES_META_KEY, "extensions"):
        value = cast("JsonObject", value).get(name) if isinstance(value, Mapping) else None
    return isinstance(value, Mapping) and TASKS_EXTENSION in value


def check_task_request(ctx: Context) -> None:
    """Check a request about a task, of any protocol.

    Raises:
        MCPError: the host's protocol has no such method, the host does not declare the extension, or the routing header
            names another task.
    """
    if not is_modern_host(ctx):
        if ctx.protocol_version != TASK_VERSION or ctx.method == "tasks/update":
            raise MCPError(t.METHOD_NOT_FOUND, "Method not found", ctx.method)
        return
    if ctx.method not in ("tasks/get", "tasks/update", "tasks/cancel"):
        raise MCPError(t.METHOD_NOT_FOUND, "Method not found", ctx.method)
    require_extension(ctx)
    name = None if ctx.request is None else ctx.request.headers.get("mcp-name")
    if ctx.request is not None and name != (ctx.params or {}).get("taskId"):
        raise MCPError(_HEADER_MISMATCH, "Header mismatch: Mcp-Name must be the taskId of the request.")


def require_extension(ctx: Context) -> None:
    """Raise MCPError unless a request declares the extension."""
    if not declares_tasks(ctx.params or {}):
        data: JsonObject = {"requiredCapabilities": {"extensions": {TASKS_EXTENSION: {}}}}
        raise MCPError(_MISSING_CAPABILITY, "Missing required client capability", data)


def parse_ttl(task: object, max_seconds: float) -> int:
    """Return the milliseconds for which a task can be read.

    `task` is that of a host's call; the protocol permits other values than the requested one.

    Raises:
        MCPError: it does not fit the protocol.
    """
    if not isinstance(task, dict):
        raise MCPError(t.INVALID_PARAMS, "task: must be an object.")
    ttl: Any = cast("JsonObject", task).get("ttl")
    if ttl is None:
        return int(1000 * max_seconds)
    if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not ttl >= 0:
        raise MCPError(t.INVALID_PARAMS, "task.ttl: must be a number of milliseconds.")
    return int(min(max(ttl, 1000 * MIN_TTL_SECONDS), 1000 * max_seconds))


def get_uuid_time(uuid: UUID) -> datetime:
    """Return the time in an id of version 7."""
    return datetime.fromtimestamp((uuid.int >> _UUID7_TIME_SHIFT) / 1000, UTC)


def make_oldest_id(seconds: float) -> UUID:
    """Return an id below those that were made in the last `seconds`."""
    oldest = datetime.now(UTC) - timedelta(seconds=seconds)
    return UUID(int=int(oldest.timestamp() * 1000) << _UUID7_TIME_SHIFT)


def has_expired(turn_id: UUID, ttl_ms: int) -> bool:
    return get_uuid_time(turn_id) + timedelta(milliseconds=ttl_ms) < datetime.now(UTC)


def choose_status(status: str, *, cancel_requested: bool, asks: bool) -> str:
    """Return a turn's status as that of a task.

    A task whose cancellation was requested stays cancelled, as protocol 2025-11-25 requires.
    """
    if cancel_requested:
        return "cancelled"
    if status in ("running", "waiting"):
        return "input_required" if asks else "working"
    return status


def choose_call_status(status: str, finish_reason: str | None, *, is_modern: bool) -> str:
    """Return the status of the task of a tool call.

    A JSON-RPC error is a failure. In protocol 2025-11-25, so is an error result.
    """
    is_failed = finish_reason == "refused" or (finish_reason == "error" and not is_modern)
    return "failed" if status == "completed" and is_failed else status


def describe_task(turn_id: UUID, status: str, changed_at: object, ttl_ms: int, *, is_modern: bool) -> JsonObject:
    """Describe a task without its result."""
    created_at = get_uuid_time(turn_id)
    changed_at = changed_at if isinstance(changed_at, datetime) else created_at
    ttl, interval = ("ttlMs", "pollIntervalMs") if is_modern else ("ttl", "pollInterval")
    return {
        "taskId": str(turn_id),
        "status": status,
        "createdAt": created_at.isoformat(timespec="milliseconds"),
        "lastUpdatedAt": max(changed_at, created_at).isoformat(timespec="milliseconds"),
        ttl: ttl_ms,
        interval: POLL_MS,
    }


def to_host_question(stored: StoredQuestion) -> Question:
    """Return a question as a host can show it.

    An approval is a form without fields, to accept or decline.
    """
    asked = stored.question
    schema: JsonObject | None = asked.schema if asked.kind == "question" else {"type": "object", "properties": {}}
    kind = "url" if asked.url else "question"
    return Question(str(stored.id), kind, asked.message, schema, asked.url, elicitation_id=asked.elicitation_id)


def dump_call_result(result: t.CallToolResult) -> JsonObject:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def list_input_requests(host: HostObserver, questions: Iterable[StoredQuestion]) -> JsonObject:
    """List the open questions that the host can show, by their ids."""
    shown = [to_host_question(stored) for stored in questions]
    return {question.key: make_elicitation(question) for question in shown if host.can_answer(question)}


def make_elicitation(question: Question, meta: JsonObject | None = None) -> JsonObject:
    """Make the request that asks a host's user."""
    params: JsonObject = {"mode": "form", "message": question.message, "requestedSchema": question.schema}
    if question.url is not None:
        elicitation_id = question.elicitation_id or question.key
        params = {"mode": "url", "message": question.message, "url": question.url, "elicitationId": elicitation_id}
    return {"method": "elicitation/create", "params": params | ({"_meta": meta} if meta else {})}


def mark_task_support(tool: t.Tool, version: str, runs_as_task: bool) -> t.Tool:
    """Declare that a tool runs as a task, unless its server does."""
    declared = tool.execution and tool.execution.task_support
    if version != TASK_VERSION or not runs_as_task or declared in ("optional", "required"):
        return tool
    return tool.model_copy(update={"execution": t.ToolExecution(task_support="optional")})

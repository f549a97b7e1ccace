"""`/a2a`: the Agent2Agent protocol, over JSON-RPC and REST.

The official SDK (extra `a2a`) reads requests and writes answers; it is imported at the first request.
"""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.http.extras import import_face
from gateway.domain.messages import JsonObject

router = APIRouter(tags=["A2A"])
_PREFIX = "/a2a/v1"
_MESSAGE: JsonObject = {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": "What is 23*19?"}]}
_JSON: dict[int | str, JsonObject] = {200: {"content": {"application/a2a+json": {}}}}
_STREAM: dict[int | str, JsonObject] = {200: {"content": {"text/event-stream": {}}}}
_EITHER: dict[int | str, JsonObject] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}

TaskId = Annotated[str, Path(description="Id of the task, which is that of its turn.")]
PushId = Annotated[str, Path(description="Id of the push notification config.")]
RpcBody = Annotated[
    JsonObject,
    Body(examples=[{"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": _MESSAGE}}]),
]
MessageBody = Annotated[JsonObject, Body(examples=[{"message": _MESSAGE}])]


async def _answer_rest_request(request: Request, method: str, task_id: str | None = None) -> Response:
    if task_id is not None:
        request.scope["path_params"]["id"] = task_id  # the SDK's name
    handler = await import_face("gateway.api.routes.a2a.handler", extra="a2a", package="a2a")
    return await handler.answer_rest(request, method)


@router.get("/.well-known/agent-card.json", include_in_schema=False)
async def get_agent_card(request: Request) -> Response:
    """Return the card by which agents find this one."""
    handler = await import_face("gateway.api.routes.a2a.handler", extra="a2a", package="a2a")
    card = await handler.build_public_card(request)
    return JSONResponse(card, headers={"Cache-Control": "public, max-age=300", "Vary": "Host"})


@router.post("/a2a", summary="Call a method of A2A", response_class=JSONResponse, responses=_EITHER)
async def call_method(body: RpcBody, request: Request) -> Response:
    """JSON-RPC of the Agent2Agent protocols 1.0 and 0.3.

    Its methods send messages, get, list, cancel and follow tasks, and do what the other REST routes do.
    """
    handler = await import_face("gateway.api.routes.a2a.handler", extra="a2a", package="a2a")
    return await handler.answer_json_rpc(request, body.get("method"))


@router.post(f"{_PREFIX}/message:send", summary="Send a message to the agent", response_class=Response, responses=_JSON)
async def send_message(_body: MessageBody, request: Request) -> Response:
    """Start a task, or answer its question with its id.

    A task is a turn, and its context a conversation. The answer comes when the task has ended or asks, or at once if
    the configuration says so. The metadata may have `model`, `system`, `tools`, `approval` and `code`.
    """
    return await _answer_rest_request(request, "on_message_send")


@router.post(
    f"{_PREFIX}/message:stream",
    summary="Send a message and stream its task",
    response_class=Response,
    responses=_STREAM,
)
async def stream_message(_body: MessageBody, request: Request) -> Response:
    """Start a task, or answer its question, and stream its updates.

    The stream ends when the task has ended or asks.
    """
    return await _answer_rest_request(request, "on_message_send_stream")


@router.get(f"{_PREFIX}/tasks", summary="List tasks", response_class=Response, responses=_JSON)
async def list_turn_tasks(
    request: Request,
    _context: Annotated[str | None, Query(alias="contextId", description="Conversation of the tasks.")] = None,
    _status: Annotated[str | None, Query(alias="status", description="Such as TASK_STATE_WORKING.")] = None,
    _size: Annotated[str | None, Query(alias="pageSize", description="1 to 100. Default: 50.")] = None,
    _token: Annotated[
        str | None, Query(alias="pageToken", description="Token of the page, from the one before.")
    ] = None,
    _history: Annotated[str | None, Query(alias="historyLength", description="Messages of each task.")] = None,
    _artifacts: Annotated[str | None, Query(alias="includeArtifacts", description="`true`: with texts.")] = None,
) -> Response:
    """List your turns as tasks, newest first."""
    return await _answer_rest_request(request, "list_tasks")


@router.get(
    f"{_PREFIX}/tasks/{{task_id}}:subscribe", summary="Follow a task", response_class=Response, responses=_STREAM
)
@router.post(
    f"{_PREFIX}/tasks/{{task_id}}:subscribe",
    summary="Follow a task with POST",
    response_class=Response,
    responses=_STREAM,
)
async def subscribe_to_task(task_id: TaskId, request: Request) -> Response:
    """Stream the task as it stands, and then its updates.

    It works on any worker. The stream ends when the task has ended or asks.
    """
    return await _answer_rest_request(request, "on_subscribe_to_task", task_id)


@router.post(f"{_PREFIX}/tasks/{{task_id}}:cancel", summary="Cancel a task", response_class=Response, responses=_JSON)
async def cancel_task(task_id: TaskId, request: Request) -> Response:
    """Cancel the turn of a task that has not ended."""
    return await _answer_rest_request(request, "on_cancel_task", task_id)


@router.get(f"{_PREFIX}/tasks/{{task_id}}", summary="Get a task", response_class=Response, responses=_JSON)
async def get_turn_task(
    task_id: TaskId,
    request: Request,
    _history: Annotated[str | None, Query(alias="historyLength", description="Messages of the task.")] = None,
) -> Response:
    """Get the task.

    Its artifacts are the texts; its messages tell of calls and questions.
    """
    return await _answer_rest_request(request, "on_get_task", task_id)


@router.post(
    f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs",
    summary="Add a push notification config",
    response_class=Response,
    responses=_JSON,
)
async def add_push_config(task_id: TaskId, _body: Annotated[JsonObject, Body()], request: Request) -> Response:
    """Add a URL that is told when the task ends or asks.

    The setting WEBHOOK_HOSTS permits its host. Credentials are stored encrypted, and not shown again.
    """
    return await _answer_rest_request(request, "set_push_notification", task_id)


@router.get(
    f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs",
    summary="List push notification configs",
    response_class=Response,
    responses=_JSON,
)
async def list_push_configs(task_id: TaskId, request: Request) -> Response:
    """List the configs of a task."""
    return await _answer_rest_request(request, "list_push_notifications", task_id)


@router.get(
    f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs/{{push_id}}",
    summary="Get a push notification config",
    response_class=Response,
    responses=_JSON,
)
async def get_push_config(task_id: TaskId, push_id: PushId, request: Request) -> Response:
    """Get a config of a task."""
    return await _answer_rest_request(request, "get_push_notification", task_id)


@router.delete(
    f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs/{{push_id}}",
    summary="Delete a push notification config",
    response_class=Response,
    responses=_JSON,
)
async def delete_push_config(task_id: TaskId, push_id: PushId, request: Request) -> Response:
    """Delete a config of a task, and its unsent messages."""
    return await _answer_rest_request(request, "delete_push_notification", task_id)


@router.get(
    f"{_PREFIX}/extendedAgentCard", summary="Get the card with your tools", response_class=Response, responses=_JSON
)
async def get_extended_card(request: Request) -> Response:
    """The agent card with the tools that you may use as skills."""
    return await _answer_rest_request(request, "handle_authenticated_agent_card")

"""Requests of A2A, answered by turns.

The SDK validates and dispatches them; the gateway runs and streams their turns.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from uuid import UUID

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import (
    RequestHandler,
    validate_request_params,  # pyright: ignore[reportUnknownVariableType]
)
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.server.routes.rest_dispatcher import RestDispatcher
from a2a.types import a2a_pb2 as types
from a2a.utils import errors as a2a_errors
from a2a.utils.task import apply_history_length, validate_history_length, validate_page_size
from fastapi import Request, Response
from google.protobuf.json_format import Error as ProtoJsonError
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message as ProtoMessage
from sse_starlette import EventSourceResponse
from starlette.datastructures import State

from gateway import __version__
from gateway.agent.service import TurnHandle
from gateway.api.deps import get_principal, get_turn_service, run_until_disconnect
from gateway.api.routes.a2a.legacy import (
    LegacyRpcFrames,
    add_legacy_fields,
    hide_conversion_error,
    is_legacy_method,
    read_first_frame,
)
from gateway.api.routes.a2a.task_reader import TaskReader, format_page_token, parse_page_token
from gateway.api.security.permissions import ROUTES, require_permission
from gateway.api.turn_responses import build_tool_offer, list_model_tools, start_turn, turn_headers
from gateway.common.logging import get_logger
from gateway.common.webhook_urls import check_webhook_url
from gateway.config import Settings
from gateway.domain.errors import Conflict, InvalidRequest, NotFound, UnsupportedParameter
from gateway.domain.messages import JsonObject, Principal, ToolSpec
from gateway.ports.webhooks import PushConfig
from gateway.store.webhooks.push_configs import PushConfigStore
from gateway.wire.a2a import messages
from gateway.wire.a2a.card import LEGACY_PROTOCOL_VERSION, PROTOCOL_VERSION, build_card
from gateway.wire.a2a.frames import FrameFormat, JsonRpcFrames, RestFrames
from gateway.wire.a2a.push import read_push_config, show_push_config
from gateway.wire.a2a.tasks import SIGN_IN_STATUS, TaskHead, TaskWriter, build_listed_task, stream_task
from gateway.wire.sse import FrameStream

log = get_logger(__name__)
# Its errors carry text of requests; the gateway logs its own.
logging.getLogger("a2a").setLevel(logging.CRITICAL + 1)

M = TypeVar("M", bound=ProtoMessage)
_DEFAULT_PAGE_SIZE = 50
_VERSION_HEADER = "a2a-version"
_PREFIX = "/a2a/v1"


async def answer_json_rpc(request: Request, method: object) -> Response:
    """Answer a request of A2A's JSON-RPC, of protocol 1.0 or 0.3."""
    version = LEGACY_PROTOCOL_VERSION if is_legacy_method(method) else PROTOCOL_VERSION
    handler = TurnRequestHandler(request, version)
    dispatcher = JsonRpcDispatcher(handler, handler.context_builder, enable_v0_3_compat=True)
    return await handler.dispatch_request(dispatcher.handle_requests)


async def answer_rest(request: Request, method: str) -> Response:
    """Answer a request of a REST route.

    `method` is the name that the SDK's dispatcher has for it.
    """
    handler = TurnRequestHandler(request)
    dispatcher = RestDispatcher(handler, handler.context_builder)
    return await handler.dispatch_request(getattr(dispatcher, method))


class _ContextBuilder(ServerCallContextBuilder):
    """Builds the SDK's context of a request.

    A request without a version has that of its method.
    """

    def __init__(self, version: str) -> None:
        self._version = version

    def build(self, request: Request) -> ServerCallContext:
        headers = dict(request.headers)
        headers.setdefault(_VERSION_HEADER, self._version)
        return ServerCallContext(state={"headers": headers})


class TurnRequestHandler(RequestHandler):
    """Answers one request.

    Errors that A2A has no code for become HTTP errors, and streams are the gateway's own: both replace the SDK's
    response in `dispatch_request`.
    """

    def __init__(self, request: Request, version: str = PROTOCOL_VERSION) -> None:
        self.context_builder = _ContextBuilder(version)
        self._is_legacy = version == LEGACY_PROTOCOL_VERSION
        self._request = request
        self._tasks = TaskReader(request.app.state, get_principal(request))
        self._refusal: Exception | None = None
        self._stream: Response | None = None

    async def dispatch_request(self, dispatch: Callable[[Request], Awaitable[Response]]) -> Response:
        """Dispatch the request, and return its response.

        Raises:
            GatewayError: the request cannot be served, for a reason that is no error of A2A.
        """
        response = await dispatch(self._request)
        if self._is_legacy and isinstance(response, EventSourceResponse):
            response = await read_first_frame(response)
        if self._refusal is not None:
            raise self._refusal
        if self._stream is not None:
            return self._stream
        return hide_conversion_error(response) if self._is_legacy else response

    # --- messages

    @validate_request_params
    async def on_message_send(self, params: types.SendMessageRequest, context: ServerCallContext) -> types.Task:
        """Start or continue a turn, and wait for it.

        The wait ends when the turn does, or asks.
        """
        with self._check_and_map_errors("POST", f"{_PREFIX}/message:send"):
            validate_history_length(params.configuration)
            turn, head, known_inputs = await self._accept_message(params)
            if params.configuration.return_immediately:
                writer, _ = await self._tasks.read_task(turn)
            else:
                fold = partial(TaskWriter, head, known_inputs)
                waiting = get_turn_service(self._request).wait_for_turn(turn, fold)
                writer = await run_until_disconnect(self._request, waiting)
            return apply_history_length(_parse_message(writer.build_task(), types.Task()), params.configuration)

    @validate_request_params
    async def on_message_send_stream(
        self, params: types.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[types.Task]:
        """Start or continue a turn, and stream its task."""
        with self._check_and_map_errors("POST", f"{_PREFIX}/message:stream"):
            is_answer, after = bool(params.message.task_id), 0
            if is_answer:  # the state before the answer: what follows it is streamed
                earlier = await self._tasks.get_turn_to_answer(params.message.task_id)
                writer, after = await self._tasks.read_task(earlier)
                turn, _, _ = await self._accept_message(params)
            else:
                turn, head, _ = await self._accept_message(params)
                writer = TaskWriter(head)
            self._stream_turn(turn, writer, after, context, begins_with_task=is_answer)
            yield types.Task(id=str(turn.id))

    async def _accept_message(self, params: types.SendMessageRequest) -> tuple[TurnHandle, TaskHead, set[str]]:
        """Start or continue a turn.

        Return it with the head of its task, and the ids of its earlier questions.
        """
        message = _to_dict(params.message)
        push = self._read_push(params)
        if params.message.task_id:
            turn, known_inputs = await self._answer_open_question(message)
            head = await self._tasks.read_head(turn)
        else:
            principal = self._principal
            options = messages.read_options(_to_dict(params.metadata), message.get("metadata") or {})
            header = self._request.headers.get("x-gateway-tools")
            offer = build_tool_offer(self._request, principal, options.model, header)
            turn_request = messages.build_turn_request(message, options, offer)
            turn, known_inputs = await start_turn(turn_request, self._request, principal), set[str]()
            head = TaskHead(str(turn.id), turn_request.prompt, turn.echo.get("message_id"))
        if push is not None:
            await self._push_configs.add_config(turn.id, self._principal, push)
        return turn, head, known_inputs

    async def _answer_open_question(self, message: JsonObject) -> tuple[TurnHandle, set[str]]:
        turn = await self._tasks.get_turn_to_answer(message["taskId"])
        await self._tasks.check_context(turn.id, message.get("contextId"))
        stored = await self._state.questions.list_for_turn(turn.id)
        open_questions = [question for question in stored if question.answer is None]
        if turn.has_ended or not open_questions:
            state = "has ended" if turn.has_ended else "is working and has asked nothing"
            raise a2a_errors.UnsupportedOperationError(f"The task {state}; send the message without its id.")
        input_id, answer = messages.parse_answer(message, open_questions, by=self._principal.user)
        try:
            await get_turn_service(self._request).answer_question(turn, input_id, answer)
        except Conflict as error:
            raise a2a_errors.UnsupportedOperationError(error.message) from None
        return turn, {str(question.id) for question in stored}

    # --- tasks

    @validate_request_params
    async def on_get_task(self, params: types.GetTaskRequest, context: ServerCallContext) -> types.Task:
        """Return a task as it stands."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/tasks/{{task_id}}"):
            validate_history_length(params)
            stored = await self._tasks.get_stored(params.id)
            writer, _ = await self._tasks.fold_turn(stored)
            return apply_history_length(_parse_message(writer.build_task(), types.Task()), params)

    @validate_request_params
    async def on_list_tasks(
        self, params: types.ListTasksRequest, context: ServerCallContext
    ) -> types.ListTasksResponse:
        """List the caller's turns as tasks, newest first."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/tasks"):
            validate_history_length(params)
            if params.HasField("page_size"):
                validate_page_size(params.page_size)
            size = params.page_size or _DEFAULT_PAGE_SIZE
            answer = types.ListTasksResponse(page_size=size)
            if (conditions := await self._tasks.build_filter(params)) is None:
                return answer
            before = parse_page_token(params.page_token) if params.page_token else None
            page, answer.total_size = await self._tasks.read_page(conditions, limit=size, before=before)
            for task in page.items:
                head = TaskHead(str(task.id), task.prompt, task.message_id, task.conversation_id, task.changed_at)
                listed = _parse_message(
                    build_listed_task(head, SIGN_IN_STATUS if task.signs_in else task.status, task.response),
                    types.Task(),
                )
                if not params.include_artifacts:
                    listed.ClearField("artifacts")
                answer.tasks.append(apply_history_length(listed, params))
            if page.has_more:
                answer.next_page_token = format_page_token(page.items[-1].id)
            return answer

    @validate_request_params
    async def on_cancel_task(self, params: types.CancelTaskRequest, context: ServerCallContext) -> types.Task:
        """Cancel the turn of a task."""
        with self._check_and_map_errors("POST", f"{_PREFIX}/tasks/{{task_id}}:cancel"):
            turn = await self._tasks.find_turn(params.id)
            if turn.has_ended:
                raise a2a_errors.TaskNotCancelableError
            await get_turn_service(self._request).cancel_turn(turn)
            writer, _ = await self._tasks.read_task(turn)
            return _parse_message(writer.build_task(), types.Task())

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: types.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[types.Task]:
        """Stream a task as it stands, and then its updates."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/tasks/{{task_id}}:subscribe"):
            turn = await self._tasks.find_turn(params.id)
            writer, after = await self._tasks.read_task(turn)
            if writer.turn.end is not None:
                raise a2a_errors.UnsupportedOperationError("The task has ended: get it.")
            self._stream_turn(turn, writer, after, context, begins_with_task=True)
            yield types.Task(id=str(turn.id))

    def _stream_turn(
        self, turn: TurnHandle, writer: TaskWriter, after: int, context: ServerCallContext, *, begins_with_task: bool
    ) -> None:
        """Make the stream of a task the response."""
        frames: FrameFormat = RestFrames()
        if "method" in context.state:
            rpc_frames = LegacyRpcFrames if self._is_legacy else JsonRpcFrames
            frames = rpc_frames(context.state["request_id"])
        listener = get_turn_service(self._request).listen_to_turn(turn, after=after)
        chunks = stream_task(listener, writer=writer, frames=frames, begins_with_task=begins_with_task)
        self._stream = FrameStream(chunks, headers=turn_headers(turn), listener=listener)

    # --- push notifications

    @validate_request_params
    async def on_create_task_push_notification_config(
        self, params: types.TaskPushNotificationConfig, context: ServerCallContext
    ) -> types.TaskPushNotificationConfig:
        """Add a URL that is told when a task ends or asks."""
        with self._check_and_map_errors("POST", f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs"):
            turn = await self._tasks.find_turn(params.task_id)
            config = self._check_push(params)
            await self._push_configs.add_config(turn.id, self._principal, config)
            return _show_push(turn.id, config)

    @validate_request_params
    async def on_get_task_push_notification_config(
        self, params: types.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> types.TaskPushNotificationConfig:
        """Return a URL of a task."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs/{{push_id}}"):
            turn = await self._tasks.find_turn(params.task_id)
            for config in await self._push_configs.list_for_turn(turn.id):
                if config.id == params.id:
                    return _show_push(turn.id, config)
            raise a2a_errors.TaskNotFoundError("The task has no such push notification config.")

    @validate_request_params
    async def on_list_task_push_notification_configs(
        self, params: types.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> types.ListTaskPushNotificationConfigsResponse:
        """List the URLs of a task."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs"):
            turn = await self._tasks.find_turn(params.task_id)
            configs = await self._push_configs.list_for_turn(turn.id)
            return types.ListTaskPushNotificationConfigsResponse(configs=[_show_push(turn.id, c) for c in configs])

    @validate_request_params
    async def on_delete_task_push_notification_config(
        self, params: types.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Remove a URL of a task, and its unsent messages."""
        with self._check_and_map_errors("DELETE", f"{_PREFIX}/tasks/{{task_id}}/pushNotificationConfigs/{{push_id}}"):
            turn = await self._tasks.find_turn(params.task_id)
            await self._push_configs.delete_config(turn.id, params.id)

    def _read_push(self, params: types.SendMessageRequest) -> PushConfig | None:
        if not params.configuration.HasField("task_push_notification_config"):
            return None
        return self._check_push(params.configuration.task_push_notification_config)

    def _check_push(self, params: types.TaskPushNotificationConfig) -> PushConfig:
        """Read a config, whose URL the policy of webhooks must permit."""
        hosts = self._state.settings.webhook_hosts
        if not hosts:
            raise a2a_errors.PushNotificationNotSupportedError
        check_webhook_url(params.url, hosts, param="url")
        return read_push_config(_to_dict(params))

    # --- the card

    async def on_get_extended_agent_card(
        self, params: types.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> types.AgentCard:
        """Return the card with the tools that the caller may use."""
        with self._check_and_map_errors("GET", f"{_PREFIX}/extendedAgentCard"):
            specs = list_model_tools(self._request, self._principal)
            return _parse_message(await _build_request_card(self._request, specs=specs), types.AgentCard())

    # --- parts

    @property
    def _state(self) -> State:
        return self._request.app.state

    @property
    def _principal(self) -> Principal:
        return get_principal(self._request)

    @property
    def _push_configs(self) -> PushConfigStore:
        return self._state.push_configs

    @contextmanager
    def _check_and_map_errors(self, method: str, path: str) -> Generator[None]:
        """Check a route's permission, and map errors.

        JSON-RPC shares the permissions of the REST routes. Errors without a code in A2A are kept
        for `dispatch_request`.
        """
        try:
            require_permission(self._principal, ROUTES[method, path])
            yield
        except a2a_errors.A2AError:
            raise
        except UnsupportedParameter as error:
            raise a2a_errors.ContentTypeNotSupportedError(error.message) from None
        except (InvalidRequest, NotFound) as error:
            raise a2a_errors.InvalidParamsError(error.message) from None
        except Exception as error:  # noqa: BLE001 - `dispatch_request` raises it
            self._refusal = error
            raise a2a_errors.InternalError from None


async def build_public_card(request: Request) -> JsonObject:
    """Build the card that clients of both protocols find."""
    return add_legacy_fields(await _build_request_card(request))


async def _build_request_card(request: Request, *, specs: Iterable[ToolSpec] = ()) -> JsonObject:
    """Build the card for a request.

    Its addresses are the public ones, else those of the request.
    """
    settings: Settings = request.app.state.settings
    base_url = settings.public_url if settings.gateway_public_url else str(request.base_url).rstrip("/")
    return build_card(
        base_url,
        __version__,
        has_push=bool(settings.webhook_hosts),
        needs_credential=not await request.app.state.auth.is_open(),
        specs=specs,
    )


def _to_dict(message: ProtoMessage) -> JsonObject:
    """Return the JSON of a message.

    Raises:
        InvalidParamsError: a number is infinite or not one.
    """
    try:
        return MessageToDict(message)
    except ProtoJsonError:
        raise a2a_errors.InvalidParamsError("data: numbers must be finite.") from None


def _parse_message(body: JsonObject, message: M) -> M:
    return ParseDict(body, message, ignore_unknown_fields=True)


def _show_push(turn_id: UUID, config: PushConfig) -> types.TaskPushNotificationConfig:
    return _parse_message(show_push_config(turn_id, config), types.TaskPushNotificationConfig())

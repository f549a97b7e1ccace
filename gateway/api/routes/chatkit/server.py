"""ChatKit's requests, answered by turns."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from chatkit.actions import Action
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer, NonStreamingResult
from chatkit.store import NotFoundError
from chatkit.types import (
    ChatKitReq,
    FeedbackKind,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    WidgetItem,
)
from fastapi import Request, Response
from msgspec.structs import replace
from pydantic import TypeAdapter, ValidationError

from gateway.agent.service import TurnHandle
from gateway.api.deps import get_principal, get_turn_service
from gateway.api.routes.chatkit.store import RequestContext, ThreadStore
from gateway.api.routes.chatkit.stream import ThreadStream
from gateway.api.security.permissions import RoutePermission, require_permission
from gateway.api.turn_responses import build_tool_offer, start_turn
from gateway.common.logging import get_logger
from gateway.common.validation_errors import describe_problem
from gateway.domain.branches import TurnOrigin
from gateway.domain.errors import GatewayError, InvalidRequest, NotFound, UnsupportedParameter
from gateway.domain.messages import JsonObject
from gateway.store.context.titles import shorten_title
from gateway.wire.a2a.messages import read_options
from gateway.wire.chatkit.items import ECHO_KEY, ItemHead, ItemWriter, parse_item_turn
from gateway.wire.chatkit.messages import build_continuation, build_turn_request, read_client_tools, read_prompt
from gateway.wire.chatkit.widgets import ANSWER_ACTION, convert_form_values, parse_answer_payload

log = get_logger(__name__)
# It logs requests and the errors of clients; the gateway logs its own.
logging.getLogger("chatkit").setLevel(logging.CRITICAL + 1)

_REQUEST: TypeAdapter[Any] = TypeAdapter(ChatKitReq)
_EVENT: TypeAdapter[Any] = TypeAdapter(ThreadStreamEvent)
_ITEM: TypeAdapter[Any] = TypeAdapter(ThreadItem)
_READ = RoutePermission("history")
_CHANGE = RoutePermission("history", "user")
_CHAT = RoutePermission("chat", "user")
_PERMISSIONS = {
    "threads.get_by_id": _READ,
    "threads.list": _READ,
    "items.list": _READ,
    "threads.update": _CHANGE,
    "threads.delete": _CHANGE,
    "items.feedback": _CHANGE,
}
"""Permissions of requests; the others need that of a chat."""
_MAX_RATED = 100
_RATINGS: dict[FeedbackKind, str] = {"positive": "up", "negative": "down"}


async def answer_chatkit(request: Request) -> Response:
    """Answer a request of ChatKit.

    Raises:
        InvalidRequest: it is not one of ChatKit's, or does not fit the thread.
        NotFound: the caller has no such thread or item.
    """
    principal, body = get_principal(request), await request.body()
    try:
        parsed = _REQUEST.validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path, reason = describe_problem(problem, problem["loc"])
        raise InvalidRequest(f"{path}: {reason}", param=path or None) from None
    require_permission(principal, _PERMISSIONS.get(parsed.type, _CHAT))
    if getattr(getattr(parsed.params, "input", None), "attachments", None):
        raise UnsupportedParameter("params.input.attachments: send text; there are none here.", param="params.input")
    options, client_tools = read_options(parsed.metadata), read_client_tools(parsed.metadata)
    context = RequestContext(request, principal, options, client_tools)
    stream = ThreadStream()
    server = TurnChatServer(ThreadStore(request, principal), stream)
    try:
        result = await server.process(body, context)
        if isinstance(result, NonStreamingResult):
            return Response(result.json, media_type="application/json")
        return await stream.build_stream_response(result.json_events)
    except NotFoundError as error:
        raise NotFound(f"There is no such {error}.") from None
    except (NotImplementedError, RuntimeError):
        raise UnsupportedParameter(f"type: {parsed.type} is not supported here.", param="type") from None
    except ValueError:
        raise InvalidRequest("The request does not fit the state of the thread.") from None


class TurnChatServer(ChatKitServer[RequestContext]):
    """Answers one request."""

    def __init__(self, store: ThreadStore, stream: ThreadStream) -> None:
        super().__init__(store)
        self._threads = store
        self._stream = stream

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: RequestContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Start a turn for a message.

        One that has a turn gets another branch.
        """
        if input_user_message is None:
            async for event in self._continue_turn(thread, context):
                yield event
            return
        item: JsonObject = input_user_message.model_dump(mode="json")
        with _public_errors():
            turn = await self._start_or_repeat_turn(thread, item, context)
            prompt = read_prompt(item)
            if thread.title is None:
                thread.title = shorten_title(prompt) or None
            writer = ItemWriter(ItemHead(turn.id, thread.id, prompt, item["id"]))
        async for event in self._follow_answer(turn, writer, 0, context):
            yield event

    async def _continue_turn(
        self, thread: ThreadMetadata, context: RequestContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Start the turn that gets the result of a client's tool."""
        call = self._threads.answered_call
        turn_id = parse_item_turn(call.id) if call is not None else None
        if call is None or turn_id is None:
            return
        with _public_errors():
            conversation = await self._threads.get_thread_conversation(thread.id)
            await self._threads.get_turn_row(turn_id, conversation)
            request = await context.request.app.state.turns.load_request(turn_id, context.principal)
            continuation = build_continuation(request, call.model_dump(mode="json"), thread.id, turn_id)
            turn = await start_turn(continuation, context.request, context.principal)
            writer = ItemWriter(ItemHead(turn.id, thread.id, "", continues=True))
        async for event in self._follow_answer(turn, writer, 0, context):
            yield event

    async def _start_or_repeat_turn(
        self, thread: ThreadMetadata, item: JsonObject, context: RequestContext
    ) -> TurnHandle:
        request, principal, options, client_tools = context
        conversation = await self._threads.get_thread_conversation(thread.id)
        earlier = await self._threads.find_turn_id(conversation, item["id"])
        if earlier is None:
            inference: JsonObject = item.get("inference_options") or {}
            model = inference.get("model") or options.model
            offer = build_tool_offer(request, principal, model, request.headers.get("x-gateway-tools"))
            return await start_turn(build_turn_request(item, options, offer, client_tools), request, principal)
        await self._threads.get_turn_row(earlier, conversation)
        repeated = await request.app.state.turns.load_request(earlier, principal)
        branch = replace(
            repeated,
            origin=TurnOrigin(earlier),
            on_disconnect="cancel",
            idempotency_key=None,
            warnings=(),
            webhook_url=None,
            echo={ECHO_KEY: item["id"]},
        )
        return await start_turn(branch, request, principal)

    async def _follow_answer(
        self, turn: TurnHandle, writer: ItemWriter, after: int, context: RequestContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Yield the events of a turn, until it ends or asks."""
        listener = await self._stream.hold_listener(get_turn_service(context.request).listen_to_turn(turn, after=after))
        asked = writer.question_count
        async for batch in listener:
            for entry in batch:
                for event in writer.write_event(entry.event):
                    yield _EVENT.validate_python(event)
            if writer.is_waiting and writer.question_count > asked:
                return
        if not listener.turn_has_ended and listener.close_reason != "input_required":
            raise CustomStreamError("The stream ended before the answer. Load the thread again.", allow_retry=True)

    async def action(
        self,
        thread: ThreadMetadata,
        action: Action[str, Any],
        sender: WidgetItem | None,
        context: RequestContext,
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Answer the question of a widget, and continue its turn."""
        with _public_errors():
            turn, writer, after = await self._answer_widget(thread, action, sender, context)
        async for event in self._follow_answer(turn, writer, after, context):
            yield event

    async def sync_action(
        self,
        thread: ThreadMetadata,
        action: Action[str, Any],
        sender: WidgetItem | None,
        context: RequestContext,
    ) -> SyncCustomActionResponse:
        """Answer the question of a widget; its turn continues without this client."""
        await self._answer_widget(thread, action, sender, context)
        return SyncCustomActionResponse(updated_item=sender)

    async def _answer_widget(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: RequestContext
    ) -> tuple[TurnHandle, ItemWriter, int]:
        """Store the answer of a widget.

        Return the turn, its items so far, and the number of their last event.
        """
        if action.type != ANSWER_ACTION or sender is None:
            raise InvalidRequest(f"action.type: must be {ANSWER_ACTION}, of a widget.", param="action.type")
        input_id, answer = parse_answer_payload(action.payload, by=context.principal.user)
        conversation = await self._threads.get_thread_conversation(thread.id)
        turn_id = await self._threads.find_turn_id(conversation, sender.id)
        if turn_id is None or not sender.id.endswith(_format_hex(input_id)):
            raise InvalidRequest("action.payload.input_id: is not that of the widget.", param="action.payload")
        writer, after = await self._threads.read_position(turn_id, conversation)
        service = get_turn_service(context.request)
        turn = await service.get_turn_to_answer(turn_id, context.principal)
        asked = (await context.request.app.state.questions.get_question(turn_id, UUID(input_id))).question
        if answer.content is not None:
            answer = replace(answer, content=convert_form_values(answer.content, asked.schema))
        await service.answer_question(turn, UUID(input_id), answer)
        return turn, writer, after

    async def add_feedback(
        self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: RequestContext
    ) -> None:
        """Rate the turns of items."""
        if len(item_ids) > _MAX_RATED:
            raise InvalidRequest(f"params.item_ids: at most {_MAX_RATED} are allowed.", param="params.item_ids")
        conversation = await self._threads.get_thread_conversation(thread_id)
        for turn_id in [await self._threads.find_turn_id(conversation, item_id) for item_id in item_ids]:
            if turn_id is None:
                raise NotFoundError("item")
            stored = await self._threads.get_turn_row(turn_id, conversation)
            await context.request.app.state.usage.save_rating(turn_id, stored.owner, _RATINGS[feedback], None)

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: RequestContext
    ) -> None:
        """Do nothing.

        The turn is cancelled with its listener, and its text so far is stored.
        """


@contextmanager
def _public_errors() -> Generator[None]:
    """Tell the client the gateway's own errors; it may try again."""
    try:
        yield
    except GatewayError as error:
        raise CustomStreamError(error.message, allow_retry=True) from None
    except NotFoundError as error:
        raise CustomStreamError(f"There is no such {error}.") from None


def _format_hex(input_id: str) -> str:
    try:
        return UUID(input_id).hex
    except ValueError:
        raise InvalidRequest("action.payload.input_id: must be a UUID.", param="action.payload") from None

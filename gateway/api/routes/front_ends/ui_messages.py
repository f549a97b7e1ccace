"""`/api/v1/ui-messages`: chats of the AI SDK in the browser."""

from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from gateway.agent.service import TurnHandle
from gateway.api.deps import ConversationsDep, TurnsDep, get_principal, get_turn_service
from gateway.api.routes.front_ends.chat_turns import ChatPlan, find_conversation, plan_chat
from gateway.api.turn_responses import GatewayToolsHeader, IdempotencyKey, build_tool_offer, start_turn, stream_turn
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject
from gateway.store.turns import TurnStore
from gateway.wire.front_ends.sent_chat import MAX_FOLLOWED_TURNS, format_message_id, parse_uuid
from gateway.wire.ui_messages.request import UIMessagesRequest
from gateway.wire.ui_messages.stream import HEADERS, EarlierTurn, UIMessageWriter, stream_ui_message

router = APIRouter(prefix="/api/v1/ui-messages", tags=["front ends"])

GRACE_SECONDS = 5.0
"""Time in which a page that was reloaded follows its turn again."""
_CONTENT: dict[int | str, JsonObject] = {
    200: {"description": "Chunks of a UI message, as server-sent events", "content": {"text/event-stream": {}}}
}


@router.post("", summary="Send a chat of the AI SDK", response_class=Response, responses=_CONTENT)
async def send_ui_messages(
    body: UIMessagesRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer a chat of the AI SDK with a UI message stream.

    The chat's id names your conversation. Of the messages, only those after the last answer are new; a chat that was
    edited, or an answer that is asked for again, is a branch. Decisions on approvals, and results of the front end's
    own tools, continue the answer. If the connection ends before the answer, and no stream of it begins within five
    seconds, the turn is cancelled.
    """
    warnings: dict[str, None] = {}
    chat = body.read_chat(warnings)
    principal = get_principal(request)
    offer = build_tool_offer(request, principal, body.model, x_gateway_tools)
    plan = await plan_chat(chat, body.to_turn_request(offer, idempotency_key=idempotency_key), request)
    message_id = body.continued_message_id
    if (turn := plan.answered_turn) is not None:
        answered = [str(answer.input_id) for answer in chat.answers]
        return _stream_chat(turn, request, UIMessageWriter(message_id or format_message_id(turn.id), answered=answered))
    warnings |= dict.fromkeys(plan.turn_request.warnings)
    turn_request = replace(
        plan.turn_request,
        warnings=tuple(warnings),
        on_disconnect="continue",  # `listen_for_client` cancels it
        echo=_build_echo(plan, message_id),
    )
    turn = await start_turn(turn_request, request, principal)
    return _stream_chat(turn, request, UIMessageWriter(message_id or format_message_id(turn.id)))


def _build_echo(plan: ChatPlan, message_id: str | None) -> JsonObject:
    """Build what a later stream of the turn must know."""
    echo: JsonObject = {"ui_message": {"is_kept": plan.turn_request.on_disconnect == "continue"}}
    if message_id is not None:
        echo["ui_message"] |= {"id": message_id, "continues": str(plan.followed_id) if plan.followed_id else None}
    return echo


@router.get(
    "/{id}/stream",
    summary="Follow the answer of a chat",
    response_class=Response,
    responses={**_CONTENT, 204: {"description": "The chat has no answer that is not complete"}},
)
async def resume_ui_messages(
    id: str,  # noqa: A002 - the name in the AI SDK
    request: Request,
    conversations: ConversationsDep,
    turns: TurnsDep,
) -> Response:
    """Stream the answer of a chat again from its start.

    It is the turn of the chat that runs or waits for a person, on any worker.
    """
    _, conversation = await find_conversation(id, request)
    open_turns = [] if conversation is None else await conversations.list_open_turns(conversation.id)
    if not open_turns:
        return Response(status_code=204)
    try:
        turn = await get_turn_service(request).get_turn(max(open_turns), get_principal(request))
    except NotFound:  # of another key, which this one may not read
        return Response(status_code=204)
    message_id = turn.echo.get("ui_message", {}).get("id") or format_message_id(turn.id)
    earlier = await _list_earlier_turns(turn, request, turns)
    return _stream_chat(turn, request, UIMessageWriter(message_id), earlier)


async def _list_earlier_turns(turn: TurnHandle, request: Request, turns: TurnStore) -> list[EarlierTurn]:
    """Return the turns of the same message, oldest first.

    Each ended with a call of a front end's tool.
    """
    principal = get_principal(request)
    earlier: list[EarlierTurn] = []
    next_id, turn_id = turn.id, _get_continued_turn(turn.echo)
    while turn_id is not None and len(earlier) < MAX_FOLLOWED_TURNS:
        results = (await turns.load_request(next_id, principal)).messages
        try:
            stored = await turns.get_turn(turn_id, principal)
        except NotFound:  # it was deleted
            break
        earlier.insert(0, EarlierTurn(turns.iterate_events(stored), results))
        next_id, turn_id = turn_id, _get_continued_turn(stored.options.get("echo"))
    return earlier


def _get_continued_turn(echo: JsonObject | None) -> UUID | None:
    return parse_uuid((echo or {}).get("ui_message", {}).get("continues"))


def _stream_chat(
    turn: TurnHandle, request: Request, writer: UIMessageWriter, earlier: list[EarlierTurn] | None = None
) -> Response:
    is_kept = turn.echo.get("ui_message", {}).get("is_kept", True)
    listener = get_turn_service(request).listen_for_client(turn, grace_seconds=None if is_kept else GRACE_SECONDS)
    write = partial(stream_ui_message, writer=writer, earlier=earlier or ())
    return stream_turn(turn, request, write, headers=HEADERS, listener=listener)

"""The routes of the gateway's forerunners. Other routes under `/api/` must be registered before `message_router`."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from gateway.api.deps import ConversationsDep, PrincipalDep, TurnServiceDep
from gateway.api.routes.native.conversations import cancel_and_delete
from gateway.api.turn_responses import start_turn, stream_turn, wait_for_turn
from gateway.domain.errors import NotFound
from gateway.domain.messages import Principal
from gateway.store.models import Turn
from gateway.wire.legacy import (
    LegacyChatRequest,
    LegacyChatResponse,
    LegacyChatStreamRequest,
    LegacyConversation,
    LegacyMessage,
    LegacyStreamRequest,
    build_legacy_response,
    stream_legacy_frames,
    stream_plain_text,
)
from gateway.wire.openai_chat import ChunkWriter, format_json_line
from gateway.wire.openai_chat import stream_chunks as chunk_stream

router = APIRouter(tags=["forerunners"])
message_router = APIRouter(tags=["forerunners"])

UserId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._@+-]{1,128}$", description="Who is speaking.")]
_NO_USERS = ("v1", "chat", "conversations")


@router.post("/stream", summary="Stream an answer to one prompt", response_class=Response)
async def stream_prompt(
    body: LegacyStreamRequest,
    request: Request,
    principal: PrincipalDep,
    stream_format: Annotated[
        Literal["text", "openai", "sse"],
        Query(description="Plain text; OpenAI-style chunks, a line of JSON each; the same chunks as SSE."),
    ] = "text",
) -> Response:
    turn = await start_turn(body.to_turn_request(), request, principal)
    match stream_format:
        case "text":
            return stream_turn(turn, request, stream_plain_text, media_type="text/plain; charset=utf-8")
        case "openai":
            lines = partial(chunk_stream, chunks=ChunkWriter(extended=False), frame=format_json_line, done=b"")
            return stream_turn(turn, request, lines, media_type="application/x-ndjson")
        case "sse":
            return stream_turn(turn, request, partial(chunk_stream, chunks=ChunkWriter(extended=False)))


@router.post("/api/chat/stream", summary="Chat in a conversation, streamed", response_class=Response)
async def stream_prompts(body: LegacyChatStreamRequest, request: Request, principal: PrincipalDep) -> Response:
    turn = await start_turn(body.to_turn_request(), request, principal)
    return stream_turn(turn, request, partial(stream_legacy_frames, stored=body.save_conversation))


@router.get("/api/conversations/{conversation_id}", summary="What was said in a conversation")
async def get_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep
) -> LegacyConversation:
    conversation = await conversations.get(conversation_id, principal)
    turns = await conversations.turns(conversation.id)
    messages = [message for turn in turns for message in _to_messages(turn)]
    return LegacyConversation(conversation_id=str(conversation.id), messages=messages)


@router.delete("/api/conversations/{conversation_id}", summary="Delete a conversation")
async def delete_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, service: TurnServiceDep
) -> dict[str, str | bool]:
    removed = await cancel_and_delete(conversation_id, principal, conversations, service)
    return {"conversation_id": str(removed), "deleted": True}


@message_router.post("/api/{user_id}/chat", summary="Chat as a user, in one answer")
async def chat_as_user(
    user_id: UserId,
    body: LegacyChatRequest,
    request: Request,
    response: Response,
    principal: PrincipalDep,
) -> LegacyChatResponse:
    """With authentication on, the user in the path must be the caller, any other is a 404; with it off, the path says
    who the user is."""
    turn = await start_turn(body.to_turn_request(), request, _as_user(user_id, principal))
    return build_legacy_response(await wait_for_turn(turn, request, response))


def _as_user(user_id: str, principal: Principal) -> Principal:
    if user_id in _NO_USERS:
        raise NotFound(f"{user_id!r} is no user's name.")
    if principal.key is None:
        return Principal(user=user_id)
    if user_id != principal.user:
        raise NotFound(f"There is no user {user_id!r} for whom you could speak.", param="user_id")
    return principal


def _to_messages(turn: Turn) -> list[LegacyMessage]:
    said = [LegacyMessage(role="user", content=turn.prompt)]
    return [*said, LegacyMessage(role="assistant", content=turn.response)] if turn.response else said

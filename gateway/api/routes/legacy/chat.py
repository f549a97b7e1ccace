"""Legacy chat routes. Other routes under `/api/` must be registered before `message_router`."""

from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from gateway.api.deps import ConversationsDep, PrincipalDep, TurnContentsDep, TurnServiceDep
from gateway.api.http.json_lists import build_list_response
from gateway.api.routes.native.conversations import cancel_and_delete
from gateway.api.turn_responses import start_native_turn, stream_turn, turn_headers, wait_for_turn
from gateway.domain.errors import NotFound
from gateway.domain.messages import Principal
from gateway.store.lists.turn_contents import TurnContent
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
from gateway.wire.openai_chat_answers import ChunkWriter, format_json_line, stream_chunks

router = APIRouter(tags=["legacy"])
message_router = APIRouter(tags=["legacy"])

UserId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._@+-]{1,128}$", description="User who sends the message.")]
_RESERVED_USER_IDS = ("v1", "chat", "conversations")


@router.post("/stream", summary="Stream the answer to a prompt", response_class=Response)
async def stream_prompt(
    body: LegacyStreamRequest,
    request: Request,
    principal: PrincipalDep,
    stream_format: Annotated[
        Literal["text", "openai", "sse"],
        Query(description="`text`: plain text. `openai`: one OpenAI chunk in JSON per line. `sse`: the chunks as SSE."),
    ] = "text",
) -> Response:
    """Answer a prompt without a conversation."""
    turn = await start_native_turn(body, request, principal)
    match stream_format:
        case "text":
            return stream_turn(turn, request, stream_plain_text, media_type="text/plain; charset=utf-8")
        case "openai":
            lines = partial(stream_chunks, chunks=ChunkWriter(extended=False), frame=format_json_line, done=b"")
            return stream_turn(turn, request, lines, media_type="application/x-ndjson")
        case "sse":
            return stream_turn(turn, request, partial(stream_chunks, chunks=ChunkWriter(extended=False)))


@router.post("/api/chat/stream", summary="Stream the answer to a message in a conversation", response_class=Response)
async def stream_prompts(body: LegacyChatStreamRequest, request: Request, principal: PrincipalDep) -> Response:
    """Answer a prompt in a conversation.

    If `save_conversation` is false, the conversation is not stored.
    """
    turn = await start_native_turn(body, request, principal)
    return stream_turn(turn, request, partial(stream_legacy_frames, stored=body.is_saved))


@router.get(
    "/api/conversations/{conversation_id}",
    summary="Get the messages of a conversation",
    response_model=LegacyConversation,
)
async def get_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, contents: TurnContentsDep
) -> Response:
    """The prompts and answers of a conversation, oldest first."""
    conversation = await conversations.get_conversation(conversation_id, principal)
    nodes = await contents.list_nodes(conversation.id)
    turns = contents.iterate_turns([node.id for node in nodes])
    messages = (message async for turn in turns for message in _to_messages(turn))
    head = msgspec.json.encode({"conversation_id": conversation.external_id or str(conversation.id)})
    return await build_list_response({"messages": messages}, head=head)


@router.delete("/api/conversations/{conversation_id}", summary="Delete a conversation")
async def delete_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, service: TurnServiceDep
) -> dict[str, str | bool]:
    """Delete a conversation with its turns. Active turns are cancelled first."""
    deleted_id = await cancel_and_delete(conversation_id, principal, conversations, service)
    return {"conversation_id": str(deleted_id), "deleted": True}


@message_router.post("/api/{user_id}/chat", summary="Send a message as a user", response_model_exclude_defaults=True)
async def chat_as_user(
    user_id: UserId,
    body: LegacyChatRequest,
    request: Request,
    response: Response,
    principal: PrincipalDep,
) -> LegacyChatResponse:
    """Run a turn and return its answer.

    With authentication, `user_id` must be the owner of the credential; else the response is 404. Without
    authentication, the turn belongs to `user_id`.
    """
    turn = await start_native_turn(body, request, _as_user(user_id, principal))
    summary = await wait_for_turn(turn, request)
    response.headers.update(turn_headers(turn))
    return build_legacy_response(summary)


def _as_user(user_id: str, principal: Principal) -> Principal:
    if user_id in _RESERVED_USER_IDS:
        raise NotFound(f"{user_id!r} is a reserved name.")
    if principal.key is None:
        return Principal(user=user_id)
    if user_id != principal.user:
        raise NotFound(f"The user {user_id!r} is not the owner of the credential.", param="user_id")
    return principal


def _to_messages(turn: TurnContent) -> list[LegacyMessage]:
    messages = [LegacyMessage(role="user", content=turn.prompt)]
    if turn.response:
        messages.append(LegacyMessage(role="assistant", content=turn.response))
    return messages

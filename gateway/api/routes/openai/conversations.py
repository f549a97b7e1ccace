"""`/v1/conversations`: OpenAI's conversations, which are those of the gateway."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from gateway.api.deps import ConversationsDep, PrincipalDep, TurnServiceDep
from gateway.api.routes.native.conversations import cancel_and_delete
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.store.conversations import ConversationStore, is_followed
from gateway.store.models import Conversation, Turn
from gateway.wire.openai.conversations import (
    ConversationCreate,
    ConversationItemsCreate,
    ConversationUpdate,
    build_conversation,
)
from gateway.wire.openai.item_lists import ItemOrder, build_item_page, build_items
from gateway.wire.openai_response_ids import parse_conversation_id
from gateway.wire.openai_response_input import to_messages

router = APIRouter(prefix="/conversations", tags=["OpenAI"])
_Include = Annotated[list[str] | None, Query(alias="include[]", description="Accepted and ignored.")]


@router.post("", summary="Create a conversation")
async def create_openai_conversation(
    body: ConversationCreate, principal: PrincipalDep, conversations: ConversationsDep
) -> JsonObject:
    """Create a conversation, with items if there are any."""
    messages = tuple(to_messages(body.items)) if body.items else ()
    conversation = await conversations.create_conversation(principal, dict(body.metadata or {}))
    if messages:
        await conversations.add_messages(conversation, messages, principal)
    return _build_answer(conversation)


@router.get("/{conversation_id}", summary="Get a conversation")
async def get_openai_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep
) -> JsonObject:
    """The conversation without its items."""
    return _build_answer(await _get_named(conversation_id, principal, conversations))


@router.post("/{conversation_id}", summary="Update a conversation")
async def update_openai_conversation(
    conversation_id: str, body: ConversationUpdate, principal: PrincipalDep, conversations: ConversationsDep
) -> JsonObject:
    """Replace the metadata of a conversation."""
    conversation = await _get_named(conversation_id, principal, conversations)
    await conversations.set_notes(conversation.id, dict(body.metadata or {}))
    return _build_answer(await _get_named(conversation_id, principal, conversations))


@router.delete("/{conversation_id}", summary="Delete a conversation")
async def delete_openai_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, service: TurnServiceDep
) -> JsonObject:
    """Delete a conversation with its turns and everything stored about them."""
    await cancel_and_delete(parse_conversation_id(conversation_id), principal, conversations, service)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items", summary="Add items to a conversation")
async def create_conversation_items(
    conversation_id: str,
    body: ConversationItemsCreate,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    _include: _Include = None,
) -> JsonObject:
    """Add items, which the next response continues."""
    conversation = await _get_named(conversation_id, principal, conversations)
    messages = tuple(to_messages(body.items))
    turn_id = await conversations.add_messages(conversation, messages, principal)
    items = await _list_stored_items(conversation, conversations, turn_id)
    return build_item_page(items, limit=len(items), order="asc", after=None)


@router.get("/{conversation_id}/items", summary="List the items of a conversation")
async def list_conversation_items(
    conversation_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of items in the page.")] = 20,
    order: Annotated[ItemOrder, Query(description="Newest first (desc) or oldest first (asc).")] = "desc",
    after: Annotated[str | None, Query(max_length=200, description="Id of the last item of the page before.")] = None,
    _include: _Include = None,
) -> JsonObject:
    """The items of the newest branch, newest first, in pages."""
    conversation = await _get_named(conversation_id, principal, conversations)
    return build_item_page(await _list_stored_items(conversation, conversations), limit=limit, order=order, after=after)


@router.get("/{conversation_id}/items/{item_id}", summary="Get an item of a conversation")
async def get_conversation_item(
    conversation_id: str,
    item_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    _include: _Include = None,
) -> JsonObject:
    """An item of the newest branch."""
    conversation = await _get_named(conversation_id, principal, conversations)
    items = await _list_stored_items(conversation, conversations)
    item = next((item for item in items if item["id"] == item_id), None)
    if item is None:
        raise NotFound(f"The conversation has no item {item_id[:80]!r}.", param="item_id")
    return item


async def _get_named(conversation_id: str, principal: Principal, conversations: ConversationStore) -> Conversation:
    return await conversations.get_conversation(parse_conversation_id(conversation_id), principal)


async def _list_stored_items(
    conversation: Conversation, conversations: ConversationStore, only: UUID | None = None
) -> list[JsonObject]:
    """List the items of the newest branch or of one turn."""
    turns = await conversations.list_turns(conversation.id)
    if only is not None:
        turns = [turn for turn in turns if turn.id == only]
    else:
        turns_by_id = {turn.id: turn for turn in turns}
        turn = next((turn for turn in reversed(turns) if is_followed(turn)), None)
        branch: list[Turn] = []
        while turn is not None:
            branch.append(turn)
            turn = turns_by_id.get(turn.parent_id) if turn.parent_id else None
        turns = branch[::-1]
    return [item for turn in turns for item in build_items(turn.id, turn.messages)]


def _build_answer(conversation: Conversation) -> JsonObject:
    return build_conversation(conversation.id, conversation.created_at, conversation.notes)

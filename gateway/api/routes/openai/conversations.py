"""`/v1/conversations`: OpenAI's conversations, which are those of the gateway."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query

from gateway.api.deps import ConversationsDep, ItemDeletionsDep, PrincipalDep, TurnContentsDep, TurnServiceDep
from gateway.api.routes.native.conversations import cancel_and_delete
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.store.conversations import ConversationStore
from gateway.store.lists.item_deletion import RemainingMessages
from gateway.store.lists.turn_contents import TurnContentStore, find_followed, select_branch
from gateway.store.models import Conversation
from gateway.wire.openai.conversations import (
    ConversationCreate,
    ConversationItemsCreate,
    ConversationUpdate,
    build_conversation,
)
from gateway.wire.openai.item_lists import ItemOrder, ItemPage, build_items, delete_item, parse_stored_item_id
from gateway.wire.openai_response_ids import parse_conversation_id
from gateway.wire.openai_response_input import to_messages

_MAX_LISTED_NEW_ITEMS = 1_000
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
    contents: TurnContentsDep,
    _include: _Include = None,
) -> JsonObject:
    """Add items, which the next response continues."""
    conversation = await _get_named(conversation_id, principal, conversations)
    messages = tuple(to_messages(body.items))
    turn_id = await conversations.add_messages(conversation, messages, principal)
    page = ItemPage(limit=_MAX_LISTED_NEW_ITEMS)
    async for item in _iterate_items([turn_id], contents):
        page.add(item)
    return page.build()


@router.get("/{conversation_id}/items", summary="List the items of a conversation")
async def list_conversation_items(
    conversation_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    contents: TurnContentsDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of items in the page.")] = 20,
    order: Annotated[ItemOrder, Query(description="Newest first (desc) or oldest first (asc).")] = "desc",
    after: Annotated[str | None, Query(max_length=200, description="Id of the last item of the page before.")] = None,
    _include: _Include = None,
) -> JsonObject:
    """The items of the newest branch, newest first, in pages."""
    conversation = await _get_named(conversation_id, principal, conversations)
    branch = await _list_branch(conversation, contents)
    page = ItemPage(limit=limit, after=after)
    async with aclosing(_iterate_items(_select_from(branch, order, after), contents, order)) as items:
        async for item in items:
            page.add(item)
            if page.is_full:
                break
    return page.build()


@router.get("/{conversation_id}/items/{item_id}", summary="Get an item of a conversation")
async def get_conversation_item(
    conversation_id: str,
    item_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    contents: TurnContentsDep,
    _include: _Include = None,
) -> JsonObject:
    """An item of the newest branch."""
    conversation = await _get_named(conversation_id, principal, conversations)
    turn_id = parse_stored_item_id(item_id)
    if turn_id is not None and turn_id in await _list_branch(conversation, contents):
        async for item in _iterate_items([turn_id], contents):
            if item["id"] == item_id:
                return item
    raise NotFound(f"The conversation has no item {item_id[:80]!r}.", param="item_id")


@router.delete("/{conversation_id}/items/{item_id}", summary="Delete an item of a conversation")
async def delete_conversation_item(
    conversation_id: str,
    item_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    contents: TurnContentsDep,
    deletions: ItemDeletionsDep,
) -> JsonObject:
    """Delete an item and what repeats its text.

    The output of a call goes with the call.
    """
    conversation = await _get_named(conversation_id, principal, conversations)
    turn_id = parse_stored_item_id(item_id)
    nodes = await contents.list_nodes(conversation.id)
    if turn_id is None or all(node.id != turn_id for node in nodes):
        raise NotFound(f"The conversation has no item {item_id[:80]!r}.", param="item_id")

    def delete(messages: list[JsonObject]) -> RemainingMessages | None:
        deletion = delete_item(turn_id, item_id, messages)
        return deletion and RemainingMessages(*deletion)

    await deletions.delete_item(turn_id, principal.user, delete)
    return _build_answer(conversation)


async def _get_named(conversation_id: str, principal: Principal, conversations: ConversationStore) -> Conversation:
    return await conversations.get_conversation(parse_conversation_id(conversation_id), principal)


async def _list_branch(conversation: Conversation, contents: TurnContentStore) -> list[UUID]:
    """List the turns of the newest branch, oldest first."""
    nodes = await contents.list_nodes(conversation.id)
    return select_branch(nodes, find_followed(nodes))


def _select_from(branch: list[UUID], order: ItemOrder, after: str | None) -> list[UUID]:
    """Put turns into order, without those before the item `after`."""
    turns = branch if order == "asc" else branch[::-1]
    turn_id = parse_stored_item_id(after) if after is not None else None
    return turns[turns.index(turn_id) :] if turn_id is not None and turn_id in turns else turns


async def _iterate_items(
    turns: list[UUID], contents: TurnContentStore, order: ItemOrder = "asc"
) -> AsyncGenerator[JsonObject]:
    async for turn in contents.iterate_turns(turns):
        items = build_items(turn.id, msgspec.json.decode(turn.messages, type=list[JsonObject]))
        for item in items if order == "asc" else reversed(items):
            yield item


def _build_answer(conversation: Conversation) -> JsonObject:
    return build_conversation(conversation.id, conversation.created_at, conversation.notes)

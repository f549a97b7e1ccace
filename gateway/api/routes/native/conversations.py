"""`/api/v1/conversations`: list, get, export, rename and delete conversations."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from gateway.agent.service import TurnService
from gateway.api.deps import ConversationsDep, PrincipalDep, TurnContentsDep, TurnServiceDep
from gateway.api.http.errors import ErrorBody
from gateway.api.http.json_lists import build_list_response
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.store.conversations import ConversationStore
from gateway.store.lists.turn_contents import (
    TurnContent,
    TurnContentStore,
    TurnNode,
    find_followed,
    select_branch,
)
from gateway.store.models import Conversation
from gateway_runtime.requests.model import RequestModel

router = APIRouter(prefix="/api/v1/conversations", tags=["conversations"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "The conversation was not found"}}


class ConversationView(BaseModel):
    """Conversation of a user.

    `external_id` is the client's own id; null if the gateway made the id.
    """

    id: UUID
    external_id: str | None
    title: str
    created_at: datetime
    updated_at: datetime


class ConversationList(BaseModel):
    """Page of conversations.

    `next` is the `before` of the next page; null on the last page.
    """

    conversations: list[ConversationView]
    next: UUID | None


class ConversationTurn(BaseModel):
    """Turn of a conversation.

    `parent_id` is the turn that it follows. Turns with the same parent are branches. `origin_id` is the turn that a
    fork or replay comes from.
    """

    id: UUID
    parent_id: UUID | None
    origin_id: UUID | None
    is_replay: bool
    status: str
    model_name: str
    prompt: str
    response: str
    messages: list[object]
    error: JsonObject | None
    created_at: datetime
    completed_at: datetime | None


class ConversationDetail(ConversationView):
    """Conversation with all turns, oldest first.

    `messages` are those of one branch: of the turn `head_id` and the turns before it. By default, that is the turn that
    the next request without `parent_turn_id` follows: the newest one that is neither a replay nor an unfinished branch.
    """

    head_id: UUID | None

    turns: list[ConversationTurn]
    messages: list[object]


class ConversationChange(RequestModel):
    """New title of a conversation."""

    title: str = Field(min_length=1, max_length=1_000, description="The first 80 characters are stored.")


@router.get("", summary="List your conversations")
async def list_conversations(
    principal: PrincipalDep,
    conversations: ConversationsDep,
    limit: Annotated[int, Query(ge=1, le=200, description="Maximum number of items in the page.")] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the previous page.")] = None,
) -> ConversationList:
    """The newest conversations first."""
    rows = await conversations.list_conversations(principal, limit=limit, before=before)
    views = [ConversationView.model_validate(row, from_attributes=True) for row in rows]
    return ConversationList(conversations=views, next=views[-1].id if len(views) == limit else None)


@router.get("/{conversation_id}", summary="Get a conversation", responses=_NOT_FOUND, response_model=ConversationDetail)
async def get_conversation(
    conversation_id: str,
    principal: PrincipalDep,
    conversations: ConversationsDep,
    contents: TurnContentsDep,
    branch: Annotated[UUID | None, Query(description="Last turn of the branch whose messages are wanted.")] = None,
) -> Response:
    """The conversation with all of its turns, which are a tree.

    The messages are those of the newest branch, or of the one that ends with the turn `branch`.
    """
    conversation = await conversations.get_conversation(conversation_id, principal)
    return await _build_detail(conversation, contents, branch=branch)


@router.get(
    "/{conversation_id}/export",
    summary="Download a conversation",
    responses=_NOT_FOUND,
    response_model=ConversationDetail,
)
async def export_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, contents: TurnContentsDep
) -> Response:
    """The conversation with its turns and messages, as a JSON file."""
    conversation = await conversations.get_conversation(conversation_id, principal)
    headers = {"Content-Disposition": f'attachment; filename="conversation-{conversation.id}.json"'}
    return await _build_detail(conversation, contents, headers=headers)


@router.patch("/{conversation_id}", summary="Rename a conversation", responses=_NOT_FOUND)
async def rename_conversation(
    conversation_id: str, body: ConversationChange, principal: PrincipalDep, conversations: ConversationsDep
) -> ConversationView:
    """Change the title of a conversation."""
    conversation = await conversations.get_conversation(conversation_id, principal)
    await conversations.rename_conversation(conversation.id, body.title)
    conversation = await conversations.get_conversation(conversation_id, principal)
    return ConversationView.model_validate(conversation, from_attributes=True)


@router.delete("/{conversation_id}", summary="Delete a conversation", status_code=204, responses=_NOT_FOUND)
async def delete_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, service: TurnServiceDep
) -> None:
    """Delete a conversation with its turns and everything stored about them.

    Active turns are cancelled first.
    """
    await cancel_and_delete(conversation_id, principal, conversations, service)


async def cancel_and_delete(
    conversation_id: str, principal: Principal, conversations: ConversationStore, service: TurnService
) -> UUID:
    """Cancel a conversation's active turns, delete it, and return its id."""
    conversation = await conversations.get_conversation(conversation_id, principal)
    for turn_id in await conversations.list_open_turns(conversation.id):
        await service.cancel_turn(await service.get_turn(turn_id, principal))
    await conversations.delete_conversation(conversation.id, by=principal.user)
    return conversation.id


async def _build_detail(
    conversation: Conversation,
    contents: TurnContentStore,
    *,
    branch: UUID | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build a `ConversationDetail`, whose turns are read as the client reads them."""
    nodes = await contents.list_nodes(conversation.id)
    head = _find_head(nodes, branch)
    view = ConversationView.model_validate(conversation, from_attributes=True)
    fields = msgspec.json.encode(view.model_dump() | {"head_id": head.id if head is not None else None})
    turns = contents.iterate_turns([node.id for node in nodes])
    messages = _iterate_messages(contents.iterate_turns(select_branch(nodes, head)))
    return await build_list_response({"turns": turns, "messages": messages}, head=fields, headers=headers)


async def _iterate_messages(turns: AsyncIterator[TurnContent]) -> AsyncIterator[msgspec.Raw]:
    async for turn in turns:
        for message in msgspec.json.decode(turn.messages, type=list[msgspec.Raw]):
            yield message


def _find_head(nodes: list[TurnNode], branch: UUID | None) -> TurnNode | None:
    """Return the turn `branch`, or the one that the next request follows.

    Raises:
        NotFound: the conversation has no turn `branch`.
    """
    if branch is None:
        return find_followed(nodes)
    head = next((node for node in nodes if node.id == branch), None)
    if head is None:
        raise NotFound(f"The conversation has no turn {str(branch)!r}.", param="branch")
    return head

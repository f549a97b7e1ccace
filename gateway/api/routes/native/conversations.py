"""`/api/v1/conversations`: turns in order, owned by one user."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.agent.service import TurnService
from gateway.api.deps import ConversationsDep, PrincipalDep, TurnServiceDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.messages import JsonObject, Principal
from gateway.store.conversations import ConversationStore
from gateway.store.models import Conversation, Turn

router = APIRouter(prefix="/api/v1/conversations", tags=["conversations"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "You have no such conversation"}}


class ConversationView(BaseModel):
    id: UUID
    title: str
    created_at: datetime
    updated_at: datetime


class ConversationList(BaseModel):
    """`next` is the `before` of the next page; null: this is the last."""

    conversations: list[ConversationView]
    next: UUID | None


class ConversationTurn(BaseModel):
    """`parent_id` is the turn that this one goes on from: where two have the same, the conversation branches."""

    id: UUID
    parent_id: UUID | None
    status: str
    model_name: str
    prompt: str
    response: str
    messages: list[object]
    error: JsonObject | None
    created_at: datetime
    completed_at: datetime | None


class ConversationDetail(ConversationView):
    """All turns, oldest first, and the messages of the branch that the newest one is on."""

    turns: list[ConversationTurn]
    messages: list[object]


class ConversationChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1, max_length=1_000, description="Its first 80 characters are kept.")


@router.get("", summary="Your conversations")
async def list_conversations(
    principal: PrincipalDep,
    conversations: ConversationsDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[UUID | None, Query(description="The `next` of the page before.")] = None,
) -> ConversationList:
    """The newest first."""
    found = await conversations.page(principal, limit=limit, before=before)
    views = [ConversationView.model_validate(each, from_attributes=True) for each in found]
    return ConversationList(conversations=views, next=views[-1].id if len(views) == limit else None)


@router.get("/{conversation_id}", summary="A conversation", responses=_NOT_FOUND)
async def get_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep
) -> ConversationDetail:
    """With all of its turns and messages."""
    return await _build_detail(await conversations.get(conversation_id, principal), conversations)


@router.get("/{conversation_id}/export", summary="A conversation as a file", responses=_NOT_FOUND)
async def export_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, response: Response
) -> ConversationDetail:
    """The same as JSON to save."""
    conversation = await conversations.get(conversation_id, principal)
    response.headers["Content-Disposition"] = f'attachment; filename="conversation-{conversation.id}.json"'
    return await _build_detail(conversation, conversations)


@router.patch("/{conversation_id}", summary="Rename a conversation", responses=_NOT_FOUND)
async def rename_conversation(
    conversation_id: str, body: ConversationChange, principal: PrincipalDep, conversations: ConversationsDep
) -> ConversationView:
    conversation = await conversations.get(conversation_id, principal)
    await conversations.rename(conversation.id, body.title)
    renamed = await conversations.get(conversation_id, principal)
    return ConversationView.model_validate(renamed, from_attributes=True)


@router.delete("/{conversation_id}", summary="Delete a conversation", status_code=204, responses=_NOT_FOUND)
async def delete_conversation(
    conversation_id: str, principal: PrincipalDep, conversations: ConversationsDep, service: TurnServiceDep
) -> None:
    """Delete it with its turns and all that is kept of them; what runs in it is stopped first."""
    await cancel_and_delete(conversation_id, principal, conversations, service)


async def cancel_and_delete(
    conversation_id: str, principal: Principal, conversations: ConversationStore, service: TurnService
) -> UUID:
    """See `delete_conversation`; the id of what is gone."""
    conversation = await conversations.get(conversation_id, principal)
    for turn_id in await conversations.open_turns(conversation.id):
        await service.cancel(await service.follow(turn_id, principal))
    await conversations.delete(conversation.id, by=principal.user)
    return conversation.id


async def _build_detail(conversation: Conversation, conversations: ConversationStore) -> ConversationDetail:
    turns = await conversations.turns(conversation.id)
    view = ConversationView.model_validate(conversation, from_attributes=True)
    return ConversationDetail(
        **view.model_dump(),
        turns=[ConversationTurn.model_validate(turn, from_attributes=True) for turn in turns],
        messages=[message for turn in _select_branch(turns) for message in turn.messages],
    )


def _select_branch(turns: list[Turn]) -> list[Turn]:
    """From the first turn to the newest, along the parents."""
    known = {turn.id: turn for turn in turns}
    line: list[Turn] = []
    turn = turns[-1] if turns else None
    while turn is not None:
        line.append(turn)
        turn = known.get(turn.parent_id) if turn.parent_id else None
    return line[::-1]

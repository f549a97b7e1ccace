"""Conversations of OpenAI's Responses API."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from gateway.domain.messages import JsonObject
from gateway.wire.openai_response_ids import format_conversation_id
from gateway.wire.openai_response_input import InputItem
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

ConversationMetadata = Annotated[dict[str, str], Field(max_length=16), limit_entries(16)]
ConversationItems = Annotated[ItemList[InputItem], Field(max_length=20)]


class ConversationCreate(RequestModel):
    """New conversation, with at most 20 items to begin with."""

    items: ConversationItems | None = None
    metadata: ConversationMetadata | None = None


class ConversationUpdate(RequestModel):
    """New metadata of a conversation."""

    metadata: ConversationMetadata | None = None


class ConversationItemsCreate(RequestModel):
    """Items that are added to a conversation."""

    items: Annotated[ConversationItems, Field(min_length=1)]


def build_conversation(conversation_id: UUID, created_at: datetime | None, notes: JsonObject | None) -> JsonObject:
    """Build a `conversation`."""
    created = 0 if created_at is None else int(created_at.timestamp())
    shown_id = format_conversation_id(conversation_id)
    return {"id": shown_id, "object": "conversation", "created_at": created, "metadata": notes or {}}

"""Conversations and their turns, as the agent reads them."""

from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlmodel import col, select

from gateway.errors import NotFound
from gateway.messages import Message, Principal
from gateway.store.database import Database
from gateway.store.tables import Conversation, Turn

_TITLE = 80
_ENDED = ("completed", "failed", "cancelled")


class ConversationStore:
    """What `History` asks for, over short sessions."""

    def __init__(self, database: Database, *, most_turns: int = 200) -> None:
        self._database = database
        self._most_turns = most_turns

    async def open(self, conversation_id: str | None, principal: Principal, title: str) -> UUID | None:
        """See `History.open`."""
        if conversation_id is None:
            return None
        if conversation_id == "new":
            return await self._create(principal, title)
        return await self._find(conversation_id, principal)

    async def load(self, conversation_id: UUID) -> list[tuple[Message, ...]]:
        """See `History.load`. A turn that ended without any answer is left out: nothing followed from it."""
        query = (
            select(col(Turn.messages))
            .where(Turn.conversation_id == conversation_id, col(Turn.status).in_(_ENDED), Turn.response != "")
            .order_by(col(Turn.id).desc())
            .limit(self._most_turns)
        )
        async with self._database.session() as session:
            rows = (await session.exec(query)).all()
        return [msgspec.convert(row, tuple[Message, ...]) for row in reversed(rows)]

    async def _create(self, principal: Principal, title: str) -> UUID:
        conversation_id = UUID(int=uuids.uuid7().int)
        short = " ".join(title.replace("\x00", "\ufffd").split())[:_TITLE]
        async with self._database.session() as session:
            session.add(Conversation(id=conversation_id, owner=principal.user, title=short))
        return conversation_id

    async def _find(self, conversation_id: str, principal: Principal) -> UUID:
        missing = NotFound(f"There is no conversation {conversation_id[:64]!r}.", param="conversation_id")
        try:
            wanted = UUID(conversation_id)
        except ValueError:
            raise missing from None
        query = select(Conversation.id).where(Conversation.id == wanted, Conversation.owner == principal.user)
        async with self._database.session() as session:
            found = (await session.exec(query)).first()
        if found is None:
            raise missing
        return found

"""Conversations and their turns, for the agent and for their owners."""

from typing import Any
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import any_, delete, literal, text, update
from sqlalchemy.dialects.postgresql import array, insert
from sqlmodel import col, func, select

from gateway.domain.branches import NO_TURN
from gateway.domain.caller_token import strip_secrets
from gateway.domain.conversation_ids import NEW_NUMBERED_CONVERSATION, is_new_conversation, parse_conversation_id
from gateway.domain.errors import ConversationBusy, InvalidRequest, NotFound
from gateway.domain.history import History
from gateway.domain.messages import JsonObject, Message, Principal, TurnRecord, TurnRequest
from gateway.domain.reading import get_reader_key
from gateway.ports.store import ConversationRepository, ConversationState
from gateway.store.audit import make_audit_entry
from gateway.store.context.ancestors import load_history, load_next_history
from gateway.store.context.titles import shorten_title
from gateway.store.database import Database, count_changed_rows, encode_jsonb
from gateway.store.journal.redaction import redact_messages
from gateway.store.journal.statements import IS_FOLLOWED
from gateway.store.models import Conversation, Turn, TurnEvents
from gateway_runtime.redaction.redactor import Redactor

ADDED_MESSAGES = "added"
"""Finish reason of a turn that only adds messages, without a model."""
_MAX_EXACT_COUNT = 100_000
_OPEN_STATUSES = ("running", "waiting")

_OPEN = """
    WITH conversation AS (
        SELECT id, external_id FROM conversations WHERE owner = :owner AND {key}
          AND (cast(:reader_key AS text) IS NULL OR NOT EXISTS (
            SELECT FROM turns WHERE conversation_id = conversations.id
                AND caller->>'key' IS DISTINCT FROM cast(:reader_key AS text)))
    ), busy AS (
        SELECT turns.id, turns.status FROM conversation JOIN turns ON turns.busy_conversation_id = conversation.id
    ), ahead AS (
        SELECT max(waiter.id) AS ticket
        FROM conversation
        JOIN conversation_waiters AS waiter ON waiter.conversation_id = conversation.id
        JOIN workers ON workers.id = waiter.worker_id
        WHERE waiter.expires_at > now() AND coalesce(workers.lease_until > now(), true)
          AND (cast(:ticket AS bigint) IS NULL OR waiter.id < cast(:ticket AS bigint))
    ), taken AS (
        INSERT INTO conversation_waiters (conversation_id, worker_id, expires_at)
        SELECT conversation.id, :worker_id, now() + make_interval(secs => :wait_seconds)
        FROM conversation CROSS JOIN ahead LEFT JOIN busy ON true
        WHERE cast(:ticket AS bigint) IS NULL AND :wait_seconds > 0
          AND (busy.id IS NOT NULL OR ahead.ticket IS NOT NULL) AND busy.status IS DISTINCT FROM 'waiting'
        RETURNING id
    )
    SELECT conversation.id, conversation.external_id, busy.id, busy.status, ahead.ticket, taken.id
    FROM conversation CROSS JOIN ahead LEFT JOIN busy ON true LEFT JOIN taken ON true
"""
"""Reads the state of a conversation and takes a ticket.

With two statements, a request that arrives between them would overtake this one.
"""
_OPEN_BY_ID = _OPEN.format(key="id = :id")
_OPEN_BY_EXTERNAL_ID = _OPEN.format(key="external_id = :id")
_LOCK_NUMBERS = "SELECT pg_advisory_xact_lock(hashtextextended('conversation numbers of ' || :owner, 0))"
_NEXT_NUMBER = """
    SELECT coalesce(max(external_id::bigint), 0) + 1 FROM conversations
    WHERE owner = :owner AND external_id ~ '^[1-9][0-9]{0,14}$'
"""
_ADD_MESSAGES = f"""
    INSERT INTO turns (id, conversation_id, owner, status, prompt, response, messages, sent_messages, model_name,
                       parameters, options, finish_reason, caller, completed_at, parent_id)
    VALUES (:id, :conversation_id, :owner, 'completed', :prompt, :response, cast(:messages AS jsonb), :number, '',
            '{{}}', '{{}}', '{ADDED_MESSAGES}', cast(:caller AS jsonb), now(),
            (SELECT id FROM turns WHERE conversation_id = :conversation_id AND {IS_FOLLOWED}
             ORDER BY position DESC NULLS LAST, id DESC LIMIT 1))
    RETURNING id
"""  # noqa: S608
_RELEASE_TICKET = """
    DELETE FROM conversation_waiters WHERE id = :ticket OR id IN (
        SELECT id FROM conversation_waiters WHERE expires_at < now() LIMIT 100 FOR UPDATE SKIP LOCKED)
    RETURNING id
"""


class ConversationStore(ConversationRepository):
    """See `ConversationRepository`; also lists, renames and deletes conversations."""

    def __init__(self, database: Database, *, max_turns: int = 200, redactor: Redactor | None = None) -> None:
        self._database = database
        self._redactor = redactor or Redactor()
        self._max_turns = max_turns

    # --- for the agent

    async def open_conversation(
        self, request: TurnRequest, principal: Principal, *, worker_id: UUID, ticket: int | None, wait_seconds: float
    ) -> ConversationState:
        """See `ConversationRepository.open_conversation`."""
        if request.origin is not None:
            return await self._open_tree(request, principal)
        if request.parent_turn_id is not None:
            return await self._open_branch(request, request.parent_turn_id, principal)
        if request.conversation_id is None:
            return ConversationState(None)
        if is_new_conversation(request.conversation_id):
            return ConversationState(*await self._create(request, principal))
        place = {"worker_id": worker_id, "ticket": ticket, "wait_seconds": wait_seconds}
        conversation_id = _parse_id(request.conversation_id)
        if (state := await self._read_state(conversation_id, principal, place)) is not None:
            return state
        if isinstance(conversation_id, UUID):
            raise _make_not_found(request.conversation_id)
        if not request.store:  # nothing may be stored, and there is no history
            return ConversationState(None)
        await self._create(request, principal, conversation_id)
        if (state := await self._read_state(conversation_id, principal, place)) is None:
            raise _make_not_found(request.conversation_id)  # of another key, which this one may not read
        return state

    async def _read_state(
        self, conversation_id: UUID | str, principal: Principal, place: dict[str, Any]
    ) -> ConversationState | None:
        """Read a conversation's state, and take a ticket if it is busy."""
        statement = _OPEN_BY_ID if isinstance(conversation_id, UUID) else _OPEN_BY_EXTERNAL_ID
        reader_key = get_reader_key(principal)
        rows = await self._database.fetch_rows(
            statement, id=conversation_id, owner=principal.user, reader_key=reader_key, **place
        )
        return ConversationState(*rows[0]) if rows else None

    async def release_ticket(self, ticket: int) -> None:
        """See `ConversationRepository.release_ticket`."""
        await self._database.fetch_rows(_RELEASE_TICKET, ticket=ticket)

    async def load_history(self, turn_id: UUID) -> History:
        """See `ConversationRepository.load_history`."""
        return await load_history(self._database, turn_id, max_turns=self._max_turns)

    async def load_next_history(self, turn: TurnRecord) -> History:
        """See `ConversationRepository.load_next_history`."""
        return await load_next_history(self._database, turn, max_turns=self._max_turns)

    async def get_parent_id(self, turn_id: UUID) -> UUID | None:
        """See `ConversationRepository.get_parent_id`."""
        rows = await self._database.fetch_rows("SELECT parent_id FROM turns WHERE id = :turn_id", turn_id=turn_id)
        return rows[0][0] if rows else None

    async def load_added_messages(self, turn_ids: list[UUID], principal: Principal) -> dict[UUID, tuple[Message, ...]]:
        """See `ConversationRepository.load_added_messages`."""
        query = select(Turn).where(col(Turn.id).in_(turn_ids), Turn.owner == principal.user, Turn.status == "completed")
        if (reader_key := get_reader_key(principal)) is not None:
            query = query.where(col(Turn.caller)["key"].astext == reader_key)
        async with self._database.session() as session:
            turns = (await session.exec(query)).all()
        return {turn.id: msgspec.convert(turn.messages[turn.sent_messages :], tuple[Message, ...]) for turn in turns}

    async def _open_tree(self, request: TurnRequest, principal: Principal) -> ConversationState:
        """Return the conversation of a fork's or replay's origin.

        Each is a branch, which waits for no other turn.
        """
        if request.conversation_id is None:
            return ConversationState(None)
        conversation = await self.get_conversation(request.conversation_id, principal)
        return ConversationState(conversation.id, conversation.external_id)

    async def _open_branch(self, request: TurnRequest, parent_turn_id: UUID, principal: Principal) -> ConversationState:
        """Return the conversation that a request continues at an ended turn.

        A branch waits for no other turn.
        """
        parent = None if parent_turn_id == NO_TURN else await self._get_parent(parent_turn_id, principal)
        if is_new_conversation(request.conversation_id):
            return ConversationState(*await self._create(request, principal))
        if request.conversation_id is None:
            return ConversationState(None if parent is None else parent.conversation_id)
        conversation = await self.get_conversation(request.conversation_id, principal)
        if parent is not None and parent.conversation_id != conversation.id:
            raise InvalidRequest("The parent turn is not in this conversation.", param="parent_turn_id")
        return ConversationState(conversation.id, conversation.external_id)

    async def _get_parent(self, turn_id: UUID, principal: Principal) -> Turn:
        query = select(Turn).where(Turn.id == turn_id, Turn.owner == principal.user)
        if (reader_key := get_reader_key(principal)) is not None:
            query = query.where(col(Turn.caller)["key"].astext == reader_key)
        async with self._database.session() as session:
            turn = (await session.exec(query)).first()
        if turn is None:
            raise NotFound(f"There is no parent turn {str(turn_id)!r}.", param="parent_turn_id")
        if not turn.store:
            raise NotFound(f"The parent turn {str(turn_id)!r} was not stored.", param="parent_turn_id")
        if turn.status in _OPEN_STATUSES:
            raise ConversationBusy("The parent turn has not ended yet.", param="parent_turn_id")
        return turn

    async def _create(
        self, request: TurnRequest, principal: Principal, external_id: str | None = None
    ) -> tuple[UUID, str | None]:
        """Create a conversation, unless its external id is taken.

        Returns the new id and the external id.
        """
        is_numbered = request.conversation_id == NEW_NUMBERED_CONVERSATION
        new_id, title, owner = UUID(int=uuids.uuid7().int), self._redact_title(request.prompt), principal.user
        insertion = insert(Conversation).on_conflict_do_nothing()
        async with self._database.session() as session:
            connection = await session.connection()
            if is_numbered or (external_id or "").isdecimal():
                await connection.execute(text(_LOCK_NUMBERS), {"owner": owner})
            if is_numbered:
                external_id = str((await connection.execute(text(_NEXT_NUMBER), {"owner": owner})).scalar_one())
            row = {"id": new_id, "owner": owner, "title": title}
            is_new = await count_changed_rows(session, insertion.values(**row, external_id=external_id))
            if is_numbered and not is_new:  # the client itself has taken the last number
                external_id = None
                await session.exec(insertion.values(row))
        return new_id, external_id

    # --- for their owners

    async def create_conversation(
        self, principal: Principal, notes: JsonObject, *, external_id: str | None = None
    ) -> Conversation:
        """Create a conversation without turns; an `external_id` must be new."""
        conversation = Conversation(
            id=UUID(int=uuids.uuid7().int), owner=principal.user, notes=notes or None, external_id=external_id
        )
        async with self._database.session() as session:
            session.add(conversation)
        return await self.get_conversation(str(conversation.id), principal)

    async def set_notes(self, conversation_id: UUID, notes: JsonObject) -> None:
        change = update(Conversation).where(col(Conversation.id) == conversation_id)
        async with self._database.session() as session:
            await session.exec(change.values(notes=notes or None, updated_at=func.now()))

    async def add_messages(
        self, conversation: Conversation, messages: tuple[Message, ...], principal: Principal
    ) -> UUID:
        """Add messages as a turn without a model; return its id.

        Raises:
            NotFound: the conversation has turns of another key, which the caller may not read.
            ConversationBusy: a turn of the conversation has not ended.
        """
        state = await self._read_state(
            conversation.id, principal, {"worker_id": conversation.id, "ticket": None, "wait_seconds": 0}
        )
        if state is None:
            raise _make_not_found(str(conversation.id))
        if state.busy_turn_id is not None:
            raise ConversationBusy(param="conversation_id")
        messages = redact_messages(messages, self._redactor)
        last_texts = {message.role: message.text.replace("\x00", "\ufffd") for message in messages}
        caller = strip_secrets(principal) if principal.key is not None else None
        turn_id = UUID(int=uuids.uuid7().int)
        await self._database.fetch_rows(
            _ADD_MESSAGES,
            id=turn_id,
            conversation_id=conversation.id,
            owner=principal.user,
            prompt=last_texts.get("user", ""),
            response=last_texts.get("assistant", ""),
            messages=encode_jsonb(messages),
            number=len(messages),
            caller=None if caller is None else encode_jsonb(caller),
        )
        return turn_id

    async def get_conversation(self, conversation_id: str, principal: Principal) -> Conversation:
        """Return a conversation of the principal.

        Raises:
            NotFound: the principal has no such conversation.
        """
        parsed_id = _parse_id(conversation_id)
        column = Conversation.id if isinstance(parsed_id, UUID) else Conversation.external_id
        query = select(Conversation).where(column == parsed_id, Conversation.owner == principal.user)
        async with self._database.session() as session:
            conversation = (await session.exec(query)).first()
        if conversation is None:
            raise _make_not_found(conversation_id)
        return conversation

    async def list_conversations(
        self, principal: Principal, *, limit: int, before: UUID | None, ascending: bool = False
    ) -> list[Conversation]:
        """List conversations, newest first, or oldest first if `ascending`.

        `before` is the id of the last conversation of the previous page.
        """
        column, owner = col(Conversation.id), col(Conversation.owner)
        query = select(Conversation).where(owner == any_(array([principal.user])))  # see `owned_rows`
        if before is not None:
            query = query.where(column > before if ascending else column < before)
        order = (owner.desc(), column.asc()) if ascending else (owner.asc(), column.desc())
        async with self._database.session() as session:
            return list((await session.exec(query.order_by(*order).limit(limit))).all())

    async def count_conversations(self) -> int:
        """Count the conversations of all owners.

        Above 100,000, return the planner's estimate.
        """
        [(estimate,)] = await self._database.fetch_rows(
            "SELECT reltuples FROM pg_class WHERE oid = 'conversations'::regclass"
        )
        if estimate > _MAX_EXACT_COUNT:
            return int(estimate)
        async with self._database.session() as session:
            return (await session.exec(select(func.count()).select_from(Conversation))).one()

    async def list_open_turns(self, conversation_id: UUID) -> list[UUID]:
        """List the ids of the turns that have not ended."""
        query = select(Turn.id).where(Turn.conversation_id == conversation_id, col(Turn.status).in_(_OPEN_STATUSES))
        async with self._database.session() as session:
            return list((await session.exec(query)).all())

    async def rename_conversation(self, conversation_id: UUID, title: str) -> None:
        change = update(Conversation).where(col(Conversation.id) == conversation_id)
        async with self._database.session() as session:
            await session.exec(change.values(title=self._redact_title(title), updated_at=func.now()))

    async def delete_conversation(self, conversation_id: UUID, *, by: str) -> None:
        """Delete a conversation with its turns, their events, calls and questions."""
        turns = select(Turn.id).where(Turn.conversation_id == conversation_id)
        async with self._database.session() as session:
            await session.exec(delete(TurnEvents).where(col(TurnEvents.turn_id).in_(turns)))
            await session.exec(delete(Conversation).where(col(Conversation.id) == literal(conversation_id)))
            session.add(make_audit_entry(by, "conversation.delete", f"conversation {conversation_id}", {}))

    def _redact_title(self, title: str) -> str:
        return shorten_title(self._redactor.redact_text(title))


def _parse_id(conversation_id: str) -> UUID | str:
    try:
        return parse_conversation_id(conversation_id)
    except ValueError:
        raise _make_not_found(conversation_id) from None


def _make_not_found(conversation_id: str) -> NotFound:
    return NotFound(f"There is no conversation {conversation_id[:64]!r}.", param="conversation_id")

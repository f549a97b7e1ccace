"""Finds the turn that a front end's request follows or continues."""

from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from fastapi import Request
from msgspec.structs import replace

from gateway.agent.service import TurnHandle
from gateway.api.deps import get_principal, get_turn_service, get_turn_store
from gateway.domain.branches import NO_TURN
from gateway.domain.conversation_ids import is_new_conversation, parse_conversation_id
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.messages import Answer, TurnRequest
from gateway.store.conversations import ConversationStore
from gateway.store.lists.turn_contents import TurnContentStore, find_followed
from gateway.store.models import Conversation, Turn
from gateway.wire.front_ends.sent_chat import SentAnswer, SentChat, join_paths

_OPEN_STATUSES = ("running", "waiting")


class ChatPlan(NamedTuple):
    """New turn, or the turn whose questions a request answers.

    `followed_id` is the turn before the new one.
    """

    turn_request: TurnRequest
    answered_turn: TurnHandle | None = None
    followed_id: UUID | None = None


async def find_conversation(chat_id: str, request: Request) -> tuple[str, Conversation | None]:
    """Return a chat's name among the caller's conversations, and the conversation.

    The name is the chat's id. An id that no conversation can have, such as a UUID that the gateway would have made, has
    a name made of it.
    """
    conversations: ConversationStore = request.app.state.conversations
    name = _name_conversation(chat_id)
    principal = get_principal(request)
    for candidate in dict.fromkeys((name, _hash_name(chat_id))):
        try:
            return candidate, await conversations.get_conversation(candidate, principal)
        except NotFound:
            pass
    is_external = not isinstance(parse_conversation_id(name), UUID)
    return name if is_external else _hash_name(chat_id), None


def _name_conversation(chat_id: str) -> str:
    try:
        parse_conversation_id(chat_id)
    except ValueError:
        return _hash_name(chat_id)
    return _hash_name(chat_id) if is_new_conversation(chat_id) else chat_id


def _hash_name(chat_id: str) -> str:
    return f"chat:{blake2b(chat_id.encode(errors='replace'), digest_size=16).hexdigest()}"


async def plan_chat(chat: SentChat, turn_request: TurnRequest, request: Request) -> ChatPlan:
    """Answer the last turn's questions, or select a new turn's messages.

    A turn that still runs or waits while the user writes on is cancelled, unless its questions are answered.

    Raises:
        InvalidRequest: the chat has no new message.
        NotFound: a question is not one of the chat's last turn.
    """
    conversation = None
    if turn_request.conversation_id is not None:
        name, conversation = await find_conversation(turn_request.conversation_id, request)
        turn_request = replace(turn_request, conversation_id=name)
    known = await _find_last_turn(chat, conversation, request)
    if chat.answers:
        known = known or await _find_open_turn(conversation, request)
        if known is not None:
            turn = await _answer_questions(known, chat.answers, request)
            if not chat.has_new(known.id):
                return ChatPlan(turn_request, answered_turn=turn)
        elif not chat.is_written_on:
            raise NotFound("The turn that asked for these answers was not found.", param="messages")
    elif known is not None and known.status in _OPEN_STATUSES and chat.is_written_on:
        service = get_turn_service(request)
        await service.cancel_turn(await service.get_turn(known.id, get_principal(request)))
    followed_id = None if known is None or turn_request.conversation_id is None else known.id
    messages, paths = join_paths(chat.select_new(followed_id))
    if not messages:
        raise InvalidRequest("messages: there is no new message.", param="messages")
    parent_turn_id = turn_request.parent_turn_id
    if conversation is not None and parent_turn_id is None:
        parent_turn_id = await _choose_parent(chat, conversation, followed_id, request)
    turn_request = replace(turn_request, messages=messages, message_paths=paths, parent_turn_id=parent_turn_id)
    return ChatPlan(turn_request, followed_id=followed_id)


async def _find_last_turn(chat: SentChat, conversation: Conversation | None, request: Request) -> Turn | None:
    """Return the newest turn that is open or that the model sees."""
    principal, turns = get_principal(request), get_turn_store(request)
    for turn_id in chat.list_turns():
        try:
            turn = await turns.get_turn(turn_id, principal)
        except NotFound:
            continue
        is_here = conversation is None or turn.conversation_id == conversation.id
        if is_here and (turn.status in _OPEN_STATUSES or turn.response or turn.finish_reason == "tool_calls"):
            return turn
    return None


async def _find_open_turn(conversation: Conversation | None, request: Request) -> Turn | None:
    """Return the conversation's newest turn that is open.

    The messages of its client may not name it.
    """
    conversations: ConversationStore = request.app.state.conversations
    open_turns = [] if conversation is None else await conversations.list_open_turns(conversation.id)
    return await get_turn_store(request).get_turn(max(open_turns), get_principal(request)) if open_turns else None


async def _choose_parent(
    chat: SentChat, conversation: Conversation, followed_id: UUID | None, request: Request
) -> UUID | None:
    """Return the turn that a branch follows; None for no branch.

    Only the next turn waits for another one. A chat that shows no answer of the gateway is a branch of its own, unless
    it is a single message: then the front end sends only the last one.
    """
    if followed_id is None:
        is_last_message = len(chat.messages) == 1 and not chat.has_answers_of_models and not chat.is_rewritten
        return None if is_last_message else NO_TURN
    contents: TurnContentStore = request.app.state.turn_contents
    last = find_followed(await contents.list_nodes(conversation.id))
    return None if last is not None and last.id == followed_id else followed_id


async def _answer_questions(known: Turn, answers: tuple[SentAnswer, ...], request: Request) -> TurnHandle:
    """Answer questions of a turn; an answer that came twice counts once.

    Raises:
        NotFound: none of the questions is one of the turn.
        InvalidRequest: an answer does not match its question's schema.
    """
    principal, service = get_principal(request), get_turn_service(request)
    turn = await service.get_turn_to_answer(known.id, principal)
    unknown: list[NotFound] = []
    for answer in answers:
        try:
            await service.answer_question(
                turn, answer.input_id, Answer(answer.action, answer.content, by=principal.user)
            )
        except NotFound as error:  # a part of an earlier turn of the same message
            unknown.append(error)
        except Conflict:
            pass  # answered before, or expired: the events of the turn tell
    if len(unknown) == len(answers):
        raise unknown[0]
    return turn

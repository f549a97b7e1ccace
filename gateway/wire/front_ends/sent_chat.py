"""The new part of a chat that a front end sends whole.

Front ends keep the messages and send all of them with each request. The gateway has most of them already: an answer's
id names its turn. Only what follows the last such answer is a new message; what precedes it is the stored history.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.messages import JsonObject, Message
from gateway.wire.client_tools import CLIENT_CALL_ID

_MESSAGE_ID = re.compile(r"msg_([0-9a-f]{32})(?:_[0-9a-z_]{1,40})?")
MAX_FOLLOWED_TURNS = 8
"""Answers whose turns are looked for in the store, newest first."""


class SentMessage(NamedTuple):
    """Message of a chat.

    `read` returns the messages of the model; it is called for new messages alone. `turn_id` is the turn that an answer
    belongs to, according to the client. `path` names the message in errors.
    """

    role: Literal["system", "user", "assistant", "tool"]
    path: str
    read: Callable[[], Iterable[Message]]
    turn_id: UUID | None = None


class SentAnswer(msgspec.Struct, frozen=True):
    """Answer of a person to a question, as the client sends it."""

    input_id: UUID
    action: Literal["accept", "decline", "cancel"]
    content: JsonObject | None = None


class SentChat(msgspec.Struct, frozen=True):
    """A chat as it was sent.

    `answers` are those to questions of the last turn. `is_rewritten`: a message before the last answer was changed, so
    what follows it in the store no longer counts.
    """

    messages: tuple[SentMessage, ...]
    answers: tuple[SentAnswer, ...] = ()
    is_rewritten: bool = False

    def list_turns(self) -> list[UUID]:
        """List the newest turns that the answers name, newest first."""
        turn_ids = (message.turn_id for message in reversed(self.messages))
        return list(dict.fromkeys(turn_id for turn_id in turn_ids if turn_id is not None))[:MAX_FOLLOWED_TURNS]

    def select_new(self, turn_id: UUID | None) -> tuple[tuple[Message, str], ...]:
        """Return the messages that follow a turn, with their paths.

        They begin with the results of the turn's calls of a front end's tools. None: all messages.
        """
        start = self._find_end(turn_id)
        new = [(message, sent.path) for sent in self.messages[start:] for message in sent.read()]
        if turn_id is None or not start:
            return tuple(new)
        last = self.messages[start - 1]
        results = [(message, last.path) for message in last.read() if _is_result_of(message, turn_id)]
        return (*results, *new)

    def has_new(self, turn_id: UUID | None) -> bool:
        """Return whether the user has written after a turn."""
        return any(sent.role == "user" for sent in self.messages[self._find_end(turn_id) :])

    @property
    def is_written_on(self) -> bool:
        """Whether the last message is the user's."""
        return bool(self.messages) and self.messages[-1].role == "user"

    @property
    def has_answers_of_models(self) -> bool:
        return any(message.role == "assistant" for message in self.messages)

    def _find_end(self, turn_id: UUID | None) -> int:
        numbers = (number for number, sent in enumerate(self.messages, 1) if sent.turn_id == turn_id)
        return 0 if turn_id is None else max(numbers, default=0)


def format_message_id(turn_id: UUID, suffix: str = "") -> str:
    """Format the id of an answer or of a part."""
    return f"msg_{turn_id.hex}_{suffix}" if suffix else f"msg_{turn_id.hex}"


def parse_message_id(message_id: object) -> UUID | None:
    """Return the turn of an answer; None for ids of others."""
    match = _MESSAGE_ID.fullmatch(message_id) if isinstance(message_id, str) else None
    return UUID(hex=match[1]) if match else None


def parse_uuid(value: object) -> UUID | None:
    """Return a UUID that a client sent, or None."""
    try:
        return UUID(value) if isinstance(value, str) and len(value) <= 36 else None
    except ValueError:
        return None


def parse_calling_turn(call_id: object) -> UUID | None:
    """Return the turn of a call of a front end's tool."""
    is_known = isinstance(call_id, str) and CLIENT_CALL_ID.fullmatch(call_id)
    return UUID(hex=str(call_id)[5:37]) if is_known else None


def _is_result_of(message: Message, turn_id: UUID) -> bool:
    return message.role == "tool" and parse_calling_turn(message.tool_call_id) == turn_id


def join_paths(named: Sequence[tuple[Message, str]]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Separate messages from their paths."""
    return tuple(message for message, _ in named), tuple(path for _, path in named)

"""Ids of the Responses API.

A response is a turn, or the part of a turn after an answered approval: `resp_<turn>`, `resp_<turn>_1`, … An item is
`msg_<turn>_<part>_<number>`, with the prefix of its type. An approval request is a question of the turn:
`mcpr_<question>_<turn>_<part>`; releases before 0.2.0 wrote `mcpr_<question>`.
"""

import re
from typing import NamedTuple
from uuid import UUID

from gateway.domain.branches import NO_TURN
from gateway.domain.errors import NotFound

APPROVAL_ID_PATTERN = r"^mcpr_([0-9a-f]{32})(?:_([0-9a-f]{32})_(\d{1,6}))?$"
_APPROVAL_ID = re.compile(APPROVAL_ID_PATTERN)
_ITEM_ID = re.compile(r"[a-z]{1,8}_([0-9a-f]{32})_(\d{1,6})_\d{1,6}")
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{32})(?:_(\d{1,6}))?")
_CONVERSATION_ID = re.compile(r"conv_([0-9a-f]{32})")
_MAX_SHOWN_LENGTH = 80


def format_response_id(turn_id: UUID, part: int = 0) -> str:
    """Format the id of a turn's part as a response id."""
    return f"resp_{turn_id.hex}_{part}" if part else f"resp_{turn_id.hex}"


def parse_response_id(response_id: str, param: str = "response_id") -> tuple[UUID, int]:
    """Return the turn id and the part number of a response id.

    Raises:
        NotFound: the text is not a response id.
    """
    match = _RESPONSE_ID.fullmatch(response_id)
    if match is None or UUID(hex=match[1]) == NO_TURN:
        raise NotFound(f"The response {response_id[:_MAX_SHOWN_LENGTH]!r} was not found.", param=param)
    return UUID(hex=match[1]), int(match[2] or 0)


def format_conversation_id(conversation_id: UUID | str) -> str:
    """Format the gateway's own id of a conversation; a client's own stays."""
    try:
        return f"conv_{UUID(str(conversation_id)).hex}"
    except ValueError:
        return str(conversation_id)


def parse_conversation_id(conversation_id: str) -> str:
    """Return the gateway's id of a conversation, or the client's own."""
    match = _CONVERSATION_ID.fullmatch(conversation_id)
    return conversation_id if match is None else str(UUID(hex=match[1]))


class ApprovalId(NamedTuple):
    """Parts of an approval request's id.

    `turn_id` is None in ids of releases before 0.2.0. `part` is the part of the turn that asks.
    """

    input_id: UUID
    turn_id: UUID | None
    part: int


def format_approval_id(input_id: str, turn_id: UUID, part: int) -> str:
    """Format a question of a turn's part as an approval request's id."""
    return f"mcpr_{UUID(input_id).hex}_{turn_id.hex}_{part}"


def parse_approval_id(approval_id: str) -> ApprovalId:
    """Return the parts of an id that matches `APPROVAL_ID_PATTERN`."""
    match = _APPROVAL_ID.fullmatch(approval_id)
    assert match is not None
    return ApprovalId(UUID(hex=match[1]), UUID(hex=match[2]) if match[2] else None, int(match[3] or 0))


def parse_item_id(item_id: str) -> tuple[UUID, int] | None:
    """Return the turn id and the part number of an item's id."""
    match = _ITEM_ID.fullmatch(item_id)
    return None if match is None else (UUID(hex=match[1]), int(match[2]))

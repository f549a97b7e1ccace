"""Ids of the Responses API.

A response is a turn, or the part of a turn after an answered approval: `resp_<turn>`, `resp_<turn>_1`, … An approval
request is a question of the turn: `mcpr_<question>`.
"""

import re
from uuid import UUID

from gateway.domain.errors import NotFound

APPROVAL_ID_PATTERN = r"mcpr_([0-9a-f]{32})"
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{32})(?:_(\d{1,6}))?")
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
    if match is None:
        raise NotFound(f"The response {response_id[:_MAX_SHOWN_LENGTH]!r} was not found.", param=param)
    return UUID(hex=match[1]), int(match[2] or 0)


def format_approval_id(input_id: str) -> str:
    """Format a question's id as the id of an approval request."""
    return f"mcpr_{UUID(input_id).hex}"


def parse_approval_id(approval_id: str) -> UUID:
    """Return the question's id of an approval request id that matches `APPROVAL_ID_PATTERN`."""
    return UUID(hex=approval_id.removeprefix("mcpr_"))

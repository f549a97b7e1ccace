"""Ids of conversations: the gateway's own, and those that clients choose."""

import re
from uuid import UUID

NEW_CONVERSATION = "new"
NEW_NUMBERED_CONVERSATION = "new number"
"""A new conversation whose external id is the user's next free number.

It is no external id itself, because of its space.
"""
_OWN_VERSION = 7
"""Version of the UUIDs that the gateway creates."""
_EXTERNAL_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:@|+=~-]{1,128}")
EXTERNAL_ID_RULE = (
    "must be an id of the gateway, or an id of your own: at most 128 letters, digits and characters of ._:@|+=~-"
)


def is_new_conversation(conversation_id: str | None) -> bool:
    """Return whether a request's id asks for a new conversation."""
    return conversation_id in (NEW_CONVERSATION, NEW_NUMBERED_CONVERSATION)


def parse_conversation_id(text: str) -> UUID | str:
    """Parse an id of the gateway, or a client's own id.

    The first is returned as UUID, the second unchanged. A UUID of version 7 is an id of the gateway, which must exist.
    Any other id names the conversation of its user.

    Raises:
        ValueError: the text is neither.
    """
    try:
        if (uuid := UUID(text)).version == _OWN_VERSION:
            return uuid
    except ValueError:
        pass
    if _EXTERNAL_ID.fullmatch(text):
        return text
    raise ValueError(f"conversation_id: {EXTERNAL_ID_RULE}.")

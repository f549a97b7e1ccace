"""Titles of conversations, made of the first prompt."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import text

MAX_TITLE_LENGTH = 80
_CLEAR = """
UPDATE conversations SET title = ''
FROM unnest(cast(:ids AS uuid[]), cast(:titles AS text[]), cast(:beginnings AS text[]))
    AS deleted (id, title, beginning)
WHERE conversations.id = deleted.id AND conversations.title = deleted.title AND NOT EXISTS (
    SELECT FROM turns WHERE conversation_id = deleted.id AND left(prompt, 4000) = deleted.beginning)
"""


def shorten_title(title: str) -> str:
    """Return a title on one line."""
    return " ".join(title.replace("\x00", "\ufffd").split())[:MAX_TITLE_LENGTH]


async def clear_titles(connection: AsyncConnection, deleted_turns: Sequence[tuple[UUID | None, str]]) -> None:
    """Remove titles that repeat the prompt of a deleted turn.

    A turn has its conversation and the first 4,000 characters of its prompt. A title stays while another turn has this
    prompt.
    """
    turns = [(conversation, shorten_title(prompt), prompt) for conversation, prompt in deleted_turns if conversation]
    if turns:
        ids, titles, beginnings = (list(column) for column in zip(*turns, strict=True))
        await connection.execute(text(_CLEAR), {"ids": ids, "titles": titles, "beginnings": beginnings})

"""Deletion of single items of conversations."""

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

import msgspec
from sqlmodel import text

from gateway.domain.errors import ConversationBusy, NotFound
from gateway.domain.messages import JsonObject, Message
from gateway.store.context.titles import clear_titles
from gateway.store.database import Database, decode_json, encode_jsonb

_LOCK = """
SELECT messages, sent_messages, prompt, response, completed_at IS NOT NULL, conversation_id, left(prompt, 4000)
FROM turns WHERE id = :id AND owner = :owner FOR UPDATE"""
_UPDATE = """
UPDATE turns SET messages = cast(:messages AS jsonb), sent_messages = :sent, prompt = :prompt, response = :response,
    has_terms = false, history_summary = NULL
WHERE id = :id"""
_FORGET = (
    "DELETE FROM turn_events WHERE turn_id = :id",  # they repeat the texts
    "DELETE FROM tool_calls WHERE turn_id = :id AND call_id = ANY(:calls)",
    "UPDATE turns SET history_summary = NULL WHERE conversation_id = :conversation AND history_summary IS NOT NULL",
)


class RemainingMessages(NamedTuple):
    """Messages of a turn after a deletion.

    `removed` are the deleted messages, or their deleted parts; `calls` their tool calls; `removed_indexes` the places
    of messages that are gone.
    """

    messages: list[JsonObject]
    removed: list[JsonObject]
    removed_indexes: list[int]
    calls: list[str]


class ItemDeletionStore:
    """Deletes items with everything that repeats their texts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def delete_item(
        self, turn_id: UUID, owner: str, delete: Callable[[list[JsonObject]], RemainingMessages | None]
    ) -> None:
        """Delete an item of an ended turn.

        The turn's events go too, and summaries of the conversation, which are made again when they are needed.

        Raises:
            NotFound: the turn does not have the item.
            ConversationBusy: the turn runs or waits.
        """
        async with self._database.session() as session:
            connection = await session.connection()
            row = (await connection.execute(text(_LOCK), {"id": turn_id, "owner": owner})).first()
            if row is None:
                raise NotFound
            stored, sent, prompt, response, has_ended, conversation_id, title = row
            if not has_ended:
                raise ConversationBusy("The item belongs to a turn that is still active.")
            remaining = delete(msgspec.convert(decode_json(stored), list[JsonObject]))
            if remaining is None:
                raise NotFound
            texts = [msgspec.convert(message, Message).text for message in remaining.removed]
            values = {
                "id": turn_id,
                "messages": encode_jsonb(remaining.messages),
                "sent": sent - sum(index < sent for index in remaining.removed_indexes),
                "prompt": _remove_texts(prompt, texts),
                "response": _remove_texts(response, texts),
            }
            await connection.execute(text(_UPDATE), values)
            names = {"id": turn_id, "calls": remaining.calls, "conversation": conversation_id}
            for statement in _FORGET:
                used = {name: value for name, value in names.items() if f":{name}" in statement}
                await connection.execute(text(statement), used)
            if values["prompt"] != prompt:
                await clear_titles(connection, [(conversation_id, title)])


def _remove_texts(value: str, texts: list[str]) -> str:
    for each in texts:
        if each:
            value = value.replace(each.replace("\x00", "\ufffd"), "")
    return value

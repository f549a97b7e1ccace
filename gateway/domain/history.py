"""The earlier turns of a conversation, and summaries of the oldest ones."""

from typing import Literal
from uuid import UUID

import msgspec

from gateway.domain.messages import Message


class HistorySummary(msgspec.Struct, frozen=True):
    """A text in place of the oldest turns of a conversation.

    `turns` counts them. The last one of them is `through_turn_id`.
    """

    text: str
    turns: int
    through_turn_id: UUID


class HistoryTurn(msgspec.Struct, frozen=True):
    """A turn of a conversation.

    `messages` are empty if it has no answer. `summary` is the one that was made during it, of turns before it.
    """

    id: UUID
    messages: tuple[Message, ...] = ()
    summary: HistorySummary | None = None


class History(msgspec.Struct, frozen=True):
    """The turns before a turn, oldest first.

    `head_id` is the last of all turns before it. The turns of the newest summary are left out. `is_full`: more turns
    are not loaded, so a summary has to be made. `is_cut`: there are older turns without a summary.
    """

    head_id: UUID | None = None
    turns: tuple[HistoryTurn, ...] = ()
    is_full: bool = False
    is_cut: bool = False


class HistoryNote(msgspec.Struct, frozen=True):
    """Description of the history for the first event of a turn.

    A summary stands for the first `summarized_turns`, and the last `turns` are whole. `summary` is `stored` if an
    earlier turn made it, and `new` if this turn makes it before its first step. `is_cut`: older turns are left out.
    """

    turns: int
    summarized_turns: int
    summary: Literal["stored", "new"] | None
    is_cut: bool = False

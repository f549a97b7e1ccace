"""Notifications between the workers of one database."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

import msgspec


class BusKind(StrEnum):
    """Subject of a notification.

    The values are sent between workers of different versions: never change one.
    """

    CANCEL_TURN = "cancel"
    WATCH_TURN = "watch"
    """Another worker asks for notifications about the turn's events."""
    TURN_EVENTS = "events"
    """The turn has new events."""
    TURN_RETRIED = "retried"
    """A retry at another worker follows the turn.

    Its client may have left the turn's worker.
    """
    CLIENT_CAME = "came"
    """A client follows the turn, whose departure would cancel it."""
    CLIENT_LEFT = "left"
    """Such a client has left.

    Workers where another one follows the turn answer with `CLIENT_CAME`.
    """
    TURN_RUNNABLE = "orphan"
    """No worker runs the turn, or its question was answered."""
    SERVERS_CHANGED = "servers"
    TOOLSETS_CHANGED = "toolsets"
    KEYS_CHANGED = "keys"
    GRANTS_CHANGED = "logins"
    """A sign-in to an MCP server was completed."""
    TICKET_RELEASED = "ticket"
    """A request no longer waits for its conversation."""


class BusMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Notification between workers, about a turn or `NO_TURN`.

    `ticket` is the one that was released.
    """

    kind: BusKind
    turn_id: UUID
    ticket: int | None = None

    NO_TURN: ClassVar[UUID] = UUID(int=0)

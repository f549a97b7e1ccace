"""What the agent asks others to keep for it. The store satisfies these."""

import asyncio
from typing import Protocol
from uuid import UUID

from gateway.agent.turn_log import TurnLog
from gateway.messages import Message, Principal, TurnOutcome, TurnRecord


class Journal(Protocol):
    """The append-only record of every turn's events."""

    async def begin(self, turn: TurnRecord, log: TurnLog) -> None:
        """Make the turn and its first events durable.

        Raises:
            StorageUnavailable: the database cannot be reached in time.
        """
        ...

    def soon(self, log: TurnLog) -> None:
        """Write what the log has gathered, at most one flush interval from now."""
        ...

    def now(self, log: TurnLog) -> asyncio.Future[None]:
        """Write what the log has gathered with the next commit; done when that is durable."""
        ...

    def finish(self, log: TurnLog, outcome: TurnOutcome) -> asyncio.Future[None]:
        """Write the rest of the log and the turn's outcome in one commit."""
        ...

    @property
    def congested(self) -> bool:
        """Whether more is waiting for the database than may: then `room()` before going on."""
        ...

    async def room(self) -> None: ...


class History(Protocol):
    """Conversations and their turns."""

    async def open(self, conversation_id: str | None, principal: Principal, title: str) -> UUID | None:
        """The id of the principal's conversation; "new" makes one, None is none.

        Raises:
            NotFound: the principal has no conversation of that id.
            StorageUnavailable: the database cannot be reached.
        """
        ...

    async def load(self, conversation_id: UUID) -> list[tuple[Message, ...]]:
        """The messages of its ended turns, a tuple a turn, oldest first."""
        ...

"""The record of every turn's events. `gateway.store.journal` implements it."""

import asyncio
from abc import abstractmethod
from typing import Protocol
from uuid import UUID

from gateway.domain.errors import GatewayError
from gateway.domain.events import JournalEntry
from gateway.domain.messages import TurnOutcome, TurnRecord


class EventSource(Protocol):
    """A turn's log, as the journal reads it.

    `epoch` and `attempts` are those of the turn's record. `failure` is set once its entries cannot become durable.
    """

    turn_id: UUID
    epoch: int
    attempts: int
    failure: GatewayError | None

    @abstractmethod
    def take_unwritten(self) -> list[JournalEntry]:
        """Return the entries that the journal has not received yet.

        They are in the order to write them.
        """
        ...

    @abstractmethod
    def mark_committed(self, seq: int) -> None:
        """Record that all entries up to `seq` are durable."""
        ...

    @abstractmethod
    def fail(self, error: GatewayError) -> None:
        """Show nothing more, and stop the turn.

        The entries that are not durable never will be.
        """
        ...


class Journal(Protocol):
    """The append-only record of every turn's events."""

    @abstractmethod
    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """Make the turn and its first events durable.

        Raises:
            StorageUnavailable: the database cannot be reached in time.
        """
        ...

    @abstractmethod
    def schedule_flush(self, log: EventSource, *, at_once: bool = False) -> None:
        """Write the log's new entries within one flush interval.

        With `at_once`, write them after this iteration of the event loop, together with those that follow until then.
        """
        ...

    @abstractmethod
    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """Write the log's new entries with the next commit.

        The future is done when they are durable.
        """
        ...

    @abstractmethod
    def finish_turn(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """Write the log's new entries and the turn's outcome in one commit."""
        ...

    @abstractmethod
    def suspend_turn(self, log: EventSource, open_inputs: list[UUID]) -> asyncio.Future[None]:
        """Write new entries and mark the turn as waiting for a person.

        Both happen in one commit. If one of the questions `open_inputs` is answered by then, the turn stays running,
        for any worker to claim.
        """
        ...

    @abstractmethod
    def is_writing(self, turn_id: UUID) -> bool:
        """Return whether writes of the turn wait for a commit."""
        ...

    @property
    @abstractmethod
    def is_unavailable(self) -> bool:
        """True if the last write could not reach the database."""
        ...

    @property
    @abstractmethod
    def is_backlogged(self) -> bool:
        """True if too much waits for the database.

        Call `wait_for_capacity()` before adding more.
        """
        ...

    @abstractmethod
    async def wait_for_capacity(self) -> None: ...

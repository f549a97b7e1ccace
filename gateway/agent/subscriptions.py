"""Subscriptions to a turn's events.

A subscriber reads the turn's own log if the turn runs in this worker, else a log that is filled from the journal.
"""

from typing import Self
from uuid import UUID

from gateway.agent.following.journal_reader import INPUT_REQUIRED, JournalReader, JournalTail
from gateway.agent.runner import Runner
from gateway.agent.turn_log import TurnLog
from gateway.common.concurrency import SupervisedTask
from gateway.domain.bus import BusMessage
from gateway.domain.errors import TurnNotStored
from gateway.ports.journal import Journal
from gateway.ports.store import Bus, TurnRepository

__all__ = ["INPUT_REQUIRED", "TurnSubscription", "TurnSubscriptions"]


class TurnSubscription:
    """Subscription to a turn's log; `with` or `unsubscribe()` ends it.

    `is_local`: the turn runs in this worker, and this is its own log.
    """

    __slots__ = ("_reader", "_tail", "log")

    def __init__(self, log: TurnLog, tail: JournalTail | None = None, reader: JournalReader | None = None) -> None:
        self.log = log
        self._tail = tail
        self._reader = reader

    @property
    def is_local(self) -> bool:
        return self._tail is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unsubscribe()

    async def wait_until_closed(self) -> None:
        """Wait for the turn's end, or for the log's earlier close."""
        async for _ in self.log.follow():
            pass

    def unsubscribe(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None and self._reader is not None:
            self._reader.remove_subscriber(tail)


class TurnSubscriptions:
    """Subscriptions of this worker. All subscribers of a turn share one log.

    A log with `until_input` is for callers that wait for a result. It also closes when the turn waits for a person;
    other logs stay open. Every log closes when the database was unavailable for `storage_timeout_seconds`.
    """

    def __init__(
        self,
        runner: Runner,
        turns: TurnRepository,
        bus: Bus,
        journal: Journal,
        *,
        storage_timeout_seconds: float = 10.0,
    ) -> None:
        self._runner = runner
        self.reader = JournalReader(turns, bus, journal, storage_timeout_seconds=storage_timeout_seconds)

    @property
    def task(self) -> SupervisedTask:
        """The task that looks for events that were not announced."""
        return self.reader.task

    def subscribe(self, turn_id: UUID, *, is_stored: bool = True, until_input: bool = False) -> TurnSubscription:
        """Subscribe to a turn that exists.

        Raises:
            TurnNotStored: the turn is not stored, and does not run in this worker.
        """
        running = self._runner.get(turn_id)
        if running is not None and not (is_stored and running.log.close_reason):  # after a hand-over it runs elsewhere
            return TurnSubscription(running.log)
        if not is_stored:
            raise TurnNotStored
        tail = self.reader.add_subscriber(turn_id, until_input=until_input)
        return TurnSubscription(tail.log, tail, self.reader)

    def on_events(self, message: BusMessage) -> None:
        """Read new events of a turn."""
        self.reader.on_events(message.turn_id)

    async def stop(self) -> None:
        """Close every log that is filled from the journal."""
        await self.reader.close_logs()

"""Subscriptions to a turn's events.

A subscriber reads the turn's own log if the turn runs in this worker, else a log that is filled from the journal.
"""

import asyncio
from typing import Self
from uuid import UUID

from gateway.agent.following.journal_window import JournalWindow
from gateway.agent.runner import Runner
from gateway.agent.turn_log import TurnLog
from gateway.common.concurrency import Deadline, TaskSet, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import GatewayError, JournalExpired, ServerStopping, StorageUnavailable, TurnNotStored
from gateway.ports.journal import Journal
from gateway.ports.store import Bus, TurnRepository

log = get_logger(__name__)

POLL_SECONDS = 1.0
INPUT_REQUIRED = "input_required"


class TurnSubscription:
    """Subscription to a turn's log; `with` or `unsubscribe()` ends it.

    `is_local`: the turn runs in this worker, and this is its own log.
    """

    def __init__(self, log: TurnLog, tail: "_JournalTail | None" = None) -> None:
        self.log = log
        self._tail = tail

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
        if tail is not None:
            tail.remove_subscriber()


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
        self._turns = turns
        self._bus = bus
        self._journal = journal
        self._storage_timeout_seconds = storage_timeout_seconds
        self._tails: dict[tuple[UUID, bool], _JournalTail] = {}
        self._tasks = TaskSet("journal tail")

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
        key = (turn_id, until_input)
        tail = self._tails.get(key)
        if tail is None or tail.log.close_reason:  # the turn may have continued since that log closed
            tail = self._tails[key] = _JournalTail(
                turn_id,
                self._turns,
                self._bus,
                self._journal,
                self._tails,
                until_input=until_input,
                storage_timeout_seconds=self._storage_timeout_seconds,
            )
            tail.task = self._tasks.spawn(tail.fill_log())
        tail.subscribers += 1
        return TurnSubscription(tail.log, tail)

    def on_events(self, message: BusMessage) -> None:
        """Wake the log of a turn with new journal events."""
        for until_input in (False, True):
            if (tail := self._tails.get((message.turn_id, until_input))) is not None:
                tail.has_news.set()

    async def stop(self) -> None:
        """Close every log that is filled from the journal."""
        for tail in self._tails.values():
            tail.log.close(ServerStopping.code)
        await self._tasks.stop()


class _JournalTail:
    """Fills a window of the journal while it has subscribers.

    It reads on when one of them has read the window to its end.
    """

    def __init__(
        self,
        turn_id: UUID,
        turns: TurnRepository,
        bus: Bus,
        journal: Journal,
        tails: "dict[tuple[UUID, bool], _JournalTail]",
        *,
        until_input: bool,
        storage_timeout_seconds: float,
    ) -> None:
        self.log = JournalWindow(turn_id, turns.load_events)
        self.subscribers = 0
        self.has_news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._turns = turns
        self._bus = bus
        self._journal = journal
        self._tails = tails
        self._until_input = until_input
        self._storage_timeout_seconds = storage_timeout_seconds
        self._storage_deadline = Deadline.after(storage_timeout_seconds)

    def remove_subscriber(self) -> None:
        self.subscribers -= 1
        if not self.subscribers:
            key = (self.log.turn_id, self._until_input)
            if self._tails.get(key) is self:
                del self._tails[key]
            if self.task is not None:
                self.task.cancel()

    async def fill_log(self) -> None:
        """Read the journal until the turn has ended, or the log closes."""
        try:
            while not self.log.has_ended and not self.log.close_reason:
                if not self.log.has_waiting_reader.is_set():
                    await self.log.has_waiting_reader.wait()
                    self._storage_deadline = Deadline.after(self._storage_timeout_seconds)
                self.has_news.clear()
                if not await self._try_to_read():
                    self._bus.publish(BusMessage(BusKind.WATCH_TURN, self.log.turn_id))
                    await wait_or_poll(self.has_news, min(POLL_SECONDS, self._storage_deadline.remaining()))
        except Exception as error:
            # else its readers would wait for ever
            self.log.close(error.code if isinstance(error, GatewayError) else GatewayError.code)
            raise

    async def _try_to_read(self) -> bool:
        """Read new entries; return whether there were any.

        The log closes when the journal could not be read, or could not be written by this worker, for the storage
        timeout: the turn's worker may be unable to write it as well.
        """
        try:
            async with self._storage_deadline.limit():
                has_entries = await self._read_journal()
        except (StorageUnavailable, TimeoutError) as error:
            log.warning("journal_not_read", turn_id=str(self.log.turn_id), error=type(error).__name__)
            has_entries = False
        else:
            if has_entries or not self._journal.is_unavailable:
                self._storage_deadline = Deadline.after(self._storage_timeout_seconds)
        if self._storage_deadline.is_over:
            self.log.close(StorageUnavailable.code)
        return has_entries

    async def _read_journal(self) -> bool:
        """Read new entries; return whether there were any.

        If the turn has ended and the journal lacks its end, the events were deleted, and the log closes.
        """
        turn_id = self.log.turn_id
        status = await self._turns.get_status(turn_id)
        entries = await self._turns.load_events(turn_id, self.log.last_seq)
        self.log.load_entries(entries)
        if not entries and status not in ("running", "waiting"):
            self.log.close(JournalExpired.code)
        elif not entries and status == "waiting" and self._until_input:
            self.log.close(INPUT_REQUIRED)
        return bool(entries)

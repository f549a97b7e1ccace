"""Subscriptions to a turn's events.

A subscriber reads the turn's own log if the turn runs in this worker, else a log that is filled from the journal.
"""

import asyncio
from typing import Self
from uuid import UUID

from gateway.agent.runner import Runner
from gateway.agent.turn_log import TurnLog
from gateway.common.concurrency import TaskSet, wait_or_poll
from gateway.domain.errors import JournalExpired, ServerStopping, StorageUnavailable, TurnNotStored
from gateway.domain.messages import BusKind, BusMessage
from gateway.ports.store import Bus, TurnRepository

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

    A log with `until_input` is for callers that wait for a result. It also closes when the turn waits for a person, and
    when the database was unreachable for `storage_timeout_seconds`. Other logs stay open in both cases.
    """

    def __init__(
        self, runner: Runner, turns: TurnRepository, bus: Bus, *, storage_timeout_seconds: float = 30.0
    ) -> None:
        self._runner = runner
        self._turns = turns
        self._bus = bus
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
        if tail is None or (until_input and tail.log.close_reason):  # the turn may have continued since that log closed
            tail = _JournalTail(
                turn_id,
                self._turns,
                self._bus,
                self._tails,
                self._tasks,
                storage_timeout_seconds=self._storage_timeout_seconds if until_input else None,
            )
            self._tails[key] = tail
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
    """Fills a turn's log from the journal while it has subscribers."""

    def __init__(
        self,
        turn_id: UUID,
        turns: TurnRepository,
        bus: Bus,
        tails: "dict[tuple[UUID, bool], _JournalTail]",
        tasks: TaskSet,
        *,
        storage_timeout_seconds: float | None,
    ) -> None:
        self.log = TurnLog(turn_id)
        self.subscribers = 0
        self.has_news = asyncio.Event()
        self._turns = turns
        self._bus = bus
        self._tails = tails
        self._storage_timeout_seconds = storage_timeout_seconds
        self._last_read_at = asyncio.get_running_loop().time()
        self.task = tasks.spawn(self._fill_log())

    @property
    def _until_input(self) -> bool:
        return self._storage_timeout_seconds is not None

    def remove_subscriber(self) -> None:
        self.subscribers -= 1
        if not self.subscribers:
            key = (self.log.turn_id, self._until_input)
            if self._tails.get(key) is self:
                del self._tails[key]
            self.task.cancel()

    async def _fill_log(self) -> None:
        while not self.log.has_ended:
            self.has_news.clear()
            try:
                if await self._read_journal():
                    continue
            except StorageUnavailable:
                self._check_storage_timeout()
            self._bus.publish(BusMessage(BusKind.WATCH_TURN, self.log.turn_id))
            await wait_or_poll(self.has_news, POLL_SECONDS)

    async def _read_journal(self) -> bool:
        """Read new entries; return whether there were any.

        If the turn has ended and the journal lacks its end, the events were deleted, and the log closes.
        """
        turn_id = self.log.turn_id
        status = await self._turns.get_status(turn_id)
        entries = await self._turns.load_events(turn_id, self.log.last_seq)
        self._last_read_at = asyncio.get_running_loop().time()
        self.log.load_entries(entries)
        if not entries and status not in ("running", "waiting"):
            self.log.close(JournalExpired.code)
        elif not entries and status == "waiting" and self._until_input:
            self.log.close(INPUT_REQUIRED)
        return bool(entries)

    def _check_storage_timeout(self) -> None:
        unreachable_seconds = asyncio.get_running_loop().time() - self._last_read_at
        if self._storage_timeout_seconds is not None and unreachable_seconds >= self._storage_timeout_seconds:
            self.log.close(StorageUnavailable.code)

"""Reader of the journal for all followers of this worker.

It reads turns that other workers run, and turns that wait.
"""

import asyncio
from functools import partial
from itertools import islice
from uuid import UUID

from gateway.agent.following.journal_window import JournalWindow
from gateway.common.concurrency import Deadline, SupervisedTask, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import GatewayError, JournalExpired, ServerStopping, StorageUnavailable
from gateway.ports.journal import Journal
from gateway.ports.store import Bus, TurnRepository

log = get_logger(__name__)

POLL_SECONDS = 1.0
INPUT_REQUIRED = "input_required"
_BATCH_SIZE = 1_000
"""Number of waiting turns that one query looks at.

Further ones follow after half a poll interval, so a worker with many followers looks at each turn less often.
"""
_MAX_READS = 4
"""Number of turns that are read at once.

All requests share the connections.
"""

TailKey = tuple[UUID, bool]


class JournalTail:
    """The newest events of a turn, for its subscribers."""

    __slots__ = ("has_news", "is_scheduled", "key", "log", "subscribers", "waiting_epoch")

    def __init__(self, key: TailKey, log: JournalWindow) -> None:
        self.key = key
        self.log = log
        self.subscribers = 0
        self.has_news = True
        """Whether the journal may have events that were not read."""
        self.is_scheduled = False
        self.waiting_epoch: int | None = None
        """The turn's epoch, while it is known to wait."""

    @property
    def turn_id(self) -> UUID:
        return self.key[0]

    @property
    def is_open(self) -> bool:
        return not self.log.has_ended and self.log.close_reason is None


class JournalReader:
    """Fills the logs of all followed turns.

    No log has a task of its own. A log is read on when one of its subscribers has read it to its end. Bus messages
    announce events; as they may be lost, `task` also polls. A turn that runs is read at each poll. Turns that wait are
    looked at together, and read when they do not wait any more.

    All logs with waiting subscribers close when the journal could not be read, or not be written by this worker, for
    the storage timeout: the turn's worker may be unable to write it as well.
    """

    def __init__(
        self, turns: TurnRepository, bus: Bus, journal: Journal, *, storage_timeout_seconds: float = 10.0
    ) -> None:
        self.task = SupervisedTask("turn followers", self._poll_forever)
        self._turns = turns
        self._bus = bus
        self._journal = journal
        self._storage_timeout_seconds = storage_timeout_seconds
        self._storage_deadline: Deadline | None = None
        """The end of the storage timeout, while the storage is unavailable."""
        self._tails: dict[TailKey, JournalTail] = {}
        self._has_tails = asyncio.Event()
        self._scheduled: dict[JournalTail, None] = {}
        self._reads = TaskSet("journal read")
        self._read_count = 0

    def __len__(self) -> int:
        return len(self._tails)

    def list_logs(self) -> list[JournalWindow]:
        """List the logs that have subscribers."""
        return [tail.log for tail in self._tails.values()]

    def add_subscriber(self, turn_id: UUID, *, until_input: bool) -> JournalTail:
        """Return the tail of a turn, until `remove_subscriber`."""
        key = (turn_id, until_input)
        tail = self._tails.get(key)
        if tail is None or tail.log.close_reason:  # the turn may have continued since that log closed
            window = JournalWindow(turn_id, self._turns.load_events, partial(self._on_reader_waits, key))
            tail = self._tails[key] = JournalTail(key, window)
            self._has_tails.set()
        tail.subscribers += 1
        return tail

    def remove_subscriber(self, tail: JournalTail) -> None:
        """Forget the tail after its last subscriber."""
        tail.subscribers -= 1
        if not tail.subscribers:
            if self._tails.get(tail.key) is tail:
                del self._tails[tail.key]
            self._scheduled.pop(tail, None)

    def on_events(self, turn_id: UUID) -> None:
        """Read the turn's new events."""
        for until_input in (False, True):
            if (tail := self._tails.get((turn_id, until_input))) is not None:
                tail.has_news = True
                self._schedule_read(tail)

    async def close_logs(self) -> None:
        """Close every log."""
        for tail in list(self._tails.values()):
            tail.log.close(ServerStopping.code)
        await self.task.stop()
        await self._reads.stop()

    # --- reads

    def _on_reader_waits(self, key: TailKey) -> None:
        tail = self._tails.get(key)
        if tail is not None and tail.has_news:
            self._schedule_read(tail)

    def _schedule_read(self, tail: JournalTail) -> None:
        """Read the tail soon, if one of its subscribers waits."""
        if tail.is_scheduled or not tail.log.has_waiting_reader or not tail.is_open:
            return
        tail.is_scheduled = True
        self._scheduled[tail] = None
        if self._read_count < _MAX_READS:
            self._read_count += 1
            self._reads.spawn(self._read_scheduled())

    async def _read_scheduled(self) -> None:
        try:
            await self._read_until_none_is_scheduled()
        finally:
            self._read_count -= 1

    async def _read_until_none_is_scheduled(self) -> None:
        while self._scheduled:
            tail = next(iter(self._scheduled))
            del self._scheduled[tail]
            try:
                await self._read_tail(tail)
            except Exception as error:  # else its readers would wait for ever
                log.exception("journal_unreadable", turn_id=str(tail.turn_id), error=type(error).__name__)
                tail.log.close(error.code if isinstance(error, GatewayError) else GatewayError.code)
            finally:
                tail.is_scheduled = False
            if tail.has_news:
                self._schedule_read(tail)

    async def _read_tail(self, tail: JournalTail) -> None:
        """Read new entries; ask the turn's worker to announce further ones."""
        tail.has_news = False
        if await self._try_to_read(tail):
            tail.has_news = True  # there may be more
        elif tail.waiting_epoch is None:
            self._bus.publish(BusMessage(BusKind.WATCH_TURN, tail.turn_id))
        elif tail.subscribers == 1:
            tail.log.drop_entries()  # its reader has read them, and may wait for days

    async def _try_to_read(self, tail: JournalTail) -> bool:
        try:
            async with self._limit_time():
                has_entries = await self._read_journal(tail)
        except (StorageUnavailable, TimeoutError) as error:
            log.warning("journal_not_read", turn_id=str(tail.turn_id), error=type(error).__name__)
            self._note_failure()
            return False
        self._note_success()
        return has_entries

    async def _read_journal(self, tail: JournalTail) -> bool:
        """Read new entries; return whether there were any.

        If the turn has ended and the journal lacks its end, the events were deleted, and the log closes.
        """
        progress = await self._turns.get_progress(tail.turn_id)
        entries = await self._turns.load_events(tail.turn_id, tail.log.last_seq)
        tail.log.load_entries(entries)
        is_waiting = progress is not None and progress.status == "waiting"
        tail.waiting_epoch = progress.epoch if progress is not None and is_waiting and not entries else None
        if not entries and (progress is None or progress.status not in ("running", "waiting")):
            tail.log.close(JournalExpired.code)
        elif not entries and is_waiting and tail.key[1]:
            tail.log.close(INPUT_REQUIRED)
        return bool(entries)

    # --- polls

    async def _poll_forever(self) -> None:
        while True:
            if not self._tails:
                self._has_tails.clear()
                await self._has_tails.wait()
            await asyncio.sleep(min(POLL_SECONDS, self._remaining_seconds()))
            await self._poll_tails()

    async def _poll_tails(self) -> None:
        epochs: dict[UUID, int] = {}
        for tail in list(self._tails.values()):
            if not tail.log.has_waiting_reader or not tail.is_open:
                continue
            if tail.waiting_epoch is None:
                self._schedule_read(tail)
            else:
                epochs[tail.turn_id] = tail.waiting_epoch
        remaining = iter(epochs.items())
        while batch := dict(islice(remaining, _BATCH_SIZE)):
            await self._look_at_waiting(batch)
            if len(epochs) > _BATCH_SIZE:
                await asyncio.sleep(POLL_SECONDS / 2)
        self._close_if_unavailable()

    async def _look_at_waiting(self, epochs: dict[UUID, int]) -> None:
        try:
            async with self._limit_time():
                woken = await self._turns.find_woken(epochs)
        except (StorageUnavailable, TimeoutError) as error:
            log.warning("waiting_turns_not_read", turns=len(epochs), error=type(error).__name__)
            self._note_failure()
            return
        self._note_success()
        for turn_id in woken:
            self.on_events(turn_id)

    # --- storage timeout

    def _limit_time(self) -> asyncio.Timeout:
        deadline = self._storage_deadline or Deadline.after(self._storage_timeout_seconds)
        return deadline.limit()

    def _remaining_seconds(self) -> float:
        return POLL_SECONDS if self._storage_deadline is None else self._storage_deadline.remaining()

    def _note_success(self) -> None:
        if self._journal.is_unavailable:
            self._note_failure()
        else:
            self._storage_deadline = None

    def _note_failure(self) -> None:
        if self._storage_deadline is None:
            self._storage_deadline = Deadline.after(self._storage_timeout_seconds)
        self._close_if_unavailable()

    def _close_if_unavailable(self) -> None:
        """Close all logs with waiting subscribers after the storage timeout."""
        if self._storage_deadline is None or not self._storage_deadline.is_over:
            return
        self._storage_deadline = None
        for tail in list(self._tails.values()):
            if tail.log.has_waiting_reader:
                tail.log.close(StorageUnavailable.code)

"""Reading a turn wherever it runs: here from its own log, elsewhere from a copy that is fed from the journal."""

import asyncio
from uuid import UUID

from gateway.agent.runner import Runner
from gateway.agent.turn_log import TurnLog
from gateway.domain.errors import StorageUnavailable, TurnNotKept
from gateway.domain.messages import BusMessage
from gateway.ports.store import Bus, TurnRepository

_LOOK_SECONDS = 1.0
EXPIRED = "journal_expired"


class Reading:
    """A log to follow. `close()` it when done."""

    def __init__(self, log: TurnLog, copy: "_Copy | None" = None) -> None:
        self.log = log
        self._copy = copy

    def close(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.leave()


class Following:
    """Any number of readers of a turn share its log, or one copy of it."""

    def __init__(self, runner: Runner, kept: TurnRepository, bus: Bus) -> None:
        self._runner = runner
        self._kept = kept
        self._bus = bus
        self._copies: dict[UUID, _Copy] = {}

    def open(self, turn_id: UUID, *, kept: bool = True) -> Reading:
        """A log of the turn, which must exist.

        Raises:
            TurnNotKept: it is not `kept`, and does not run here.
        """
        running = self._runner.get(turn_id)
        if running is not None and not (kept and running.log.closing):  # one that is being put down may go on elsewhere
            return Reading(running.log)
        if not kept:
            raise TurnNotKept
        copy = self._copies.get(turn_id)
        if copy is None:
            copy = self._copies[turn_id] = _Copy(turn_id, self._kept, self._bus, self._copies)
        copy.readers += 1
        return Reading(copy.log, copy)

    def heard(self, message: BusMessage) -> None:
        """There are new events of a turn."""
        if message.kind == "events" and (copy := self._copies.get(message.turn_id)) is not None:
            copy.news.set()

    async def stop(self) -> None:
        """Send every reader away."""
        copies = list(self._copies.values())
        for copy in copies:
            copy.log.close("server_stopping")
            copy.task.cancel()
        await asyncio.gather(*(copy.task for copy in copies), return_exceptions=True)


class _Copy:
    """A turn's log, fed from the journal while anybody reads it."""

    def __init__(self, turn_id: UUID, kept: TurnRepository, bus: Bus, among: "dict[UUID, _Copy]") -> None:
        self.log = TurnLog(turn_id)
        self.readers = 0
        self.news = asyncio.Event()
        self._kept = kept
        self._bus = bus
        self._among = among
        self.task = asyncio.create_task(self._feed(), name=f"copy {turn_id}")

    def leave(self) -> None:
        self.readers -= 1
        if not self.readers:
            self._among.pop(self.log.turn_id, None)
            self.task.cancel()

    async def _feed(self) -> None:
        while not self.log.ended:
            self.news.clear()
            try:
                if await self._read():
                    continue
            except StorageUnavailable:
                pass  # looked for again below, as when nothing new was there
            self._bus.publish(BusMessage("watch", self.log.turn_id))
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.news.wait()
            except TimeoutError:
                continue

    async def _read(self) -> bool:
        """Whether there was anything new. A turn that has ended without its end in the journal has lost its events."""
        turn_id = self.log.turn_id
        status = await self._kept.status(turn_id)
        entries = await self._kept.events(turn_id, self.log.last_seq)
        self.log.adopt(entries)
        if not entries and status not in ("running", "waiting"):
            self.log.close(EXPIRED)
        return bool(entries)

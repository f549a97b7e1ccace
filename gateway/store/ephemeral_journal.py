"""The journal of turns that are not stored."""

import asyncio
from uuid import UUID

import msgspec

from gateway.domain.errors import GatewayError
from gateway.domain.events import JournalEntry
from gateway.domain.messages import TurnOutcome, TurnRecord, TurnRequest
from gateway.ports.store import EventSource, Journal


class EphemeralJournal(Journal):
    """Journal of turns that must not be stored.

    Writes a row with statistics, and no events.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def is_unavailable(self) -> bool:
        return self._journal.is_unavailable

    @property
    def is_backlogged(self) -> bool:
        return False

    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin_turn`."""
        request = TurnRequest(
            messages=(),
            model=turn.request.model,
            parameters=turn.request.parameters,
            store=False,
            idempotency_key=turn.request.idempotency_key,
            parent_turn_id=turn.request.parent_turn_id,
        )
        await self._journal.begin_turn(
            msgspec.structs.replace(turn, request=request), _NullEventSource(turn.id, turn.epoch)
        )
        self.schedule_flush(log)

    def schedule_flush(self, log: EventSource) -> None:
        """See `Journal.schedule_flush`."""
        entries = log.take_unwritten()
        if entries:
            log.mark_committed(entries[-1].seq)

    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.flush`."""
        self.schedule_flush(log)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def finish_turn(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """See `Journal.finish_turn`."""
        statistics = msgspec.structs.replace(outcome, messages=(), response="")
        done = self._journal.finish_turn(_NullEventSource(log.turn_id, log.epoch), statistics)
        done.add_done_callback(lambda _: self.schedule_flush(log))
        return done

    def suspend_turn(self, log: EventSource) -> asyncio.Future[None]:
        """See `Journal.suspend_turn`.

        A turn that is not stored never waits for a person.
        """
        raise AssertionError

    async def wait_for_capacity(self) -> None:
        return


class _NullEventSource(EventSource):
    """A turn's log without entries to write."""

    attempts = 0

    def __init__(self, turn_id: UUID, epoch: int) -> None:
        self.turn_id = turn_id
        self.epoch = epoch

    def take_unwritten(self) -> list[JournalEntry]:
        return []

    def mark_committed(self, seq: int) -> None:
        pass

    def fail(self, error: GatewayError) -> None:
        pass  # the turn runs on with its worker

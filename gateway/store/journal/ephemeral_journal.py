"""The journal of turns that are not stored."""

import asyncio
from uuid import UUID

import msgspec

from gateway.domain.errors import GatewayError
from gateway.domain.messages import TurnOutcome, TurnRecord, TurnRequest
from gateway.ports.journal import EventSource, Journal
from gateway.store.journal.queue import NullEventSource


class EphemeralJournal(Journal):
    """Journal of turns that must not be stored.

    Writes a row with statistics, and no events.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def is_writing(self, turn_id: UUID) -> bool:
        return self._journal.is_writing(turn_id)

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
            webhook_url=turn.request.webhook_url,
        )
        await self._journal.begin_turn(
            msgspec.structs.replace(turn, request=request), NullEventSource(turn.id, turn.epoch)
        )
        self.schedule_flush(log)

    def schedule_flush(self, log: EventSource, *, at_once: bool = False) -> None:
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
        statistics = msgspec.structs.replace(outcome, messages=(), response="", prompt="")
        done = self._journal.finish_turn(NullEventSource(log.turn_id, log.epoch), statistics)
        done.add_done_callback(lambda stored: self._show_end(log, stored))
        return done

    def _show_end(self, log: EventSource, stored: asyncio.Future[None]) -> None:
        """Show the end of a turn whose row is stored.

        Otherwise its clients would see an end that the row lacks.
        """
        if not stored.cancelled() and isinstance(error := stored.exception(), GatewayError):
            log.fail(error)
        else:
            self.schedule_flush(log)

    def suspend_turn(self, log: EventSource, open_inputs: list[UUID]) -> asyncio.Future[None]:
        """See `Journal.suspend_turn`.

        A turn that is not stored never waits for a person.
        """
        raise AssertionError

    async def wait_for_capacity(self) -> None:
        return

"""Reads the stored events of a turn into a wire format."""

from collections.abc import Callable

from gateway.domain.events import Event
from gateway.store.models import Turn
from gateway.store.turns import TurnStore


async def fold_stored_events(turns: TurnStore, stored: Turn, write_event: Callable[[Event], object]) -> int:
    """Pass a turn's stored events on.

    Return the number of the last event of a turn that has not ended; a listener continues after it.
    """
    seq = 0
    if stored.completed_at is not None:
        async for event in turns.iterate_events(stored):
            write_event(event)
        return seq
    while entries := await turns.load_events(stored.id, seq):
        for entry in entries:
            write_event(entry.event)
        seq = entries[-1].seq
    return seq

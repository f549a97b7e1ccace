"""Checks of the state after a schedule."""

from gateway.domain import events as e
from gateway.domain.events import JournalEntry
from tests.turn_schedules.scripted import ENDS, Outside, TurnClient, assemble_text


def check_effects(outside: Outside) -> None:
    """Check that no effect took place twice, or without a lease.

    Calls of tools that may be repeated do not count.
    """
    assert not outside.late_calls, f"calls that started without a lease: {outside.late_calls}"
    doubled = {slot: count for slot, count in outside.effects.items() if count > 1}
    assert not doubled, f"effects that took place more than once: {doubled}"


def add_row(journal: list[JournalEntry], row: list[JournalEntry]) -> None:
    """Add the entries of a row to a journal.

    Rows overlap if a commit whose answer was lost is repeated in smaller parts; readers skip what they have. The same
    number must be the same event.
    """
    stored = {entry.seq: entry.event for entry in journal}
    for entry in row:
        if entry.seq not in stored:
            journal.append(entry)
        else:
            assert stored[entry.seq] == entry.event, f"number {entry.seq} is stored as two events"


def check_journal(journal: list[JournalEntry]) -> None:
    """Check that a turn has one end, as its last event."""
    numbers = [entry.seq for entry in journal]
    assert numbers == sorted(set(numbers)), f"numbers are stored twice or out of order: {numbers}"
    ends = [entry.seq for entry in journal if isinstance(entry.event, ENDS)]
    assert ends == numbers[-1:], f"the ends are {ends} of {numbers}"


def check_client(client: TurnClient, journal: list[JournalEntry], response: str) -> None:
    """Check the events of a client that has read to the end.

    They must be those that are stored.
    """
    stored = {entry.seq: entry.event for entry in journal}
    assert len(stored) == len(journal), "a number is stored twice"
    for entry in client.seen.entries:
        if not isinstance(entry.event, e.TextDelta):
            assert stored.get(entry.seq) == entry.event, f"shown, but not stored: {entry}"
    shown = assemble_text([entry.event for entry in client.seen.entries])
    assert shown == assemble_text([entry.event for entry in journal]), f"the client of turn {client.number} has {shown}"
    end = journal[-1].event
    if isinstance(end, e.TurnFailed) and end.error.code == "too_many_attempts" and end.saved == "prompt":
        assert response == "", "a turn that no worker could end has its prompt alone"
    else:
        last = next((shown[step] for step in sorted(shown, reverse=True) if shown[step]), "")
        assert last == response, f"turn {client.number} has shown {shown}, and stores {response!r}: {end}"

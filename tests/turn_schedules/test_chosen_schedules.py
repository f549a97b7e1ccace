"""Schedules that once broke a promise."""

from gateway.domain.events import ModelRetry, StepCompleted, TextDelta, TurnCompleted, TurnStarted
from tests.turn_schedules.database import ScheduleDatabase
from tests.turn_schedules.scripted import Script
from tests.turn_schedules.world import World


def test_follower_of_a_silent_turn_does_not_poll_without_a_pause(schedule_database: ScheduleDatabase) -> None:
    """The workers come to rest, else `settle` fails.

    The follower reads the turn from the journal, and its own worker takes the turn over.
    """
    world = World(schedule_database)
    try:
        first, second = world.start_worker(), world.start_worker()
        world.settle()
        client = world.start_turn(first, Script(steps=()))
        world.settle()
        world.reconnect(client, second)
        world.settle()
        world.kill(first)
        for _ in range(15):
            world.advance(1.0)
        world.let_proceed(1)
        world.advance(0.5)
        assert [type(entry.event) for entry in client.seen.entries] == [TurnStarted, ModelRetry, TextDelta]
        world.end_faults()
        world.check()
    finally:
        world.close()


def test_turn_whose_start_is_stored_without_an_answer_gets_an_end(schedule_database: ScheduleDatabase) -> None:
    """The client gets an error, and others find a failed turn."""
    world = World(schedule_database)
    try:
        worker = world.start_worker()
        world.settle()
        world.start_turn(worker, Script(steps=()))  # opens the connection whose answer is lost
        world.settle()
        world.lose_next_answers(worker)
        client = world.start_turn(worker, Script(steps=()))
        world.settle()
        world.cut_off(worker, is_silent=False)
        for _ in range(6):
            world.advance(1.0)
        assert client.error == "storage_unavailable"
        world.end_faults()
        world.check()
        assert [row["status"] for row in world.fetch("SELECT status FROM turns ORDER BY id")] == ["completed", "failed"]
    finally:
        world.close()


def test_end_that_a_cut_off_worker_writes_late_is_refused(schedule_database: ScheduleDatabase) -> None:
    """Another worker has claimed the turn before the write."""
    world = World(schedule_database)
    try:
        first, _second = world.start_worker(), world.start_worker()
        world.settle()
        client = world.start_turn(first, Script(steps=(), chunks=1))
        world.settle()
        world.cut_off(first, is_silent=False)
        for _ in range(2):
            world.let_proceed(0)
            world.settle()
        for _ in range(12):
            world.advance(1.0)
        world.heal()
        world.advance(2.0)
        assert not client.seen.has_end
        world.end_faults()
        world.check()
        assert [type(entry.event) for entry in client.seen.entries][-3:] == [TextDelta, StepCompleted, TurnCompleted]
    finally:
        world.close()

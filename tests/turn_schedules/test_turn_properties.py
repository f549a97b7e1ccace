"""Properties of turns under random faults.

A schedule is a list of faults and steps that hypothesis chooses.
"""

import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.turn_schedules.database import ScheduleDatabase
from tests.turn_schedules.scripted import TOOLS, Script
from tests.turn_schedules.world import SimulatedWorker, World

SCHEDULES = int(os.environ.get("TURN_SCHEDULES", "20"))
"""Number of schedules.

`make test-all` and `make schedules` run more than `make test`.
"""
STEPS = 12
MAX_WORKERS = 4
MAX_TURNS = 4
PARTS = ("", "", "turn.completed", "tool.call", ".1 ")
"""Texts of the rows that are refused."""
REFUSALS = ("25006", "42501", "53100", "55P03", "57014", "22P05", "23514", "42703")
SCRIPTS = st.builds(
    Script,
    steps=st.lists(st.lists(st.sampled_from(sorted(TOOLS)), min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
    chunks=st.integers(1, 3),
    is_stored=st.sampled_from([True, True, True, False]),
)
INDEX = st.integers(0, 9)
SECONDS = st.sampled_from([0.06, 0.5, 1.0, 2.5, 9.0, 12.0])
SCRIPT_LISTS = st.lists(SCRIPTS, min_size=1, max_size=2)


@dataclass(frozen=True)
class Proceed:
    """Let some of the waiting work proceed, then step the event loops.

    Each runs so many `iterations`; None: until all rest.
    """

    indexes: tuple[int, ...]
    iterations: int | None


@dataclass(frozen=True)
class Pass:
    """Let time pass."""

    seconds: float


ITERATIONS = st.one_of(st.none(), st.none(), st.integers(0, 25))
PROCEED = st.builds(Proceed, st.lists(INDEX, max_size=4).map(tuple), ITERATIONS)
PROGRESS = st.lists(st.one_of(PROCEED, PROCEED, PROCEED, st.builds(Pass, SECONDS)), max_size=4)
"""Progress after each fault."""


Progress = list[Proceed | Pass]


class TurnSchedule(RuleBasedStateMachine):
    """Drives workers through faults, then checks every promise.

    A rule that does not apply does nothing: what a schedule draws must not depend on the speed of Postgres.
    """

    database: ScheduleDatabase

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.database)

    @initialize(scripts=SCRIPT_LISTS, progress=PROGRESS)
    def start_two_workers(self, scripts: list[Script], progress: Progress) -> None:
        for _ in range(2):
            self.world.start_worker()
        self.world.settle()
        for index, script in enumerate(scripts):
            self.world.start_turn(self.world.workers[index % 2], script)
        self.go_on(progress)

    # --- what clients do

    @rule(index=INDEX, script=SCRIPTS, progress=PROGRESS)
    def start_turn(self, index: int, script: Script, progress: Progress) -> None:
        if self.serving and len(self.world.clients) < MAX_TURNS:
            self.world.start_turn(self.serving[index % len(self.serving)], script)
        self.go_on(progress)

    @rule(client=INDEX, index=INDEX, progress=PROGRESS)
    def reconnect(self, client: int, index: int, progress: Progress) -> None:
        clients = [client for client in self.world.clients if client.turn_id is not None and client.is_stored]
        if clients and self.serving:
            self.world.reconnect(clients[client % len(clients)], self.serving[index % len(self.serving)])
        self.go_on(progress)

    # --- what operators do

    @rule(progress=PROGRESS)
    def start_worker(self, progress: Progress) -> None:
        if len(self.world.workers) < MAX_WORKERS:
            self.world.start_worker()
        self.go_on(progress)

    @rule(index=INDEX, progress=PROGRESS)
    def stop_in_order(self, index: int, progress: Progress) -> None:
        if len(self.running) > 1:
            self.world.stop(self.pick(index))
        self.go_on(progress)

    # --- what fails

    @rule(index=INDEX, progress=PROGRESS)
    def kill(self, index: int, progress: Progress) -> None:
        if self.running:
            self.world.kill(self.pick(index))
        self.go_on(progress)

    @rule(index=INDEX, progress=PROGRESS)
    def freeze(self, index: int, progress: Progress) -> None:
        if self.running:
            self.world.freeze(self.pick(index))
        self.go_on(progress)

    @rule(progress=PROGRESS)
    def thaw(self, progress: Progress) -> None:
        self.world.thaw()
        self.go_on(progress)

    @rule(index=INDEX, is_silent=st.booleans(), progress=PROGRESS)
    def cut_off(self, index: int, is_silent: bool, progress: Progress) -> None:
        if self.running:
            self.world.cut_off(self.pick(index), is_silent=is_silent)
        self.go_on(progress)

    @rule(index=INDEX, fault=st.sampled_from(["cut", "silence", "freeze"]), before=PROGRESS, after=PROGRESS)
    def isolate_past_the_lease(self, index: int, fault: str, before: Progress, after: Progress) -> None:
        """Isolate a worker until another one has taken its turns over."""
        if self.running:
            worker = self.pick(index)
            if fault == "freeze":
                self.world.freeze(worker)
            else:
                self.world.cut_off(worker, is_silent=fault == "silence")
            self.go_on([*before, *[Pass(1.0)] * 11])
            self.world.thaw()
            self.world.heal()
        self.go_on(after)

    @rule(progress=PROGRESS)
    def heal(self, progress: Progress) -> None:
        self.world.heal()
        self.go_on(progress)

    @rule(index=INDEX, progress=PROGRESS)
    def lose_acknowledgements(self, index: int, progress: Progress) -> None:
        """Lose the next answers of Postgres."""
        if self.running:
            self.world.lose_next_answers(self.pick(index))
        self.go_on(progress)

    @rule(sqlstate=st.sampled_from(REFUSALS), part=st.sampled_from(PARTS), progress=PROGRESS)
    def refuse_writes(self, sqlstate: str, part: str, progress: Progress) -> None:
        self.world.refuse_writes(sqlstate, part)
        self.go_on(progress)

    @rule(progress=PROGRESS)
    def accept_writes(self, progress: Progress) -> None:
        self.world.accept_writes()
        self.go_on(progress)

    # --- helpers

    @property
    def running(self) -> list[SimulatedWorker]:
        return [worker for worker in self.world.workers if worker.is_running]

    @property
    def serving(self) -> list[SimulatedWorker]:
        return [worker for worker in self.world.workers if worker.is_serving]

    def pick(self, index: int) -> SimulatedWorker:
        return self.running[index % len(self.running)]

    def go_on(self, progress: Progress) -> None:
        try:
            for part in progress:
                self.apply(part)
        except BaseException as error:
            error.add_note("\n".join(self.world.history))
            raise

    def apply(self, part: Proceed | Pass) -> None:
        if isinstance(part, Pass):
            self.world.advance(part.seconds)
            return
        for index in part.indexes:
            self.world.let_proceed(index)
        if part.iterations is None:
            self.world.settle()
        else:
            self.world.run(part.iterations)

    def teardown(self) -> None:
        try:
            self.world.end_faults()
            self.world.check()
        except BaseException as error:
            error.add_note("\n".join(self.world.history))
            raise
        finally:
            self.world.close()


@pytest.mark.timeout(60 + 10 * SCHEDULES)
def test_no_schedule_of_faults_breaks_a_promise(schedule_database: ScheduleDatabase) -> None:
    machine = type("TurnScheduleOnDatabase", (TurnSchedule,), {"database": schedule_database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            print_blob=False,
            phases=(Phase.generate,),  # the steps of a failure are in its notes; shrinking would take minutes
            suppress_health_check=list(HealthCheck),
        ),
    )

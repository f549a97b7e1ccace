"""Workers that share a database, and the faults of a schedule.

The workers are the real ones, from the runner down to Postgres; only the model and the tools are scripted. Everything
runs in one thread: each worker has an event loop that the world steps, with a clock that only the world moves. The
database has the same clock.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import UUID

import asyncpg
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from gateway.agent import workers
from gateway.agent.code.offer import CodeOffer
from gateway.agent.service import TurnService
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.common import lease
from gateway.common.concurrency import TaskRegistry
from gateway.common.lease import WorkerLease
from gateway.common.load import LoadMonitor
from gateway.common.timeouts import Timeouts
from gateway.composition.agent import build_agent
from gateway.composition.model_server import Llm
from gateway.composition.storage import Store, build_store
from gateway.composition.tools import Tools
from gateway.domain.events import JournalEntry
from gateway.domain.messages import Message, TurnRequest
from gateway.llm.catalog import Catalog
from gateway.sandbox.program import MontySandbox, SandboxLimits
from gateway_runtime.postgres.url import plain_dsn
from tests.stack import _GatewaySettings
from tests.turn_schedules.checks import add_row, check_client, check_effects, check_journal
from tests.turn_schedules.clock import SteppedLoop, VirtualClock
from tests.turn_schedules.database import ScheduleDatabase
from tests.turn_schedules.postgres_gate import PostgresGate
from tests.turn_schedules.scripted import (
    Outside,
    Script,
    ScriptedModel,
    ScriptedToolbox,
    TurnClient,
    parse_payload,
)

T = TypeVar("T")
_MAX_ITERATIONS = 20_000
_MAX_TIMERS = 16
"""Number of timers at which a jump of the clock stops.

After the jump, all later ones are due at once.
"""
_ROUND_SECONDS = 2.0
_MAX_ROUNDS = 150
_TABLES = "turn_events, tool_calls, turns, turn_usage, workers"


class SimulatedWorker:
    """A gateway worker in a loop of its own, without HTTP."""

    def __init__(self, number: int, world: "World") -> None:
        self.number = number
        self.loop = SteppedLoop(world.clock)
        self.gate = PostgresGate(world.database.sockets / ".s.PGSQL.5432")
        self.is_frozen = False
        self.is_killed = False
        self.is_stopping = False
        self.service: TurnService | None = None
        self.worker_id = uuid7()
        self._world = world
        self._stop = asyncio.Event()
        self.main: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its loop is stepped."""
        return not (self.is_frozen or self.is_killed or self.has_stopped)

    @property
    def is_serving(self) -> bool:
        return self.is_running and self.service is not None and not self.service.is_stopping

    @property
    def has_stopped(self) -> bool:
        return self.main is not None and self.main.done()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        return self.loop.create_task(coroutine)

    def start(self) -> None:
        self.main = self.spawn(self._serve())

    def stop(self) -> None:
        """Stop in order, as after SIGTERM."""
        self.is_stopping = True
        self.loop.call_soon(self._stop.set)

    async def _serve(self) -> None:
        world, database = self._world, self._world.database
        settings = _GatewaySettings(
            database_url=f"postgresql+asyncpg://postgres@127.0.0.1:{self.gate.port}/{database.name}?sslmode=disable",
            groq_api_key=SecretStr("scripted"),
            database_pool_size=3,
            database_lock_timeout_seconds=1.0,
            agent_timeout=100_000.0,
        )
        tasks, timeouts = TaskRegistry(), Timeouts(journal=5.0)
        async with AsyncExitStack() as stack:
            store: Store = await stack.enter_async_context(build_store(settings, timeouts, self.worker_id, tasks))
            worker_lease = WorkerLease()
            toolbox: Any = ScriptedToolbox(world.outside, worker_lease)
            model: Any = ScriptedModel(world.outside, worker_lease)
            self.service = await stack.enter_async_context(
                build_agent(
                    settings,
                    timeouts,
                    self.worker_id,
                    store,
                    Llm(model, Catalog(), tokenizer=None, api=None, limiter=None),  # type: ignore[arg-type]
                    Tools(
                        toolbox,
                        toolbox,
                        toolbox,
                        registry=None,
                        toolsets=None,
                        definitions=None,
                        code=CodeOffer(MontySandbox(SandboxLimits())),
                    ),  # type: ignore[arg-type]
                    worker_lease,
                    tasks,
                    LoadMonitor(max_lag_seconds=None, max_memory_bytes=None),
                    RateLimiter(settings),
                )
            )
            await self._stop.wait()
            await self.service.stop(grace_seconds=0.0)


class World:
    """The workers, clients and faults of one schedule."""

    def __init__(self, database: ScheduleDatabase) -> None:
        self.database = database
        self.clock = VirtualClock()
        self.outside = Outside()
        self.workers: list[SimulatedWorker] = []
        self.clients: list[TurnClient] = []
        self.history: list[str] = []
        self._patches = ExitStack()
        for module in (lease, workers):
            self._patches.enter_context(patch.object(module, "read_clock", self.clock.read))
        self._started_at = time.time() - self.clock.now
        self._loop = SteppedLoop(self.clock)
        self._admin = self._run_outside(
            lambda: asyncpg.connect(plain_dsn(database.url), server_settings={"statement_timeout": "30000"})
        )
        self.execute(f"TRUNCATE {_TABLES} CASCADE; TRUNCATE clock.refusal")
        self._set_database_clock()

    def _log(self, step: str) -> None:
        self.history.append(step)

    # --- the database, as an administrator sees it

    def execute(self, statement: str, *values: object) -> None:
        self._run_outside(lambda: self._admin.execute(statement, *values))

    def fetch(self, statement: str, *values: object) -> list[asyncpg.Record]:
        return self._run_outside(lambda: self._admin.fetch(statement, *values))

    def refuse_writes(self, sqlstate: str, part: str = "") -> None:
        """Let Postgres refuse the writes of rows that contain a text."""
        self._log(f"refuse writes with {sqlstate}: {part!r}")
        self.execute("INSERT INTO clock.refusal VALUES ($1, $2)", sqlstate, part)

    def accept_writes(self) -> None:
        self._log("accept writes")
        self.execute("DELETE FROM clock.refusal")

    # --- workers and clients

    def start_worker(self) -> SimulatedWorker:
        worker = SimulatedWorker(len(self.workers), self)
        self._run_outside(worker.gate.start)
        self.workers.append(worker)
        self._log(f"start worker {worker.number}")
        worker.start()
        return worker

    def kill(self, worker: SimulatedWorker) -> None:
        """End a worker without cleanup. What it has sent arrives."""
        self._log(f"kill worker {worker.number}")
        worker.is_killed = True
        worker.gate.abort_connections()

    def freeze(self, worker: SimulatedWorker) -> None:
        self._log(f"freeze worker {worker.number}")
        worker.is_frozen = True

    def thaw(self) -> None:
        self._log("thaw")
        for worker in self.workers:
            worker.is_frozen = False

    def cut_off(self, worker: SimulatedWorker, *, is_silent: bool) -> None:
        self._log(f"{'silence' if is_silent else 'cut'} the database of worker {worker.number}")
        if is_silent:
            worker.gate.silence()
        else:
            worker.gate.cut()

    def heal(self) -> None:
        self._log("heal")
        for worker in self.workers:
            worker.gate.open()

    def lose_next_answers(self, worker: SimulatedWorker) -> None:
        self._log(f"lose the next answers to worker {worker.number}")
        worker.gate.lose_next_answers()

    def stop(self, worker: SimulatedWorker) -> None:
        self._log(f"stop worker {worker.number}")
        worker.stop()

    def let_proceed(self, index: int) -> None:
        if (name := self.outside.let_proceed(index)) is not None:
            self._log(name)

    def start_turn(self, worker: SimulatedWorker, script: Script) -> TurnClient:
        assert worker.service is not None
        number = len(self.clients)
        self.outside.scripts.append(script)
        self._log(f"start turn {number} at worker {worker.number}: {script}")
        client = TurnClient(number, is_stored=script.is_stored)
        self.clients.append(client)
        request = TurnRequest(
            messages=(Message(role="user", content=str(number)),),
            on_disconnect="continue",
            store=script.is_stored,
        )
        client.reading = worker.spawn(client.start(worker.service, request))
        return client

    def reconnect(self, client: TurnClient, worker: SimulatedWorker) -> None:
        """Let a client read its turn at a worker.

        Its old connection, if any, is gone.
        """
        assert worker.service is not None
        self._log(f"read turn {client.number} at worker {worker.number} after {client.seen.last_seq}")
        if client.reading is not None:
            client.reading.cancel()
        client.closed_for = None
        client.seen = client.seen.copy()  # an old connection may still be about to write
        client.reading = worker.spawn(client.reconnect(worker.service))

    # --- time

    def run(self, iterations: int) -> None:
        """Step every running worker, at most so often."""
        self._log(f"run {iterations} iterations")
        for _ in range(iterations):
            if not self._step():
                return

    def settle(self) -> None:
        """Step every running worker until all of them wait."""
        for _ in range(_MAX_ITERATIONS):
            if not self._step():
                self._check_clients()
                return
        raise AssertionError(f"the workers do not come to rest: {self._describe_work()}")

    def advance(self, seconds: float) -> None:
        """Let time pass, for the workers and the database."""
        self._log(f"advance by {seconds} s")
        self.settle()
        end = self.clock.now + seconds
        for _ in range(_MAX_TIMERS):
            timers = [worker.loop.next_timer() for worker in self.workers if worker.is_running]
            due_at = min((timer for timer in timers if timer is not None), default=end)
            if due_at >= end:
                break
            self._set_clock(max(due_at, self.clock.now))
        self._set_clock(end)

    def _set_clock(self, now: float) -> None:
        self.clock.now = now
        self._set_database_clock()
        self.settle()

    def _set_database_clock(self) -> None:
        self.execute("UPDATE clock.clock SET at = to_timestamp($1)", self._started_at + self.clock.now)

    def _step(self) -> bool:
        """Step every running worker, within a number of iterations."""
        worked = False
        for loop in self._list_loops():
            if loop.has_work:
                loop.run_one_iteration()
                worked = True
        if worked:
            return True
        unanswered = sum(worker.gate.unanswered for worker in self.workers if worker.is_running)
        return bool(unanswered) and self._loop.wait_for_socket()

    def _describe_work(self) -> list[str]:
        return [work for loop in self._list_loops() for work in loop.list_ready()]

    def _list_loops(self) -> Iterator[SteppedLoop]:
        yield self._loop
        yield from [worker.loop for worker in self.workers if worker.is_running]

    def _run_outside(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something that belongs to no worker."""

        async def run() -> T:
            return await work()

        return self._loop.run_until_complete(run())

    def _check_clients(self) -> None:
        for client in self.clients:
            if client.reading is not None and client.reading.done() and not client.reading.cancelled():
                client.reading.result()
        for worker in self.workers:
            if worker.main is not None and worker.main.done() and not worker.main.cancelled():
                worker.main.result()

    # --- the end

    def end_faults(self) -> None:
        """End every fault, and wait until every turn has ended."""
        self._log("end all faults")
        self.outside.is_automatic = True
        self.accept_writes()
        self.heal()
        self.thaw()
        if not any(worker.is_running and not worker.is_stopping for worker in self.workers):
            self.start_worker()
        for _ in range(_MAX_ROUNDS):
            while self.outside.waiting:
                self.let_proceed(0)
            self.advance(_ROUND_SECONDS)
            self._reconnect_clients()
            if self._is_over():
                return
        raise AssertionError(f"turns or clients did not end: {self._describe_unfinished()}")

    def _reconnect_clients(self) -> None:
        serving = [worker for worker in self.workers if worker.is_serving]
        for client in self.clients:
            if client.turn_id is None or client.seen.has_end or not client.is_stored or not serving:
                continue
            if not client.is_reading or not self._is_served(client):
                self.reconnect(client, serving[client.number % len(serving)])

    def _is_served(self, client: TurnClient) -> bool:
        assert client.reading is not None
        return any(worker.is_running for worker in self.workers if worker.loop is client.reading.get_loop())

    def _is_over(self) -> bool:
        if self.fetch("SELECT FROM turns WHERE status IN ('running', 'waiting')"):
            return False
        return all(client.seen.has_end for client in self.clients if client.turn_id is not None and client.is_stored)

    def _describe_unfinished(self) -> str:
        rows = self.fetch("SELECT id, status, worker_id, epoch, attempts FROM turns WHERE completed_at IS NULL")
        clients = [(c.number, c.turn_id, c.closed_for, c.is_reading) for c in self.clients if not c.seen.has_end]
        return f"turns {[tuple(row) for row in rows]}, clients {clients}"

    def check(self) -> None:
        """Check what must hold after every schedule."""
        check_effects(self.outside)
        rows = self.fetch("SELECT turn_id, first_seq, payload FROM turn_events ORDER BY turn_id, first_seq")
        journals: dict[UUID, list[JournalEntry]] = {}
        for row in rows:
            add_row(journals.setdefault(row["turn_id"], []), parse_payload(row["first_seq"], row["payload"]))
        turns = self.fetch("SELECT id, response FROM turns WHERE options->>'store' IS DISTINCT FROM 'false'")
        responses = {row["id"]: str(row["response"] or "") for row in turns}
        for turn_id in responses:
            check_journal(journals[turn_id])
        for client in self.clients:
            if client.turn_id is not None and client.is_stored:
                check_client(client, journals[client.turn_id], responses[client.turn_id])

    def close(self) -> None:
        """Cancel everything that is left, also of killed workers."""
        self.outside.is_automatic = True
        for worker in self.workers:
            worker.gate.stop()
        for loop in [worker.loop for worker in self.workers]:
            _drain(loop, self.clock)
        self._run_outside(lambda: self._admin.close(timeout=10))
        _drain(self._loop, self.clock)
        self._patches.close()


def _drain(loop: SteppedLoop, clock: VirtualClock) -> None:
    for _ in range(1_000):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        for _ in range(20):
            loop.run_one_iteration()
        clock.now += 1.0
    loop.close()

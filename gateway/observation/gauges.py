"""Figures that are read every few seconds: queues, connections, states, tasks."""

import asyncio
import platform
from collections import Counter
from dataclasses import dataclass

from sqlalchemy.pool import QueuePool

from gateway import __version__
from gateway.agent.service import TurnService
from gateway.api.mcp.endpoint import McpEndpoint
from gateway.common.concurrency import SupervisedTask, TaskRegistry
from gateway.common.load import LoadMonitor
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.observation import families as f
from gateway.observation.model import ObservedModel
from gateway.observation.storage import ObservedJournal
from gateway.ports.observer import Observer
from gateway.ports.tools import Toolbox
from gateway.store.database import Database

log = get_logger(__name__)

INTERVAL_SECONDS = 2.0
_SLOW_INTERVALS = 8
"""Pauses between two reads of the database."""
_WAITING_TURNS = "SELECT count(DISTINCT turn_id) FROM turn_inputs WHERE answer IS NULL"


@dataclass(frozen=True)
class GaugeSources:
    """The parts of the gateway that are read."""

    turn_service: TurnService
    mcp: McpEndpoint
    toolbox: Toolbox
    model: ObservedModel
    limiter: ModelRateLimiter
    journal: ObservedJournal
    database: Database
    tasks: TaskRegistry
    load: LoadMonitor


class GaugeReader:
    """Sets the gauges of this worker.

    It does so in the background, and before each scrape.
    """

    def __init__(self, observer: Observer, sources: GaugeSources, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._observer = observer
        self._sources = sources
        self._interval_seconds = interval_seconds
        self._servers: set[tuple[str, str]] = set()
        self._restarts: Counter[str] = Counter()
        self.task = SupervisedTask("metrics", self._read_forever)

    async def _read_forever(self) -> None:
        while True:
            try:
                rows = await self._sources.database.fetch_rows(_WAITING_TURNS)
                self._observer.set_gauge(f.WAITING_TURNS, rows[0][0])
            except GatewayError as error:
                log.debug("waiting_turns_not_counted", code=error.code)
            for _ in range(_SLOW_INTERVALS):
                self.read()
                await asyncio.sleep(self._interval_seconds)

    def read(self) -> None:
        """Set all gauges that need no waiting."""
        observer, sources = self._observer, self._sources
        observer.set_gauge(f.BUILD, 1, __version__, platform.python_version())
        observer.set_gauge(f.WORKERS, 1)
        observer.set_gauge(f.RUNNING_TURNS, sources.turn_service.running_turns)
        observer.set_gauge(f.MCP_SESSIONS, sources.mcp.session_count)
        observer.set_gauge(f.MODEL_QUEUE, sources.limiter.waiting_count)
        writes, lag = sources.journal.measure_queue()
        observer.set_gauge(f.JOURNAL_WRITES, writes)
        observer.set_gauge(f.JOURNAL_LAG, lag)
        observer.set_gauge(f.LOOP_LAG, sources.load.take_highest_lag())
        observer.set_gauge(f.MEMORY, sources.load.memory_bytes or 0)
        observer.set_gauge(f.SHEDDING, sources.load.overload_reason is not None)
        for model, is_open in sources.model.list_open_circuits().items():
            observer.set_gauge(f.MODEL_CIRCUITS, is_open, model)
        self._read_pool()
        self._read_servers()
        self._read_tasks()

    def _read_pool(self) -> None:
        pool = self._sources.database.engine.pool
        if isinstance(pool, QueuePool):
            used = pool.checkedout()
            self._observer.set_gauge(f.CONNECTIONS, used, "used")
            self._observer.set_gauge(f.CONNECTIONS, pool.checkedin(), "idle")
            self._observer.set_gauge(f.CONNECTION_LIMIT, self._sources.database.max_connections)

    def _read_servers(self) -> None:
        current = {(status.name, status.state) for status in self._sources.toolbox.list_server_statuses()}
        for name, state in self._servers | current:
            self._observer.set_gauge(f.MCP_SERVERS, (name, state) in current, name, state)
        self._servers = current

    def _read_tasks(self) -> None:
        restarts: Counter[str] = Counter()
        down: Counter[str] = Counter()
        for task in self._sources.tasks:
            restarts[task.name] += task.restarts
            down[task.name] += task.is_down
        for name in restarts:
            self._observer.set_gauge(f.TASKS_DOWN, down[name], name)
            self._observer.increase_counter(f.TASK_RESTARTS, max(0, restarts[name] - self._restarts[name]), name)
        self._restarts = restarts

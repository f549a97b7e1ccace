"""Kill and freeze workers, and record how their turns continue.

The upstream of these turns runs in this process and records when the model is called. The tool leaves a line in a file
for each of its runs. So effects are counted without asking the engines.
"""

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from benchmarks.engine_servers import DbosWorker, GatewayOnDatabase
from benchmarks.processes import find_free_port
from benchmarks.session import print_line
from benchmarks.subjects import SharedServers, Subject, build_post_request
from benchmarks.upstream import TOKEN_MARK, UpstreamProtocol, build_prompt
from gateway_runtime.embedded_postgres import EmbeddedPostgres

_PROMPT = build_prompt(100, 20, tool=True)
_TOOL_SECONDS = 1.5
_TOKENS_BEFORE_FAULT = 20
_OBSERVE_SECONDS = 4.0
"""Time to observe a thawed worker.

It is longer than the rest of its turn.
"""
_TIMEOUT_SECONDS = 60.0
_SNAPSHOT_SQL = {
    "gateway": """
SELECT md5(coalesce(string_agg(row, ';' ORDER BY row), '')) FROM (
SELECT t::text AS row FROM turns t UNION ALL SELECT c::text FROM tool_calls c
UNION ALL SELECT e::text FROM turn_events e) AS rows""",
    "dbos": """
SELECT md5(coalesce(string_agg(row, ';' ORDER BY row), '')) FROM (
SELECT w::text AS row FROM dbos.workflow_status w UNION ALL SELECT o::text FROM dbos.operation_outputs o
UNION ALL SELECT s::text FROM dbos.streams s) AS rows""",
}
_OPEN_TURNS_SQL = {
    "gateway": "SELECT count(*) FROM turns WHERE status IN ('running', 'waiting')",
    "dbos": "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('PENDING', 'ENQUEUED')",
}


@dataclass(frozen=True)
class Fault:
    """A fault of the first worker, and who takes over.

    `moment`: during the `tool` call or the final `answer`. `recovery`: `lease` (others notice by themselves), `told`
    (another worker is told at once), `restart` (the worker is started again at once), `supervisor` (it starts a new
    worker beside a running one).
    """

    engine: str
    moment: str
    signal: signal.Signals
    recovery: str

    @property
    def name(self) -> str:
        action = "killed" if self.signal is signal.SIGKILL else "frozen"
        return f"{self.engine}, {action} during the {self.moment}, {self.recovery}"


FAULTS = (
    Fault("gateway", "answer", signal.SIGKILL, "supervisor"),
    Fault("gateway", "answer", signal.SIGKILL, "lease"),
    Fault("gateway", "tool", signal.SIGKILL, "lease"),
    Fault("gateway", "answer", signal.SIGSTOP, "lease"),
    Fault("gateway", "tool", signal.SIGSTOP, "lease"),
    Fault("dbos", "answer", signal.SIGKILL, "restart"),
    Fault("dbos", "answer", signal.SIGKILL, "told"),
    Fault("dbos", "tool", signal.SIGKILL, "told"),
    Fault("dbos", "answer", signal.SIGSTOP, "told"),
    Fault("dbos", "tool", signal.SIGSTOP, "told"),
)


@dataclass
class Observations:
    """Consequences of a fault. Times are in seconds since the fault."""

    recovery_seconds: float
    end_seconds: float
    effects: int
    """Runs of the tool, in a turn that asks for one."""
    stream_tokens: int
    """Tokens that a later reader gets, without discarded ones.

    The answer has 100.
    """
    model_calls_after_thaw: int = 0
    effects_after_thaw: int = 0
    rows_changed_after_thaw: bool = False
    tokens_shown_after_thaw: int = 0


class _RecordingUpstream(UpstreamProtocol):
    """The mock upstream, which records when it was called."""

    def __init__(self, call_times: list[float]) -> None:
        super().__init__()
        self._call_times = call_times

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST "):
            self._call_times.append(time.monotonic())
        super().data_received(data)


class _TurnClient:
    """Client that counts the tokens of one turn and never gives up."""

    def __init__(self) -> None:
        self.tokens = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, port: int, request: bytes) -> None:
        self._task = asyncio.create_task(self._read(port, request))

    async def _read(self, port: int, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(request)
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    self.tokens += data.count(TOKEN_MARK)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class EffectServer(Subject):
    name = "effects"

    @property
    def effects_file(self) -> Path:
        return self.shared.directory / "effects"

    def get_command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "benchmarks.effect_server", "--port", str(self.port)),
            *("--effects", str(self.effects_file), "--seconds", str(_TOOL_SECONDS)),
        ]

    def list_effect_times(self) -> list[float]:
        return [float(line) for line in self.effects_file.read_text().split()] if self.effects_file.exists() else []


@dataclass
class FaultRun:
    """Run of a turn with a fault, on two fresh workers."""

    fault: Fault
    shared: SharedServers
    postgres: EmbeddedPostgres
    effects: EffectServer
    model_call_times: list[float]
    database: asyncpg.Connection | None = None
    servers: list[Subject] = field(default_factory=list)

    async def run(self) -> Observations:
        self.effects.effects_file.unlink(missing_ok=True)
        client = _TurnClient()
        try:
            first = await self._start_servers()
            client.start(first.port, first.build_request(_PROMPT, tools=True))
            await self._wait_for_moment(client)
            pid = await self._find_victim(first)
            fault_at = time.monotonic()
            os.kill(pid, self.fault.signal)
            await self._request_recovery(first)
            recovery = await self._wait_for_next_call(fault_at) - fault_at
            await _wait_until(self._has_ended)
            seconds = time.monotonic() - fault_at
            effects = len(self.effects.list_effect_times())
            result = Observations(recovery, seconds, effects, await self._count_stream_tokens())
            if self.fault.signal is signal.SIGSTOP:
                await self._observe_thaw(pid, client, result)
            return result
        finally:
            await client.stop()
            for server in self.servers:
                server.stop()
            if self.database is not None:
                await self.database.close()

    async def _start_servers(self) -> Subject:
        """Start the first worker and, if needed, a second one."""
        number = time.monotonic_ns()
        server_class = GatewayOnDatabase if self.fault.engine == "gateway" else DbosWorker
        self.servers = [server_class(self.shared, self.postgres, f"{self.fault.engine}-{number}-{n}") for n in (1, 2)]
        if self.fault.recovery in ("restart", "supervisor"):
            self.servers.pop()
        first = self.servers[0]
        if isinstance(first, GatewayOnDatabase) and self.fault.recovery == "supervisor":
            first.worker_count = 2
        for server in self.servers:
            await server.start()
        assert isinstance(first, GatewayOnDatabase | DbosWorker)
        self.database = await asyncpg.connect(first.database_url)
        return first

    async def _wait_for_moment(self, client: _TurnClient) -> None:
        async def is_reached() -> bool:
            if self.fault.moment == "tool":
                return bool(self.effects.list_effect_times())
            return client.tokens >= _TOKENS_BEFORE_FAULT

        await _wait_until(is_reached)

    async def _find_victim(self, first: Subject) -> int:
        """Return the process that runs the turn."""
        assert first.process is not None
        if self.fault.recovery != "supervisor":
            return first.process.pid
        assert self.database is not None
        return await self.database.fetchval(
            "SELECT pid FROM workers JOIN turns ON worker_id = workers.id WHERE status = 'running'"
        )

    async def _request_recovery(self, first: Subject) -> None:
        if self.fault.recovery == "told":
            await _post(self.servers[1].port, "/recover", [first.name])
        elif self.fault.recovery == "restart":
            first.stop()
            await first.start()

    async def _wait_for_next_call(self, fault_at: float) -> float:
        """Return the time of the first call after the fault."""

        def list_calls() -> list[float]:
            times = self.model_call_times + self.effects.list_effect_times()
            return sorted(call_time for call_time in times if call_time > fault_at)

        async def has_call() -> bool:
            return bool(list_calls())

        await _wait_until(has_call)
        return list_calls()[0]

    async def _has_ended(self) -> bool:
        assert self.database is not None
        return await self.database.fetchval(_OPEN_TURNS_SQL[self.fault.engine]) == 0

    async def _count_stream_tokens(self) -> int:
        assert self.database is not None
        if self.fault.engine == "gateway":
            response = await self.database.fetchval("SELECT response FROM turns ORDER BY id DESC LIMIT 1")
            return response.count(TOKEN_MARK.decode())
        turn_id = await self.database.fetchval(
            "SELECT workflow_uuid FROM dbos.workflow_status ORDER BY created_at DESC LIMIT 1"
        )
        return (await _post(self.servers[-1].port, "/read", turn_id)).count(TOKEN_MARK)

    async def _observe_thaw(self, pid: int, client: _TurnClient, result: Observations) -> None:
        assert self.database is not None
        before = await self.database.fetchval(_SNAPSHOT_SQL[self.fault.engine])
        calls, tokens = len(self.model_call_times), client.tokens
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(_OBSERVE_SECONDS)
        after = await self.database.fetchval(_SNAPSHOT_SQL[self.fault.engine])
        result.rows_changed_after_thaw = before != after
        result.model_calls_after_thaw = len(self.model_call_times) - calls
        result.effects_after_thaw = len(self.effects.list_effect_times()) - result.effects
        result.tokens_shown_after_thaw = client.tokens - tokens


async def _wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        while not await condition():  # noqa: ASYNC110 - files, databases and other processes send no events
            await asyncio.sleep(0.02)


async def _post(port: int, path: str, body: object) -> bytes:
    """Send a request on a new connection, and return the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(build_post_request(path, body, {"Connection": "close"}))
        answer = await reader.read()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"{path} was refused: {answer[:200].decode()}")
    return answer


async def measure_faults(directory: Path, postgres: EmbeddedPostgres, rounds: int, text: str) -> None:
    """Print a Markdown table of the faults whose names contain `text`."""
    async with _start_shared(directory) as (shared, effects, call_times):
        results: dict[str, list[Observations]] = {}
        for _ in range(rounds):
            for fault in (fault for fault in FAULTS if text in fault.name):
                result = await FaultRun(fault, shared, postgres, effects, call_times).run()
                results.setdefault(fault.name, []).append(result)
                print_line(f"{fault.name}: {result}")
    columns = (
        "fault",
        "next call after s",
        "end after s",
        "tool runs",
        "tokens for readers",
        "after the thaw: calls, rows changed, tokens",
    )
    print_line(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, runs in results.items():
        cells = [_format_values([getattr(run, key) for run in runs]) for key in ("recovery_seconds", "end_seconds")]
        cells += [", ".join(str(getattr(run, key)) for run in runs) for key in ("effects", "stream_tokens")]
        thaw = "; ".join(
            f"{run.model_calls_after_thaw}+{run.effects_after_thaw}, {run.rows_changed_after_thaw}, "
            f"{run.tokens_shown_after_thaw}"
            for run in runs
        )
        print_line(f"| {name} | {' | '.join(cells)} | {thaw if 'frozen' in name else ''} |")


def _format_values(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


@contextlib.asynccontextmanager
async def _start_shared(directory: Path) -> AsyncGenerator[tuple[SharedServers, EffectServer, list[float]]]:
    call_times: list[float] = []
    upstream_port = find_free_port()
    loop = asyncio.get_running_loop()
    upstream = await loop.create_server(lambda: _RecordingUpstream(call_times), "127.0.0.1", upstream_port)
    effects = EffectServer(SharedServers(directory, "", ""))
    try:
        await effects.start()
        tools_url = f"http://127.0.0.1:{effects.port}/mcp"
        yield SharedServers(directory, f"http://127.0.0.1:{upstream_port}", tools_url), effects, call_times
    finally:
        effects.stop()
        upstream.close()

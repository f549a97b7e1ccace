"""Gateway workers, model simulator, tool server and Postgres, as processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg

from gateway_runtime import embedded_postgres
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from gateway_runtime.postgres.url import list_hosts, plain_dsn
from tests.chaos.effects import IMMORTAL
from tests.chaos.proxy import DatabaseProxy
from tests.e2e.running_stack import ROOT, clean_environment, gateway_command
from tests.eventually import eventually
from tests.stack import find_free_port

ROLE = "gateway"
_START_SECONDS = 90.0
_RESTART_SECONDS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POSTGRES_SETTINGS = {
    "fsync": "off",
    "max_wal_size": "48MB",
    "min_wal_size": "32MB",
    "shared_buffers": "32MB",
    "wal_keep_size": "0",
}


class ChaosProcess:
    """A process that is started again whenever it has ended."""

    def __init__(self, name: str, argv: list[str], url: str, output: Path, **settings: str) -> None:
        self.name = name
        self.url = url
        self.starts = 0
        self.warm_bytes: int | None = None
        self.samples: list[int] = []
        """Resident memory since `warm_bytes`, by the minute."""
        self._argv = argv
        self._settings = settings
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        keeper = asyncio.create_task(self._keep_running())
        try:
            yield
        finally:
            keeper.cancel()
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def measure_bytes(self) -> int | None:
        """Return the resident memory; None if the process does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    async def _keep_running(self) -> None:
        with self._output.open("ab") as output:
            while True:
                if self._process is None or self._process.poll() is not None:
                    self.starts += 1
                    self.warm_bytes = None
                    self.samples = []
                    environment = clean_environment(**self._settings)
                    self._process = subprocess.Popen(
                        self._argv, cwd=ROOT, env=environment, stdout=output, stderr=output
                    )
                await asyncio.sleep(_RESTART_SECONDS)


class ChaosStack:
    """All processes, and the parts of them that faults meet."""

    def __init__(self, directory: Path, session: aiohttp.ClientSession) -> None:
        self.directory = directory
        self.session = session
        self.postgres: EmbeddedPostgres
        self.proxies: list[DatabaseProxy] = []
        self.workers: list[ChaosProcess] = []
        self.tools: ChaosProcess
        self.effects_file = directory / "effects"
        self._simulator: ChaosProcess

    @asynccontextmanager
    async def run(self, workers: int) -> AsyncGenerator[None]:
        data_dir = self.directory / "database"
        data_dir.mkdir()
        data_dir.chmod(0o755)
        self.postgres = embedded_postgres.start_or_attach(data_dir, settings=_POSTGRES_SETTINGS)
        try:
            await self.execute(
                f"CREATE ROLE {ROLE} LOGIN",
                f"GRANT USAGE, CREATE ON SCHEMA public TO {ROLE}",
                f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}",
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
            )
            async with AsyncExitStack() as stack:
                self._create_peers()
                for number in range(workers):
                    await self._create_worker(number, stack)
                for process in (self._simulator, self.tools, *self.workers):
                    await stack.enter_async_context(process.run())
                for process in self.workers:
                    await self.wait_until_ready(process)
                yield
        finally:
            self.postgres.stop_if_started_here()

    def _create_peers(self) -> None:
        port, tools_port = find_free_port(), find_free_port()
        argv = [sys.executable, "-m", "gateway.simulator", "--port", str(port), "--tokens-per-second", "60"]
        self._simulator = ChaosProcess("simulator", argv, f"http://127.0.0.1:{port}", self.directory / "simulator.log")
        argv = [sys.executable, "-m", "tests.chaos.effects", str(tools_port), str(self.effects_file)]
        url = f"http://127.0.0.1:{tools_port}/mcp"
        self.tools = ChaosProcess("tools", argv, url, self.directory / "tools.log", PYTHONPATH=str(ROOT))

    async def _create_worker(self, number: int, stack: AsyncExitStack) -> None:
        [(sockets, _)] = list_hosts(self.postgres.build_url())
        proxy = DatabaseProxy(Path(sockets) / ".s.PGSQL.5432")
        await stack.enter_async_context(proxy.serve())
        self.proxies.append(proxy)
        port = find_free_port()
        settings = {
            "GATEWAY_PORT": str(port),
            "DATABASE_URL": f"postgresql+asyncpg://{ROLE}@127.0.0.1:{proxy.port}/{embedded_postgres.DATABASE_NAME}",
            "DATABASE_POOL_SIZE": "4",
            "GROQ_API_KEY": "simulated",
            "GROQ_BASE_URL": self._simulator.url,
            "MCP_SERVER_URL": self.tools.url,
            "RATE_LIMIT_ENABLED": "false",
            "HEARTBEAT_SECONDS": "1",
            "HEARTBEAT_TIMEOUT_SECONDS": "5",
            "LOG_LEVEL": "WARNING",
        }
        if number == 0:
            settings[IMMORTAL] = "1"
        log = self.directory / f"worker{number}.log"
        url = f"http://127.0.0.1:{port}"
        self.workers.append(ChaosProcess(f"worker {number}", gateway_command("serve"), url, log, **settings))

    async def wait_until_ready(self, worker: ChaosProcess) -> None:
        await eventually(lambda: self.is_ready(worker), timeout_seconds=_START_SECONDS)

    async def is_ready(self, worker: ChaosProcess) -> bool:
        try:
            async with self.session.get(f"{worker.url}/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def execute(self, *statements: str) -> None:
        """Execute statements as the administrator, also while the database is read-only."""
        connection = await asyncio.wait_for(self.connect(), 10)
        try:
            for statement in statements:
                await connection.execute(statement, timeout=20)
        finally:
            connection.terminate()

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(
            plain_dsn(self.postgres.build_url()),
            server_settings={"default_transaction_read_only": "off"},
            timeout=10,
        )

    async def start_postgres(self) -> None:
        """Start Postgres if it does not run, until it does."""

        def start() -> bool:
            try:
                self.postgres.ensure_running()
            except embedded_postgres.EmbeddedPostgresError:
                return False
            return True

        while not await asyncio.to_thread(start):
            await asyncio.sleep(_RESTART_SECONDS)

    def signal_postgres(self, number: signal.Signals) -> None:
        """Send a signal to every process of the cluster."""
        for pid in self._list_postgres_pids():
            with _ignore_ended_process():
                os.kill(pid, number)

    def _list_postgres_pids(self) -> list[int]:
        pid_file = self.postgres.data_dir / "postgres" / "postmaster.pid"
        if not pid_file.exists():
            return []
        postmaster = int(pid_file.read_text().split("\n")[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
        return [postmaster, *map(int, children.read_text().split())] if children.exists() else []


class _ignore_ended_process:  # noqa: N801 - a context manager
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ProcessLookupError)


Log = Callable[[str], None]

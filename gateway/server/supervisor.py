"""Processes kept running: `agent-gateway up`, the whole stack on this machine, and `agent-gateway serve --workers`.

They are started side by side and stopped in order.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from gateway.config import ConfigError, Settings
from gateway.mcp_client.server_config import load_servers
from gateway.server import tls
from gateway.server.process import READY, SharedPort, bind
from gateway_runtime import embedded_postgres

_READY_PATIENCE = 30.0
_DEATHS, _DEATHS_WITHIN = 5, 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_POSTGRES_LOOK = 0.5

STOPPED, FAILED, MISCONFIGURED = 0, 1, 2
_PYTHON = (sys.executable, "-m")


@dataclass
class Child:
    """A process of ours. `stop_rank`: lower ranks are stopped first; `patience`: seconds it has to stop.

    With a `port` it is a worker: it serves there when all workers can. One that is `replaceable` is started again even
    when it was told to stop.
    """

    name: str
    argv: list[str]
    env: Mapping[str, str]
    stop_rank: int = 0
    patience: float = 1.0
    pass_fds: tuple[int, ...] = ()
    port: SharedPort | None = None
    replaceable: bool = False
    ready: bool = False
    process: asyncio.subprocess.Process | None = None
    line: socket.socket | None = None
    complaint: asyncio.Task[str] | None = None
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=_DEATHS))


class Supervisor:
    """Keeps children and the embedded Postgres running until told to stop.

    Who ends without having been told, well, takes all down: somebody stopped that one process. Who dies is started
    again. Each child is in a session of its own: a terminal's Ctrl-C reaches only us, and we stop them in order. A
    socket as each one's standard input tells it when we are gone; see `process.Lifeline`.

    `hang_up`: what SIGHUP means: to stop as by the other signals, or something for the workers.
    """

    def __init__(
        self, children: list[Child], postgres: embedded_postgres.EmbeddedPostgres | None, *, hang_up: bool = True
    ) -> None:
        self._children = children
        self._workers = [child for child in children if child.port is not None]
        self.ready = asyncio.Event()
        self._postgres = postgres
        self._hang_up = hang_up
        self._stop = asyncio.Event()
        self._exit_code = STOPPED
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start everything, stay until stopped, stop everything. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_stop)
        if not self._hang_up:
            loop.add_signal_handler(signal.SIGHUP, self._told_to_read_again)
        try:
            for child in self._children:
                await self._start(child)
                self.spawn(self._keep(child))
            if self._postgres is not None:
                # In this very thread, while the others import: the kernel ends Postgres with the thread that began it.
                self._postgres.revive()
                self.spawn(self._keep_postgres(self._postgres))
            await self._stop.wait()
        except embedded_postgres.EmbeddedError as error:
            _say(str(error), sys.stderr)
            self._exit_code = FAILED
        finally:
            await self._stop_all()
        return self._exit_code

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the children until all is stopped."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _told_to_stop(self) -> None:
        if self._stopping:  # told twice: somebody is in a hurry
            for child in self._children:
                _signal(child, signal.SIGKILL)
        self._stop.set()

    def _told_to_read_again(self) -> None:
        for worker in self._workers:
            if worker.ready:
                _signal(worker, signal.SIGHUP)

    def _finish(self, code: int, why: str = "") -> None:
        if why and not self._stop.is_set():
            _say(why, sys.stderr)
        self._exit_code = max(self._exit_code, code)
        self._stop.set()

    async def _start(self, child: Child) -> None:
        line, theirs = socket.socketpair()
        line.setblocking(False)
        argv, fds = child.argv, child.pass_fds
        with contextlib.ExitStack() as given:
            given.enter_context(theirs)
            if child.port is not None:
                listener = given.enter_context(child.port.listener())
                argv, fds = [*argv, "--fd", str(listener.fileno())], (*fds, listener.fileno())
            child.process = await asyncio.create_subprocess_exec(
                *argv,
                env={**child.env, "GATEWAY_LIFELINE": "stdin"},
                stdin=theirs.fileno(),
                start_new_session=True,
                pass_fds=fds,
            )
        if child.line is not None:
            child.line.close()
        child.line, child.ready = line, False
        if child.port is not None:
            child.complaint = asyncio.create_task(self._hear(child, line))

    async def _hear(self, child: Child, line: socket.socket) -> str:
        """Let a worker serve as soon as all can; what it says instead, if it cannot."""
        told = await asyncio.get_running_loop().sock_recv(line, 65_536)
        if told != READY:
            return told.decode()
        child.ready = True
        if all(worker.ready for worker in self._workers):
            self.ready.set()
        await self.ready.wait()
        with contextlib.suppress(OSError):  # it is gone
            line.send(READY)
        return ""

    async def _keep(self, child: Child) -> None:
        pause = _FIRST_PAUSE
        while child.process is not None:
            code = await child.process.wait()
            if self._stopping:
                return
            child.ready = False
            why = await child.complaint if code == MISCONFIGURED and child.complaint is not None else ""
            if code in (STOPPED, MISCONFIGURED) and not (child.replaceable and self.ready.is_set()):
                self._finish(code, why)
                return
            child.deaths.append(time.monotonic())
            if len(child.deaths) == _DEATHS and child.deaths[-1] - child.deaths[0] < _DEATHS_WITHIN:
                _say(f"{child.name} died {_DEATHS} times within a minute: giving up", sys.stderr)
                self._finish(FAILED)
                return
            _say(f"{child.name} ended with {_how(code)}: starting it again {why}".rstrip(), sys.stderr)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            await self._start(child)

    async def _keep_postgres(self, postgres: embedded_postgres.EmbeddedPostgres) -> None:
        while True:
            await asyncio.sleep(_POSTGRES_LOOK)
            if not postgres.running():
                _say("Postgres is gone: starting it again", sys.stderr)
                try:
                    postgres.revive()
                except embedded_postgres.EmbeddedError as error:
                    _say(str(error), sys.stderr)
                    self._finish(FAILED)

    async def _stop_all(self) -> None:
        self._stopping = True
        complaints = [child.complaint for child in self._workers if child.complaint is not None]
        for task in (*self._tasks, *complaints):
            task.cancel()
        for rank in sorted({child.stop_rank for child in self._children}):
            ranked = [child for child in self._children if child.stop_rank == rank]
            await asyncio.gather(*map(_end, ranked))
        if self._postgres is not None:
            self._postgres.release()


async def _end(child: Child) -> None:
    if child.process is None:
        return
    _signal(child, signal.SIGTERM)
    try:
        async with asyncio.timeout(child.patience):
            await child.process.wait()
    except TimeoutError:
        _say(f"{child.name} did not stop in {child.patience:g} seconds: killed", sys.stderr)
        _signal(child, signal.SIGKILL)
        await child.process.wait()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _say(line: str, to: TextIO = sys.stdout) -> None:
    to.write(f"{line}\n")
    to.flush()


def run(settings: Settings) -> int:
    """Run the stack that the settings ask for. Returns the exit code.

    Raises:
        ConfigError: a port is taken, or the certificate, the database or the MCP servers that the settings name cannot
            be used.
    """
    tls.server_options(settings)
    load_servers(settings)
    port = SharedPort(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    bind("127.0.0.1", settings.tools_server_port, setting="TOOLS_SERVER_PORT").close()
    postgres = _embedded(settings)
    with contextlib.closing(port), contextlib.closing(_simulators_port()) as listener:
        started = time.monotonic()
        env = _environment(postgres) | {
            "MIGRATE_ON_START": "true",
            "DATABASE_WAIT_SECONDS": "30",
            "TOOLS_SERVER_PORT": str(settings.tools_server_port),
            "TOOLS_SERVER_SECRET": _secret(settings),
        }
        models = simulator(settings, env, listener)
        tools = Child("the tool server", [*_PYTHON, "tools_server.cli"], env, stop_rank=1, patience=1.5)
        gateways = workers(settings, env, port, settings.gateway_workers)
        supervisor = Supervisor([*models, tools, *gateways], postgres)
        announcing = _announce(settings, postgres, listener.getsockname()[1], started)
        return asyncio.run(_run(supervisor, announcing))


def run_workers(settings: Settings, number: int) -> int:
    """Run so many gateways on one port, and what they need where nobody else provides it. Returns the exit code.

    Raises:
        ConfigError: the port is taken, or the certificate that the settings name cannot be used.
    """
    tls.server_options(settings)
    port = SharedPort(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    postgres = _embedded(settings)
    with contextlib.closing(port), contextlib.closing(_simulators_port()) as listener:
        started = time.monotonic()
        env = _environment(postgres)
        if postgres is not None:
            env["DATABASE_WAIT_SECONDS"] = "30"
        models = simulator(settings, env, listener)
        supervisor = Supervisor([*models, *workers(settings, env, port, number)], postgres, hang_up=False)
        address = settings.model_copy(update={"gateway_port": port.number}).local_url
        return asyncio.run(_run(supervisor, _announce_workers(settings, supervisor, address, number, started)))


async def _run(supervisor: Supervisor, announcing: Coroutine[Any, Any, None]) -> int:
    supervisor.spawn(announcing)
    return await supervisor.run()


def _embedded(settings: Settings) -> embedded_postgres.EmbeddedPostgres | None:
    try:
        return None if settings.postgres_url else embedded_postgres.locate(settings.gateway_data_dir)
    except (embedded_postgres.EmbeddedError, OSError) as error:
        raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None


def _environment(postgres: embedded_postgres.EmbeddedPostgres | None) -> dict[str, str]:
    return dict(os.environ) | ({"DATABASE_URL": postgres.url(), "MIGRATE_ON_START": "true"} if postgres else {})


def _simulators_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def simulator(settings: Settings, env: dict[str, str], listener: socket.socket) -> list[Child]:
    """The simulated Groq, where no other model is configured; `env` leads the others to it."""
    if settings.provider is not None:
        return []
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    env |= {"GROQ_API_KEY": "simulated", "GROQ_BASE_URL": address, "GROQ_SIMULATED": "true"}
    fd = listener.fileno()
    argv = [*_PYTHON, "gateway.simulator", "--fd", str(fd)]
    argv += ["--replay", str(settings.simulator_replay)] if settings.simulator_replay else []
    return [Child("the simulated Groq", argv, env, stop_rank=1, pass_fds=(fd,))]


def workers(settings: Settings, env: Mapping[str, str], port: SharedPort, number: int) -> list[Child]:
    """The gateway's processes. They are stopped first, what they lean on after them."""
    env = {**env, "GATEWAY_PORT": str(port.number)}
    return [
        Child(
            "the gateway" if number == 1 else f"worker {n}", [*_PYTHON, "gateway.cli", "serve"], env,
            patience=settings.shutdown_grace_seconds + 0.5, port=port, replaceable=number > 1,
        )
        for n in range(1, number + 1)
    ]  # fmt: skip


def _secret(settings: Settings) -> str:
    """The given one, else the data directory's own: a question that waits through a restart is sealed with it."""
    if settings.tools_server_secret is not None:
        return settings.tools_server_secret.get_secret_value()
    file = settings.gateway_data_dir / "tools-secret"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(32))
    return file.read_text()


async def _announce(
    settings: Settings, postgres: embedded_postgres.EmbeddedPostgres | None, simulator_port: int, started: float
) -> None:
    """Say what runs where as soon as it does."""
    gateway = settings.local_url
    missing = await _wait_until_ready(settings.local_host, settings.gateway_port, tls.client_context(settings))
    seconds = time.monotonic() - started
    addresses = {"groq": settings.groq_base_url, "openai": settings.openai_base_url}
    upstream = (
        addresses.get(settings.provider or "", "")
        or f"simulated Groq, http://127.0.0.1:{simulator_port} (set GROQ_API_KEY for the real one)"
    )
    database = str(postgres.data_dir / "postgres") + " (embedded PostgreSQL 18)" if postgres else "DATABASE_URL"
    lines = [
        f"The agent gateway is {'ready' if not missing else 'up'} after {seconds:.1f} s. Ctrl-C stops everything.",
        f"  gateway      {gateway}   (try {gateway}/docs)",
        f"  tool server  http://127.0.0.1:{settings.tools_server_port}/mcp",
        f"  model        {upstream}",
        f"  Postgres     {database}",
        *(f"  note         {note}" for note in (postgres.notes if postgres else ())),
        *(f"  note         {note}" for note in notes(settings, settings.gateway_workers)),
        *(f"  not ready    {line}" for line in missing),
        "Try:",
        f"  curl -N {gateway}/api/v1/chat/stream -H 'Content-Type: application/json' \\",
        """    -d '{"messages":[{"role":"user","content":"What is 23*19?"}]}'""",
    ]
    _say("\n" + "\n".join(lines) + "\n")


async def _announce_workers(
    settings: Settings, supervisor: Supervisor, address: str, number: int, started: float
) -> None:
    """Say it when all workers serve, and what is not shared between them."""
    await supervisor.ready.wait()
    _say(f"The agent gateway is ready after {time.monotonic() - started:.1f} s: {number} workers at {address}")
    for note in notes(settings, number):
        _say(f"  note  {note}", sys.stderr)


def notes(settings: Settings, number: int) -> list[str]:
    """What a person should know who runs so many workers."""
    if number == 1 or settings.redis_url is not None:
        return []
    counted = "rate limits and " if settings.rate_limit_enabled else ""
    return [f"without REDIS_URL each of the {number} workers counts {counted}the model's limits by itself"]


async def _wait_until_ready(host: str, port: int, trusted: ssl.SSLContext | None) -> list[str]:
    """What is not ready: empty at best. Gives up waiting after a while, as a server of `mcp.json` may be away."""
    deadline = time.monotonic() + _READY_PATIENCE
    while True:
        answer = await _get_ready(host, port, trusted)
        if answer is not None and answer["status"] == "ready":
            return []
        if answer is not None and time.monotonic() > deadline - _READY_PATIENCE + 5:
            return _unready(answer)
        if time.monotonic() > deadline:
            return ["the gateway does not answer yet"]
        await asyncio.sleep(0.03)


def _unready(answer: dict[str, Any]) -> list[str]:
    checks = [f"{name}: {answer[name]['reason']}" for name in ("database", "model") if not answer[name]["ok"]]
    away = [server for server in answer["mcp_servers"] if server["state"] not in ("up", "disabled")]
    return checks + [f"MCP server {server['name']}: {server['reason'] or server['state']}" for server in away]


async def _get_ready(host: str, port: int, trusted: ssl.SSLContext | None) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(host, port, ssl=trusted)
            writer.write(f"GET /ready HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return json.loads(answer.split(b"\r\n\r\n", 1)[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None

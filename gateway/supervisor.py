"""`agent-gateway up`: the whole stack on this machine, started side by side and stopped in order."""

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

from gateway import tls
from gateway.config import ConfigError, Settings
from gateway.process import bind
from gateway.store import embedded

_READY_PATIENCE = 30.0
_DEATHS, _DEATHS_WITHIN = 5, 60.0
_POSTGRES_LOOK = 0.5

STOPPED, FAILED, MISCONFIGURED = 0, 1, 2


@dataclass
class Child:
    """A process of ours. `stop_rank`: lower ranks are stopped first; `patience`: seconds it has to stop."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    stop_rank: int = 0
    patience: float = 1.0
    pass_fds: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=_DEATHS))


class Supervisor:
    """Keeps children and the embedded Postgres running until told to stop.

    Who ends without having been told, well, takes all down: somebody stopped that one process. Who dies is started
    again. Each child is in a session of its own: a terminal's Ctrl-C reaches only us, and we stop them in order. The
    pipe to each one's standard input tells it when we are gone.
    """

    def __init__(self, children: list[Child], postgres: embedded.EmbeddedPostgres | None) -> None:
        self._children = children
        self._postgres = postgres
        self._stop = asyncio.Event()
        self._exit_code = STOPPED
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start everything, stay until stopped, stop everything. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            for child in self._children:
                await self._start(child)
                self.spawn(self._keep(child))
            if self._postgres is not None:
                # In this very thread, while the others import: the kernel ends Postgres with the thread that began it.
                self._postgres.revive()
                self.spawn(self._keep_postgres(self._postgres))
            await self._stop.wait()
        except embedded.EmbeddedError as error:
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

    def _finish(self, code: int) -> None:
        self._exit_code = max(self._exit_code, code)
        self._stop.set()

    async def _start(self, child: Child) -> None:
        child.process = await asyncio.create_subprocess_exec(
            *child.argv,
            env={**child.env, "GATEWAY_LIFELINE": "stdin"},
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=child.pass_fds,
        )

    async def _keep(self, child: Child) -> None:
        pause = 0.2
        while child.process is not None:
            code = await child.process.wait()
            if self._stopping:
                return
            if code in (STOPPED, MISCONFIGURED):
                self._finish(code)
                return
            child.deaths.append(time.monotonic())
            if len(child.deaths) == _DEATHS and child.deaths[-1] - child.deaths[0] < _DEATHS_WITHIN:
                _say(f"{child.name} died {_DEATHS} times within a minute: giving up", sys.stderr)
                self._finish(FAILED)
                return
            _say(f"{child.name} ended with {_how(code)}: starting it again", sys.stderr)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
            await self._start(child)

    async def _keep_postgres(self, postgres: embedded.EmbeddedPostgres) -> None:
        while True:
            await asyncio.sleep(_POSTGRES_LOOK)
            if not postgres.running():
                _say("Postgres is gone: starting it again", sys.stderr)
                try:
                    postgres.revive()
                except embedded.EmbeddedError as error:
                    _say(str(error), sys.stderr)
                    self._finish(FAILED)

    async def _stop_all(self) -> None:
        self._stopping = True
        for task in list(self._tasks):
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
        ConfigError: a port is taken, the certificate or the database that the settings name cannot be used.
    """
    tls.server_options(settings)
    for host, port, setting in (
        (settings.gateway_host, settings.gateway_port, "GATEWAY_PORT"),
        ("127.0.0.1", settings.tools_server_port, "TOOLS_SERVER_PORT"),
    ):
        bind(host, port, setting=setting).close()
    try:
        postgres = None if settings.postgres_url else embedded.locate(settings.gateway_data_dir)
    except (embedded.EmbeddedError, OSError) as error:
        raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None
    simulated = settings.provider is None
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        started = time.monotonic()
        supervisor = Supervisor(children(settings, postgres, listener if simulated else None), postgres)
        return asyncio.run(_run(supervisor, settings, postgres, listener, started))


async def _run(
    supervisor: Supervisor,
    settings: Settings,
    postgres: embedded.EmbeddedPostgres | None,
    listener: socket.socket,
    started: float,
) -> int:
    supervisor.spawn(_announce(settings, postgres, listener.getsockname()[1], started))
    return await supervisor.run()


def children(
    settings: Settings, postgres: embedded.EmbeddedPostgres | None, simulator: socket.socket | None
) -> list[Child]:
    """The processes of the stack: the gateway is stopped first, what it leans on after it."""
    env = dict(os.environ)
    env |= {
        "MIGRATE_ON_START": "true",
        "DATABASE_WAIT_SECONDS": "30",
        "TOOLS_SERVER_PORT": str(settings.tools_server_port),
        "TOOLS_SERVER_SECRET": _secret(settings),
    }
    if postgres is not None:
        env["DATABASE_URL"] = postgres.url()
    python = [sys.executable, "-m"]
    stack: list[Child] = []
    if simulator is not None:
        address = f"http://127.0.0.1:{simulator.getsockname()[1]}"
        env |= {"GROQ_API_KEY": "simulated", "GROQ_BASE_URL": address, "GROQ_SIMULATED": "true"}
        fd = simulator.fileno()
        argv = [*python, "gateway.llm.simulator", "--fd", str(fd)]
        argv += ["--replay", str(settings.simulator_replay)] if settings.simulator_replay else []
        stack.append(Child("the simulated Groq", argv, env, stop_rank=1, pass_fds=(fd,)))
    stack.append(Child("the tool server", [*python, "tools_server.cli"], env, stop_rank=1, patience=1.5))
    patience = settings.shutdown_grace_seconds + 0.5
    stack.append(Child("the gateway", [*python, "gateway.cli", "serve"], env, stop_rank=0, patience=patience))
    return stack


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
    settings: Settings, postgres: embedded.EmbeddedPostgres | None, simulator_port: int, started: float
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
        *(f"  not ready    {line}" for line in missing),
        "Try:",
        f"  curl -N {gateway}/api/v1/chat/stream -H 'Content-Type: application/json' \\",
        """    -d '{"messages":[{"role":"user","content":"What is 23*19?"}]}'""",
    ]
    _say("\n" + "\n".join(lines) + "\n")


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

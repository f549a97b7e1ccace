"""Random faults of workers, their network, Postgres and the tool server."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.chaos.disk import fill_disk
from tests.chaos.stack import ROLE, ChaosProcess, ChaosStack

_FULL_BYTES = 256 * 1024
"""Free bytes below which no worker may be ready."""
Fault = Callable[[], Awaitable[None]]


class ChaosFaults:
    """Faults that a random generator chooses. Each ends before its coroutine does.

    Worker 0 is never killed, so that its memory can be compared over the whole run.
    """

    def __init__(self, stack: ChaosStack, seed: int, *, disk: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.ready_while_full = 0
        self.unready_while_full = 0
        self._stack = stack
        self._random = random.Random(seed)
        self._process_faults: dict[str, Fault] = {
            "kill worker": self._kill_worker,
            "stop worker in order": self._terminate_worker,
            "freeze worker": self._freeze_worker,
            "cut worker off": self._cut_worker_off,
            "silence worker's database": self._silence_database,
            "kill tool server": self._kill_tools,
        }
        self._database_faults: dict[str, Fault] = {
            "revoke privileges": self._revoke,
            "read-only database": self._set_read_only,
            "freeze Postgres": self._freeze_postgres,
            "kill Postgres": self._kill_postgres,
            "restart Postgres": self._restart_postgres,
            "end all sessions": self._end_sessions,
            **({"fill disk": self._fill_disk} if disk else {}),
        }

    async def run(self) -> None:
        """Cause faults until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cause(self._process_faults, 1.0, 4.0))
            tasks.create_task(self._cause(self._database_faults, 4.0, 12.0))

    async def _cause(self, faults: dict[str, Fault], min_pause: float, max_pause: float) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(min_pause, max_pause))
            name = self._random.choice(list(faults))
            self.counts[name] += 1
            await faults[name]()

    async def _wait(self, least: float, most: float) -> None:
        await asyncio.sleep(self._random.uniform(least, most))

    def _pick_worker(self, *, first: int = 0) -> ChaosProcess:
        return self._random.choice(self._stack.workers[first:])

    # --- workers

    async def _kill_worker(self) -> None:
        self._pick_worker(first=1).send_signal(signal.SIGKILL)

    async def _terminate_worker(self) -> None:
        self._pick_worker(first=1).send_signal(signal.SIGTERM)

    async def _freeze_worker(self) -> None:
        worker = self._pick_worker()
        worker.send_signal(signal.SIGSTOP)
        try:
            await self._wait(1, 12)
        finally:
            worker.send_signal(signal.SIGCONT)

    async def _cut_worker_off(self) -> None:
        proxy = self._random.choice(self._stack.proxies)
        proxy.cut()
        try:
            await self._wait(1, 20)
        finally:
            proxy.heal()

    async def _silence_database(self) -> None:
        proxy = self._random.choice(self._stack.proxies)
        proxy.silence()
        try:
            await self._wait(3, 20)
        finally:
            proxy.heal()

    async def _kill_tools(self) -> None:
        self._stack.tools.send_signal(signal.SIGKILL)

    # --- the database

    async def _revoke(self) -> None:
        what = "INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
        await self._stack.execute(f"REVOKE {what} FROM {ROLE}")
        try:
            await self._wait(1, 15)
        finally:
            await self._stack.execute(f"GRANT {what} TO {ROLE}")

    async def _set_read_only(self) -> None:
        await self._stack.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        try:
            await self._wait(1, 15)
        finally:
            await self._stack.execute("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")

    async def _freeze_postgres(self) -> None:
        self._stack.signal_postgres(signal.SIGSTOP)
        try:
            await self._wait(1, 12)
        finally:
            self._stack.signal_postgres(signal.SIGCONT)

    async def _kill_postgres(self) -> None:
        self._stack.signal_postgres(signal.SIGKILL)
        await self._wait(0.5, 8)
        await self._stack.start_postgres()

    async def _restart_postgres(self) -> None:
        await asyncio.to_thread(self._stack.postgres.stop_if_started_here)
        await self._wait(0.5, 8)
        await self._stack.start_postgres()

    async def _end_sessions(self) -> None:
        await self._stack.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")

    async def _fill_disk(self) -> None:
        """Fill the file system of the cluster.

        Postgres may end, and starts when there is room again.
        """
        ballast = self._stack.directory / "database" / "ballast"
        try:
            fill_disk(ballast)
            await self._wait(1, 15)
            await self._check_readiness()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(ballast)
            await self._stack.start_postgres()

    async def _check_readiness(self) -> None:
        """Count the workers that are ready although the disk is full."""
        before = self._measure_free_bytes()
        answers = await asyncio.gather(*(self._stack.is_ready(worker) for worker in self._stack.workers))
        if max(before, self._measure_free_bytes()) < _FULL_BYTES:
            self.ready_while_full += sum(answers)
            self.unready_while_full += len(answers) - sum(answers)

    def _measure_free_bytes(self) -> int:
        state = os.statvfs(self._stack.directory)
        return state.f_bavail * state.f_frsize

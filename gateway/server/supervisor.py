"""Keeps the processes of a stack running.

Starts them side by side, restarts them, and stops them in order.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TextIO
from uuid import UUID, uuid4

from gateway.server.forked_workers import ForkedWorker, ForkServer, ForkServerError
from gateway.server.source_watcher import SourceWatcher
from gateway_runtime.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from gateway_runtime.parent_watchdog import READY
from gateway_runtime.postgres.keeper import PostgresKeeper
from gateway_runtime.sockets import SharedPort

_MAX_MESSAGE_BYTES = 65_536
_RELEASE_SECONDS = 5.0
"""Time limit of a stop for the release of turns."""

STOPPED, FAILED, MISCONFIGURED = 0, 1, 2
_FORKED_VARIABLES = ("GATEWAY_PARENT_FD", "GATEWAY_WORKER_ID")
"""Variables of a worker that its fork server does not have."""


@dataclass(frozen=True)
class RestartPolicy:
    """Limits the restarts of a process.

    It gives up on a process that dies `max_deaths` times within `window_seconds`, and backs off between restarts.
    """

    max_deaths: int = 5
    window_seconds: float = 60.0
    min_backoff_seconds: float = 0.2
    max_backoff_seconds: float = 5.0


@dataclass
class ManagedProcess:
    """A child process.

    Lower `stop_rank`s are stopped first; each has `stop_timeout_seconds` before it is killed. With a `port` it is a
    worker: it serves there once all workers can; its `fork_server` starts it, if it has one. A `replaceable` process is
    restarted even when it ended with exit code 0. The stack runs on without an `optional` process.
    """

    name: str
    argv: list[str]
    env: Mapping[str, str]
    stop_rank: int = 0
    stop_timeout_seconds: float = 1.0
    pass_fds: tuple[int, ...] = ()
    port: SharedPort | None = None
    replaceable: bool = False
    optional: bool = False
    is_ready: bool = False
    reload_pending: bool = False
    worker_id: UUID | None = None
    fork_server: ForkServer | None = None
    process: asyncio.subprocess.Process | ForkedWorker | None = None
    parent_socket: socket.socket | None = None
    startup_error: asyncio.Task[str] | None = None
    restart_requested: asyncio.Event = field(default_factory=asyncio.Event)
    death_times: deque[float] = field(default_factory=deque[float])


class Supervisor:
    """Keeps child processes and the embedded Postgres running.

    It runs until a signal stops it. A process that ends with exit code 0 ends the whole stack, because a signal stopped
    it. A process that dies is restarted. Each child has a session of its own, so a terminal's Ctrl-C reaches only this
    process. A socket as each child's standard input tells it when this process is gone; see
    `gateway_runtime.parent_watchdog`.

    `stop_on_hangup`: SIGHUP stops everything; without it, SIGHUP is passed on to the workers. `source`: restart the
    processes when it changes; a process that fails then waits for the next change.
    """

    def __init__(
        self,
        processes: list[ManagedProcess],
        postgres: EmbeddedPostgres | None,
        *,
        stop_on_hangup: bool = True,
        restart_policy: RestartPolicy | None = None,
        release_worker: Callable[[UUID], Coroutine[None, None, None]] | None = None,
        source: SourceWatcher | None = None,
    ) -> None:
        self._processes = processes
        self._workers = [process for process in processes if process.port is not None]
        self.ready = asyncio.Event()
        self._postgres = postgres
        self._stop_on_hangup = stop_on_hangup
        self._restart_policy = restart_policy or RestartPolicy()
        self._release_worker = release_worker
        self._source = source
        self._stop = asyncio.Event()
        self._exit_code = STOPPED
        self._stopping = False
        self._is_stop_requested = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start everything, wait for the stop signal, stop everything.

        Returns the exit code.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_stop_signal)
        if not self._stop_on_hangup:
            loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        keeper = None if self._postgres is None else _build_keeper(self._postgres)
        if keeper is not None:
            keeper.start()  # beside the processes, which wait for it
        try:
            for process in self._processes:
                await self._start_process(process)
                self._spawn(self._keep_process_running(process), self._on_keeper_done)
            if self._source is not None:
                self.spawn_task(self._restart_at_changes(self._source))
            if keeper is not None:
                await asyncio.wrap_future(keeper.started)
            await self._stop.wait()
        except EmbeddedPostgresError as error:
            print_line(str(error), sys.stderr)
            self._exit_code = FAILED
        finally:
            await self._stop_all()
            if keeper is not None:
                self._report_stop("Stopping Postgres: at most 10 seconds.")
                await asyncio.to_thread(keeper.stop)
        return self._exit_code

    def spawn_task(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run a coroutine beside the processes.

        It is cancelled when they are stopped. Its error is printed; the processes keep running.
        """
        self._spawn(coroutine, _print_task_error)

    def _spawn(
        self,
        coroutine: Coroutine[None, None, None],
        on_done: Callable[[asyncio.Task[None]], object],
        tasks: set[asyncio.Task[None]] | None = None,
    ) -> None:
        tasks = self._tasks if tasks is None else tasks
        task = asyncio.ensure_future(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(on_done)

    def _release_turns(self, process: ManagedProcess) -> None:
        """Let other workers claim the turns of a worker that has ended."""
        worker_id, process.worker_id = process.worker_id, None
        if worker_id is not None and self._release_worker is not None:
            self._spawn(self._release_worker(worker_id), _print_task_error, self._releases)

    def _on_keeper_done(self, task: asyncio.Task[None]) -> None:
        """Stop everything after an error.

        Else a process or Postgres would not be restarted any more.
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            self._finish(FAILED, f"The supervisor failed: {type(error).__name__}: {error}")

    def _on_stop_signal(self) -> None:
        if self._stopping:  # a second signal: do not wait for an orderly stop
            for process in self._processes:
                _send_signal(process, signal.SIGKILL)
        self._is_stop_requested = True
        self._stop.set()

    def _on_reload_signal(self) -> None:
        for worker in self._workers:
            if worker.is_ready:
                _send_signal(worker, signal.SIGHUP)
            else:  # it may have read the old files already
                worker.reload_pending = True

    def _finish(self, code: int, reason: str = "") -> None:
        if reason and not self._stop.is_set():
            print_line(reason, sys.stderr)
        self._exit_code = max(self._exit_code, code)
        self._stop.set()

    async def _start_process(self, process: ManagedProcess) -> None:
        parent_socket, child_socket = socket.socketpair()
        parent_socket.setblocking(False)
        argv, fds, env = process.argv, process.pass_fds, {**process.env, "GATEWAY_PARENT_FD": "0"}
        with contextlib.ExitStack() as stack:
            stack.enter_context(child_socket)
            if process.port is not None:
                listener = stack.enter_context(process.port.create_listener())
                argv, fds = [*argv, "--fd", str(listener.fileno())], (*fds, listener.fileno())
                process.worker_id = uuid4()
                env["GATEWAY_WORKER_ID"] = str(process.worker_id)
            process.process = await _fork_worker(process, env, (child_socket.fileno(), *fds))
            process.process = process.process or await asyncio.create_subprocess_exec(
                *argv, env=env, stdin=child_socket.fileno(), start_new_session=True, pass_fds=fds
            )
        if process.parent_socket is not None:
            process.parent_socket.close()
        process.parent_socket, process.is_ready = parent_socket, False
        if process.port is not None:
            process.startup_error = asyncio.create_task(self._receive_startup_error(process, parent_socket))

    async def _receive_startup_error(self, process: ManagedProcess, parent_socket: socket.socket) -> str:
        """Send a worker the start signal once all are ready.

        Return the error message of a worker that cannot start.
        """
        message = await asyncio.get_running_loop().sock_recv(parent_socket, _MAX_MESSAGE_BYTES)
        if message != READY:
            return message.decode()
        process.is_ready = True
        if process.reload_pending:
            process.reload_pending = False
            _send_signal(process, signal.SIGHUP)
        if all(worker.is_ready for worker in self._workers):
            self.ready.set()
        await self.ready.wait()
        with contextlib.suppress(OSError):  # the worker is gone
            parent_socket.send(READY)
        return ""

    async def _restart_at_changes(self, source: SourceWatcher) -> None:
        while True:
            await source.wait_for_change()
            print_line("The source has changed: starting everything again", sys.stderr)
            for process in self._processes:
                process.restart_requested.set()
            await asyncio.gather(*(_stop_process(process) for process in self._processes))

    async def _keep_process_running(self, process: ManagedProcess) -> None:
        policy = self._restart_policy
        backoff = policy.min_backoff_seconds
        while process.process is not None:
            code = await process.process.wait()
            if self._stopping:
                return
            process.is_ready = False
            self._release_turns(process)
            if await self._is_restart_wanted(process, code):
                await self._start_process(process)
                continue
            reason = await process.startup_error if code == MISCONFIGURED and process.startup_error is not None else ""
            if code in (STOPPED, MISCONFIGURED) and not (
                process.optional or (process.replaceable and self.ready.is_set())
            ):
                self._finish(code, reason)
                return
            if self._died_too_often(process):
                print_line(f"{process.name} died {policy.max_deaths} times within a minute: giving up", sys.stderr)
                if not process.optional:
                    self._finish(FAILED)
                return
            print_line(
                f"{process.name} ended with {_describe_exit(code)}: starting it again {reason}".rstrip(), sys.stderr
            )
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, policy.max_backoff_seconds)
            await self._start_process(process)

    async def _is_restart_wanted(self, process: ManagedProcess, code: int) -> bool:
        """Return whether a changed source starts a process again.

        A process that failed waits until the source changes.
        """
        if self._source is None or (code in (STOPPED, MISCONFIGURED) and not process.restart_requested.is_set()):
            return False
        if not process.restart_requested.is_set():
            print_line(
                f"{process.name} ended with {_describe_exit(code)}: waiting for a change of the source", sys.stderr
            )
            await process.restart_requested.wait()
        process.restart_requested.clear()
        return True

    def _died_too_often(self, process: ManagedProcess) -> bool:
        """Record a death; return whether that was the last one allowed."""
        policy, now = self._restart_policy, time.monotonic()
        process.death_times.append(now)
        while now - process.death_times[0] >= policy.window_seconds:
            process.death_times.popleft()
        return len(process.death_times) >= policy.max_deaths

    def _report_stop(self, line: str) -> None:
        """Tell the person who asked for the stop what it waits for."""
        if self._is_stop_requested:
            print_line(line, sys.stderr)

    async def _stop_all(self) -> None:
        self._stopping = True
        startup_errors = [worker.startup_error for worker in self._workers if worker.startup_error is not None]
        for task in (*self._tasks, *startup_errors):
            task.cancel()
        for rank in sorted({process.stop_rank for process in self._processes}):
            running = [process for process in self._processes if process.stop_rank == rank and _is_running(process)]
            if running:
                self._report_stop(_describe_wait(running))
            await asyncio.gather(*(_stop_process(process) for process in running))
        for fork_server in {worker.fork_server for worker in self._workers if worker.fork_server is not None}:
            await fork_server.close()
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode != STOPPED:  # else it has released them itself
                self._release_turns(worker)
        if self._releases:
            await asyncio.wait(self._releases, timeout=_RELEASE_SECONDS)


async def _fork_worker(
    process: ManagedProcess, env: Mapping[str, str], descriptors: tuple[int, ...]
) -> ForkedWorker | None:
    """Start a worker by its fork server.

    Return None where it has none, or that cannot do it: the worker is then started as a program of its own.
    """
    if process.fork_server is None:
        return None
    try:
        return await process.fork_server.start_worker({name: env[name] for name in _FORKED_VARIABLES}, descriptors)
    except ForkServerError as error:
        print_line(f"{process.name} shares no memory with others: {error}", sys.stderr)
        return None


def _build_keeper(postgres: EmbeddedPostgres) -> PostgresKeeper:
    """Build the keeper of Postgres, which tries again until Postgres starts."""
    return PostgresKeeper(
        postgres,
        on_lost=lambda: print_line("Postgres is gone: starting it again", sys.stderr),
        on_failure=lambda error: print_line(f"Postgres does not start: {error}", sys.stderr),
    )


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line at once, by default to standard output.

    Lines are discarded once the terminal is gone or the reader of a pipe has closed it (`agent-gateway up | head`).
    """
    output = sys.stdout if stream is None else stream
    try:
        output.write(f"{line}\n")
        output.flush()
    except OSError:
        _discard_output(output)


def _discard_output(stream: TextIO) -> None:
    """Send the stream to the null device.

    Else flushing it at exit fails again, and the exit code is 120.
    """
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _print_task_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        print_line(f"A background task of the supervisor failed: {type(error).__name__}: {error}", sys.stderr)


async def _stop_process(process: ManagedProcess) -> None:
    if process.process is None:
        return
    _send_signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(process.stop_timeout_seconds):
            await process.process.wait()
    except TimeoutError:
        seconds = f"{process.stop_timeout_seconds:g}"
        print_line(f"{process.name} did not stop in {seconds} seconds: killed", sys.stderr)
        _send_signal(process, signal.SIGKILL)
        await process.process.wait()


def _is_running(process: ManagedProcess) -> bool:
    return process.process is not None and process.process.returncode is None


def _describe_wait(processes: list[ManagedProcess]) -> str:
    """Name the processes that a stop waits for, and for how long."""
    names = ", ".join(process.name for process in processes)
    seconds = max(process.stop_timeout_seconds for process in processes)
    return f"Stopping {names}: at most {seconds:g} seconds. Ctrl-C again stops everything at once."


def _send_signal(process: ManagedProcess, number: signal.Signals) -> None:
    if process.process is not None and process.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.process.send_signal(number)


def _describe_exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

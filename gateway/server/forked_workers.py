"""Starts workers through the fork server, for the supervisor."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from gateway.server.fork_server import MAX_MESSAGE_BYTES

IS_SUPPORTED = sys.platform.startswith("linux")
"""Whether workers are forked.

Elsewhere, system libraries do not survive a fork, and each worker is started as a program of its own.
"""
_COMMAND = (sys.executable, "-m", "gateway.server.fork_server")
_START_SECONDS = 60.0
_STOP_SECONDS = 2.0


class ForkedWorker:
    """A worker that the fork server has started and reports about.

    It has the methods of `asyncio.subprocess.Process` that the supervisor needs.
    """

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self.pid = pid
        self._server = server
        self._returncode: int | None = None
        self._ended = asyncio.Event()

    @property
    def returncode(self) -> int | None:
        return self._returncode

    async def wait(self) -> int:
        """Wait for the end and return the exit code.

        It is negative after a signal.
        """
        await self._ended.wait()
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, number: int) -> None:
        if self._returncode is None:
            self._server.send_signal(self.pid, number)

    def record_end(self, returncode: int) -> None:
        self._returncode = returncode
        self._ended.set()


class ForkServer:
    """Starts workers by messages to one process.

    It is started with the first worker. `env` is the environment of all workers. When that process is gone, the kernel
    tells its workers to stop, and they count as ended; the next worker starts it again.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._workers: dict[int, ForkedWorker] = {}
        self._starting: asyncio.Future[ForkedWorker] | None = None
        self._lock = asyncio.Lock()
        # Imported here because it takes 7 MB, and the supervisor of one worker has no fork server.
        from gateway_runtime.background.tasks import SupervisedTask

        self._reading = SupervisedTask("fork server", self._read_reports, restart=False)

    async def start_worker(self, variables: Mapping[str, str], descriptors: Sequence[int]) -> ForkedWorker:
        """Fork a worker.

        `variables` are added to its environment. `descriptors` are its standard input and its listening socket.

        Raises:
            ForkServerError: the process that forks cannot be started, or ended.
        """
        async with self._lock:
            control = self._control or await self._start_server()
            self._starting = starting = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(_START_SECONDS):
                    socket.send_fds(control, [json.dumps({"fork": dict(variables)}).encode()], descriptors)
                    return await starting
            except OSError as error:  # a time-out, too
                starting.cancel()  # nobody would read its error if nothing could be sent
                await self.close()
                raise ForkServerError(f"workers cannot be started ({type(error).__name__})") from None
            finally:
                self._starting = None

    def send_signal(self, pid: int, number: int) -> None:
        """Send a signal to a worker, through its parent process."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"signal": [pid, number]}).encode())

    async def close(self) -> None:
        """End the process, and wait for its end."""
        process = self._process
        self._forget_server()
        await self._reading.stop()
        if process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _start_server(self) -> socket.socket:
        await self._reading.stop()
        self._control, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with child_socket:
            self._process = await asyncio.create_subprocess_exec(
                *_COMMAND, env=self._env, stdin=child_socket.fileno(), start_new_session=True
            )
        self._reading.start()
        return self._control

    async def _read_reports(self) -> None:
        loop, control = asyncio.get_running_loop(), self._control
        assert control is not None
        try:
            while data := await loop.sock_recv(control, MAX_MESSAGE_BYTES):
                self._take_report(json.loads(data))
        except ConnectionError:
            pass  # the process was killed
        finally:
            if self._control is control:
                self._forget_server()

    def _take_report(self, report: dict[str, object]) -> None:
        match report:
            case {"forked": int(pid)}:
                worker = self._workers[pid] = ForkedWorker(self, pid)
                if self._starting is not None and not self._starting.done():
                    self._starting.set_result(worker)
            case {"ended": [int(pid), int(code)]} if pid in self._workers:
                self._workers.pop(pid).record_end(code)
            case _:
                raise ForkServerError("an unknown report")

    def _forget_server(self) -> None:
        """Close the connection.

        Nobody reports any more, so all workers count as ended.
        """
        if self._control is not None:
            self._control.close()
            self._control = None
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.record_end(-signal.SIGTERM)
        if self._starting is not None and not self._starting.done():
            self._starting.set_exception(ConnectionResetError())


class ForkServerError(Exception):
    """The process that forks workers cannot be used."""

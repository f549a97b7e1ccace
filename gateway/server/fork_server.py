"""Forks several workers from one process with imports and settings.

The supervisor runs it as `python -m gateway.server.fork_server`, on Linux, with a socket of messages as standard input.
A worker shares this memory with the others, and starts without that work. See docs/adr/0030.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from gateway_runtime.child_processes import make_parent_death_signal

if TYPE_CHECKING:
    from gateway.config import Settings

_PRELOADED = (
    "gateway.app",
    "gateway.cli.serve",
    "gateway.server.http_server",
    "gateway.server.services",
    "gateway_runtime.event_loop",
    "anyio._backends._asyncio",
    "jwt",
    "uvloop",
    "uvicorn.lifespan.on",
)
"""Modules that a worker imports before its first answer.

None of it starts a thread or makes an event loop: a fork would copy them broken.
"""
MAX_MESSAGE_BYTES = 64 * 1024
DESCRIPTORS = 2
"""Number of descriptors of a request.

They are the socket that a worker has as standard input, and its listening socket.
"""


@dataclass(frozen=True)
class WorkerStart:
    """Variables and descriptors of a worker, and the process that forked it."""

    server: int
    variables: dict[str, str]
    parent_fd: int
    listener_fd: int


def main() -> None:
    gc.disable()  # a collection during the imports finds no garbage, and would write to memory that is to be shared
    for module in _PRELOADED:
        importlib.import_module(module)
    settings = _prepare_workers()
    gc.freeze()
    start = _serve_requests(os.dup(0))
    if start is not None:
        _run_worker(start, settings)


def _prepare_workers() -> "Settings | None":
    """Read the settings, and build the common state of the workers.

    Return None where a setting cannot be used: a worker reads them again, and reports the problem.
    """
    from sqlalchemy.orm import configure_mappers

    from gateway.config import ConfigError, load_settings
    from gateway.llm.http import sdk_client
    from gateway.mcp_client import http_transport

    configure_mappers()
    try:
        settings = load_settings()
        sdk_client.get_ssl_context()
        http_transport.get_ssl_context()
    except ConfigError:
        return None
    importlib.import_module(f"gateway.llm.providers.{settings.provider or 'groq'}")
    return settings


def _serve_requests(fd: int) -> WorkerStart | None:
    """Fork workers, forward signals and report ends, until the supervisor is gone.

    Returns in this process None, and in each worker what it begins with.
    """
    server = os.getpid()
    with socket.socket(fileno=fd) as control, _wake_at_ends() as ends, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(ends, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if ends in ready:
                ends.recv(MAX_MESSAGE_BYTES)
                _report_ends(control)
            if control in ready:
                data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, DESCRIPTORS)
                if not data:
                    return None
                message = json.loads(data)
                if "signal" in message:
                    _send_signal(*message["signal"])
                elif (pid := os.fork()) == 0:
                    return WorkerStart(server, message["fork"], *fds)
                else:
                    for each in fds:
                        os.close(each)
                    control.send(json.dumps({"forked": pid}).encode())


@contextlib.contextmanager
def _wake_at_ends() -> Generator[socket.socket]:
    """Yield a socket that becomes readable when a worker ends."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with reader, writer:
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _wake(_number: int, _frame: object) -> None:
    """Do nothing.

    Without a handler, the signal would not write to the wake-up descriptor.
    """


def _report_ends(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(json.dumps({"ended": [pid, os.waitstatus_to_exitcode(status)]}).encode())


def _send_signal(pid: int, number: int) -> None:
    """Send a signal to a worker that runs.

    The number of one that was waited for may be another process's by now.
    """
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, number)


def _run_worker(start: WorkerStart, settings: "Settings | None") -> None:
    os.setsid()
    stop_at_end = make_parent_death_signal(start.server, signal.SIGTERM)  # nobody could report this worker's end
    if stop_at_end is not None:
        stop_at_end()
    os.dup2(start.parent_fd, 0)
    os.close(start.parent_fd)
    os.environ.update(start.variables)
    gc.enable()
    from gateway.cli.errors import report_config_errors
    from gateway.cli.serve import serve_until_stopped
    from gateway.config import load_settings

    with report_config_errors(parent_fd=0):
        settings = settings or load_settings()
        own = {"gateway_parent_fd": 0, "gateway_worker_id": UUID(start.variables["GATEWAY_WORKER_ID"])}
        serve_until_stopped(settings.model_copy(update=own), start.listener_fd)


if __name__ == "__main__":
    main()

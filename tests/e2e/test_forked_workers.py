"""Workers whose fork server does not do its work."""

import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gateway.server import forked_workers
from gateway.server.forked_workers import ForkServer, ForkServerError
from gateway.server.supervisor import MISCONFIGURED
from tests.e2e.running_stack import clean_environment

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not forked_workers.IS_SUPPORTED, reason="workers are forked on Linux only"),
]


@pytest.fixture
def descriptors(tmp_path: Path) -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open(tmp_path / "no socket", os.O_RDONLY | os.O_CREAT)


async def test_fork_server_that_ends_at_once_is_an_error(
    descriptors: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked_workers, "_COMMAND", (sys.executable, "-c", "import sys; sys.exit(3)"))
    server = ForkServer(clean_environment())
    with pytest.raises(ForkServerError):
        await server.start_worker({}, descriptors)
    await server.close()


async def test_fork_server_that_has_ended_before_its_first_order_is_an_error(
    descriptors: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked_workers, "_COMMAND", (sys.executable, "-c", "import sys; sys.exit(3)"))
    unread_errors: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: unread_errors.append(context["message"]))
    start_process = asyncio.create_subprocess_exec

    async def start_and_wait(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start_process(*arguments, **options)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_wait)
    server = ForkServer(clean_environment())
    with pytest.raises(ForkServerError):
        await server.start_worker({}, descriptors)
    await server.close()
    gc.collect()
    assert unread_errors == []


async def test_fork_server_that_hangs_is_an_error_and_does_not_stay(
    descriptors: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = f"hangs for {os.getpid()}"
    monkeypatch.setattr(forked_workers, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(600)", marker))
    monkeypatch.setattr(forked_workers, "_START_SECONDS", 1.0)
    monkeypatch.setattr(forked_workers, "_STOP_SECONDS", 0.1)
    server = ForkServer(clean_environment())
    for _ in range(2):
        with pytest.raises(ForkServerError):
            await server.start_worker({}, descriptors)
    await server.close()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if marker.encode() in _read(entry)]


async def test_signals_reach_a_worker_and_its_end_is_reported(descriptors: tuple[int, int]) -> None:
    """The worker ends by itself, because its descriptor is no socket."""
    server = ForkServer(clean_environment())
    first = await server.start_worker({"GATEWAY_WORKER_ID": str(uuid4())}, descriptors)
    second = await server.start_worker({"GATEWAY_WORKER_ID": str(uuid4())}, descriptors)
    second.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        assert await second.wait() in (-signal.SIGKILL, 1)
        assert await first.wait() != 0
    first.send_signal(signal.SIGTERM)  # it has ended: its number may be another's by now
    await server.close()


async def test_worker_reports_the_setting_that_its_fork_server_cannot_use() -> None:
    parent_socket, child_socket = socket.socketpair()
    parent_socket.setblocking(False)
    server = ForkServer(clean_environment() | {"JOURNAL_FLUSH_MS": "soon"})
    with parent_socket, child_socket, socket.create_server(("127.0.0.1", 0)) as listener:
        variables = {"GATEWAY_PARENT_FD": "0", "GATEWAY_WORKER_ID": str(uuid4())}
        worker = await server.start_worker(variables, (child_socket.fileno(), listener.fileno()))
        async with asyncio.timeout(60):
            message = await asyncio.get_running_loop().sock_recv(parent_socket, 65_536)
            assert await worker.wait() == MISCONFIGURED
    await server.close()
    assert message.startswith(b"JOURNAL_FLUSH_MS: ")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

"""Tests of the sockets between workers against other users of the machine."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from gateway.simulator import Simulator
from tests.stack import Gateway, serve_gateway

NOBODY = 65_534
KEY = "an-admins-key-0123456789"
FAKE_WORKER = "0" * 32
LIST_REQUEST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2025-06-18",
    "Mcp-Session-Id": f"x-{FAKE_WORKER}",
    "X-API-Key": KEY,
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture(autouse=True)
def temporary_directory(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A directory that all users share, like `/tmp`."""
    directory = Path(tempfile.mkdtemp(prefix="agw-", dir="/tmp"))
    directory.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    shutil.rmtree(directory)


async def find_socket_directory(database_url: str, simulator: Simulator, temporary_directory: Path) -> Path:
    """Return the directory that a gateway made and removed."""
    async with serve_gateway(database_url, simulator, None) as gateway:
        assert await send_request(gateway, FAKE_WORKER) == 404
        await open_session(gateway)
        [directory] = temporary_directory.glob("agw-*")
    assert not directory.exists()
    return directory


async def open_session(gateway: Gateway) -> None:
    """Open a legacy session, so that the worker listens."""
    client = {"name": "t", "version": "1"}
    parameters = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters}
    headers = {name: value for name, value in HEADERS.items() if name != "Mcp-Session-Id"}
    async with httpx2.AsyncClient(timeout=30) as http:
        assert (await http.post(f"{gateway.base_url}/mcp", json=body, headers=headers)).status_code == 200


async def send_request(gateway: Gateway, worker: str) -> int:
    """Send an admin's request for a session of that worker."""
    async with httpx2.AsyncClient(timeout=30) as http:
        headers = HEADERS | {"Mcp-Session-Id": f"x-{worker}"}
        return (await http.post(f"{gateway.base_url}/mcp", json=LIST_REQUEST, headers=headers)).status_code


@contextmanager
def listen(path: Path) -> Generator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield listener


def has_connection(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize(
    ("mode", "owner"),
    [(0o777, None), (0o750, None), pytest.param(0o700, NOBODY, marks=needs_root)],
    ids=["writable", "readable", "another user's"],
)
async def test_directory_that_another_user_made_gets_no_request(
    database_url: str, simulator: Simulator, temporary_directory: Path, mode: int, owner: int | None
) -> None:
    directory = await find_socket_directory(database_url, simulator, temporary_directory)
    directory.mkdir()
    directory.chmod(mode)
    with listen(directory / FAKE_WORKER) as attacker:
        if owner is not None:
            os.chown(directory, owner, owner)
        async with serve_gateway(database_url, simulator, None, api_key=SecretStr(KEY)) as gateway:
            assert await send_request(gateway, FAKE_WORKER) == 404
            assert not has_connection(attacker)
            assert [path.name for path in directory.iterdir()] == [FAKE_WORKER]


async def test_symbolic_link_to_a_directory_gets_no_request(
    database_url: str, simulator: Simulator, temporary_directory: Path
) -> None:
    directory = await find_socket_directory(database_url, simulator, temporary_directory)
    target = temporary_directory / "target"
    target.mkdir(mode=0o700)
    directory.symlink_to(target)
    with listen(target / FAKE_WORKER) as attacker:
        async with serve_gateway(database_url, simulator, None, api_key=SecretStr(KEY)) as gateway:
            assert await send_request(gateway, FAKE_WORKER) == 404
            assert not has_connection(attacker)


@needs_root
@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not report the peer")
async def test_socket_that_another_user_serves_gets_no_request(
    database_url: str, simulator: Simulator, temporary_directory: Path
) -> None:
    directory = await find_socket_directory(database_url, simulator, temporary_directory)
    async with serve_gateway(database_url, simulator, None, api_key=SecretStr(KEY)) as gateway:
        await open_session(gateway)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(directory / FAKE_WORKER))
            code = (
                "import os, socket, sys; listener = socket.socket(fileno=int(sys.argv[1]));"
                f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); listener.listen(); print(flush=True);"
                "print(len(listener.accept()[0].recv(65536)), flush=True)"
            )
            attacker = subprocess.Popen(
                [sys.executable, "-c", code, str(listener.fileno())],
                pass_fds=(listener.fileno(),),
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert attacker.stdout is not None
                assert attacker.stdout.readline() == "\n"
                assert await send_request(gateway, FAKE_WORKER) == 404
                assert attacker.stdout.readline() == "0\n"  # it accepted, and got nothing
            finally:
                attacker.kill()
                attacker.wait(30)


@needs_root
@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not report the peer")
async def test_worker_answers_no_request_of_another_user(
    database_url: str, simulator: Simulator, temporary_directory: Path
) -> None:
    """Open the directory and the socket to the other user."""
    async with serve_gateway(database_url, simulator, None, api_key=SecretStr(KEY)) as gateway:
        await open_session(gateway)
        [directory] = temporary_directory.glob("agw-*")
        [worker_socket] = directory.iterdir()
        for path in (directory, worker_socket):
            path.chmod(0o777)
        code = (
            f"import os, socket; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
            f"c = socket.socket(socket.AF_UNIX); c.connect({str(worker_socket)!r}); c.settimeout(30); print(c.recv(9))"
        )
        attack = await _run(code)
        assert attack in ("b''\n", "reset\n"), attack


async def _run(code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return "reset\n" if b"ConnectionResetError" in errors else output.decode() or errors.decode()

"""Tests of listening sockets and of the limit of open files."""

import asyncio
import socket
import subprocess
import sys

import pytest

from gateway_runtime.errors import ConfigError
from gateway_runtime.sockets import bind_socket


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The standard event loop: uvloop sets TCP_NODELAY by itself."""
    return "asyncio", {"use_uvloop": False}


async def test_accepted_connections_disable_nagles_algorithm() -> None:
    accepted = asyncio.get_running_loop().create_future()
    listener = bind_socket("127.0.0.1", 0, setting="GATEWAY_PORT")
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
    async with server:
        _, client = await asyncio.open_connection(*listener.getsockname())
        writer = await asyncio.wait_for(accepted, 30)
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
        writer.close()


def test_soft_limit_of_open_files_is_raised() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "from gateway_runtime.sockets import raise_open_file_limit; raise_open_file_limit();"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    soft, hard = map(int, subprocess.check_output([sys.executable, "-c", code], timeout=30).split())
    assert soft == min(hard, 65_536) if hard > 0 else soft == 65_536


def test_port_on_which_another_process_listens_meanwhile_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]

        class OvertakenSocket(socket.socket):
            def bind(self, address: tuple[str, int]) -> None:
                super().bind(address)
                other.listen()

        monkeypatch.setattr(socket, "socket", OvertakenSocket)
        message = f"TOOLS_SERVER_PORT: cannot listen on 127.0.0.1:{port}: Address already in use"
        with pytest.raises(ConfigError, match=f"^{message}$"):
            bind_socket("127.0.0.1", port, setting="TOOLS_SERVER_PORT", backlog=1)

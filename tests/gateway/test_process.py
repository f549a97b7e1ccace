"""What a server process does before it serves."""

import asyncio
import socket
import subprocess
import sys

import pytest

from gateway.process import bind


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The standard loop: uvloop takes care of it by itself."""
    return "asyncio", {"use_uvloop": False}


async def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    accepted = asyncio.get_running_loop().create_future()
    listener = bind("127.0.0.1", 0, setting="GATEWAY_PORT")
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
    async with server:
        _, client = await asyncio.open_connection(*listener.getsockname())
        writer = await asyncio.wait_for(accepted, 5)
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
        writer.close()


def test_shells_limit_of_open_files_is_none_for_streams() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "from gateway.process import allow_many_files; allow_many_files(); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    soft, hard = map(int, subprocess.check_output([sys.executable, "-c", code], timeout=20).split())
    assert soft == min(hard, 65_536) if hard > 0 else soft == 65_536

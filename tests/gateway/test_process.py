"""What a server process does before it serves."""

import asyncio
import socket
import subprocess
import sys

import pytest
import uvicorn

from gateway.server.http_server import GatewayHttpServer
from gateway_runtime.event_loop import event_loop_factory
from gateway_runtime.sockets import bind_socket


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The standard loop: uvloop takes care of it by itself."""
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


@pytest.mark.skipif(sys.platform == "win32", reason="needs uvloop")
def test_server_accepts_several_connections_per_loop_iteration() -> None:
    """A pass takes long while there are many streams; uvloop accepts one connection a pass of each socket."""

    async def passes_for(clients: int) -> int:
        listener = bind_socket("127.0.0.1", 0, setting="GATEWAY_PORT")
        config = uvicorn.Config(lambda *_: None, log_config=None, lifespan="off")
        server = GatewayHttpServer(config, lambda: None)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
        waiting = [socket.create_connection(listener.getsockname()) for _ in range(clients)]
        passes = 0
        while len(server.server_state.connections) < clients:
            passes += 1
            await asyncio.sleep(0)
        for client in waiting:
            client.close()
        server.should_exit = True
        await serving
        return passes

    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        assert runner.run(passes_for(64)) < 64 / 4


def test_soft_limit_of_open_files_is_raised() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "from gateway_runtime.sockets import raise_open_file_limit; raise_open_file_limit();"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    soft, hard = map(int, subprocess.check_output([sys.executable, "-c", code], timeout=30).split())
    assert soft == min(hard, 65_536) if hard > 0 else soft == 65_536

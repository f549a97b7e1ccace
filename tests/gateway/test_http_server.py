"""Test of how the gateway's HTTP server accepts connections."""

import asyncio
import socket
import sys

import aiohttp
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.api.http.errors import ServerErrorMiddleware
from gateway.server.http_server import GatewayHttpServer
from gateway_runtime.event_loop import event_loop_factory
from gateway_runtime.sockets import bind_socket
from tests.stack import Client, serve_asgi


@pytest.mark.skipif(sys.platform == "win32", reason="needs uvloop")
def test_server_accepts_several_connections_per_loop_iteration() -> None:
    """Uvloop accepts one connection per iteration and socket.

    With many streams an iteration takes long.
    """

    async def count_accepting_iterations(connections: int) -> int:
        listener = bind_socket("127.0.0.1", 0, setting="GATEWAY_PORT")
        config = uvicorn.Config(lambda *_: None, log_config=None, lifespan="off")
        server = GatewayHttpServer(config, lambda: None)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(connections)]
        iterations = accepted = 0
        while accepted < connections:
            await asyncio.sleep(0)
            before, accepted = accepted, len(server.server_state.connections)
            iterations += accepted > before  # a busy machine may deliver a connection late
        for client in clients:
            client.close()
        server.should_exit = True
        await serving
        return iterations

    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        assert runner.run(count_accepting_iterations(64)) < 64 / 4


async def test_request_that_outlasts_the_stop_of_its_server_is_a_503() -> None:
    """A request that waits for the database may outlast the grace period."""
    started = asyncio.Event()

    async def wait_forever(scope: Scope, _receive: Receive, _send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # the application has no lifespan
        started.set()
        await asyncio.Event().wait()

    async with aiohttp.ClientSession() as session:
        async with serve_asgi(ServerErrorMiddleware(wait_forever)) as base_url:
            request = asyncio.create_task(Client(base_url, session).get("/api/v1/turns"))
            await started.wait()
        reply = await request
    assert (reply.status, reply.body["error"]["code"]) == (503, "server_stopping")

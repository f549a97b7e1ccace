"""Gateways and tool servers in the test's event loop, and their clients."""

import json
import os
import random
import socket
from asyncio import create_task, sleep, wait
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import uvicorn
from pydantic import SecretStr
from starlette.datastructures import State

from gateway.app import create_app
from gateway.common.timeouts import Timeouts
from gateway.config import Settings
from gateway.simulator import Simulator
from gateway_runtime.http_protocol import HttpProtocol
from tools_server.config import Settings as ToolsSettings
from tools_server.server import create_app as create_tools_app
from tools_server.server import create_server
from tools_server.tasks.store import TaskStore

SECRET = "a-secret-of-the-tests-that-is-long-enough"
JsonObject = dict[str, Any]
TIMEOUTS = Timeouts(journal=30.0, mcp_connect=30.0, health=0.0, model_health=0.0)
"""Long enough for a stalled machine; the defaults fit production."""
PATIENT_SETTINGS: dict[str, Any] = {
    "model_retry_delay": 0.01,
    "heartbeat_timeout_seconds": 60.0,
    "database_statement_timeout_seconds": 60.0,
    "database_lock_timeout_seconds": 60.0,
    "database_silence_timeout_seconds": 90.0,
    "shed_lag_seconds": None,
}
_PORTS = range(10_000, 32_000)
"""Ports below those of outgoing connections on Linux and macOS."""
_own_ports = _PORTS[
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) :: int(
        os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    )
]
_next_port = iter(random.SystemRandom().sample(_own_ports, len(_own_ports)))


def find_free_port() -> int:
    """Return a free port, each only once per run of the tests.

    Between the look and the use, another process of the run would take the same one.
    """
    for port in _next_port:
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class _InitArgumentsOnly:
    """Mixin for settings that ignores the environment and `.env`."""

    @classmethod
    def settings_customise_sources(cls, _cls: Any, init_settings: Any, **_others: Any) -> Any:
        return (init_settings,)


class _GatewaySettings(_InitArgumentsOnly, Settings):
    pass


class _ToolsSettings(_InitArgumentsOnly, ToolsSettings):
    pass


class _Server(uvicorn.Server):
    """A server that leaves the signal handlers of the test process alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def serve_asgi(
    app: Any, port: int = 0, http: type[HttpProtocol] = HttpProtocol, **options: Any
) -> AsyncGenerator[str]:
    """Serve an ASGI application over real HTTP; yields its URL.

    `options` are uvicorn's.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    defaults = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1, "timeout_keep_alive": 75}
    options = defaults | options
    config = uvicorn.Config(app, http=http, **options)
    server = _Server(config)
    serving = create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not serving.done(), serving.exception()
        await sleep(0.002)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await wait([serving], timeout=30)


@asynccontextmanager
async def serve_tools(database_url: str, *, is_open: bool = False, **values: Any) -> AsyncGenerator[str]:
    """Serve the real tool server; yields its MCP URL.

    With `is_open`, callers on this machine need no token.
    """
    settings = _ToolsSettings(tools_server_secret=None if is_open else SecretStr(SECRET), **values)
    store = TaskStore(database_url, timeout_seconds=60)
    server = create_server(settings, store)
    try:
        async with serve_asgi(create_tools_app(server, settings)) as address:
            yield f"{address}/mcp"
            server.close_listen_streams()
    finally:
        await store.close()


@dataclass
class Event:
    """An event of a native stream."""

    id: int | None
    type: str | None
    data: Any


@dataclass
class Reply:
    """A complete response: status, headers, and events or body."""

    status: int
    headers: Any
    events: list[Event] = field(default_factory=list)
    body: Any = None

    def get_event_data(self, kind: str) -> list[Any]:
        return [event.data for event in self.events if event.type == kind]

    @property
    def text(self) -> str:
        """The text of the last step that has any."""
        steps: dict[int, str] = {}
        for delta in self.get_event_data("text.delta"):
            steps[delta["step"]] = steps.get(delta["step"], "") + delta["text"]
        return steps[max(steps)] if steps else ""

    @property
    def is_done(self) -> bool:
        return bool(self.events) and self.events[-1] == Event(None, None, "[DONE]")


class Stream:
    """An open native stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.received_events: list[Event] = []

    async def read_until(self, kind: str) -> Event:
        """Read events up to the first of that kind, and return it."""
        async for event in self.read_events():
            if event.type == kind:
                return event
        raise AssertionError(f"no {kind} in {[event.type for event in self.received_events]}")

    async def read_events(self) -> AsyncGenerator[Event]:
        frame: dict[str, str] = {}
        async for raw in self.response.content:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                frame[name] = value
            elif frame:
                data = frame["data"]
                event = Event(
                    int(frame["id"]) if "id" in frame else None,
                    frame.get("event"),
                    data if data == "[DONE]" else json.loads(data),
                )
                frame = {}
                self.received_events.append(event)
                yield event


class Client:
    """An HTTP client of the gateway."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self.base_url = base_url
        self.session = session

    @asynccontextmanager
    async def stream(self, prompt: str | None = None, **body: Any) -> AsyncGenerator[Stream]:
        async with self.session.post(
            f"{self.base_url}/api/v1/chat/stream", json=_make_chat_body(prompt, body)
        ) as response:
            yield Stream(response)

    async def chat_stream(self, prompt: str | None = None, **body: Any) -> Reply:
        async with self.stream(prompt, **body) as stream:
            reply = Reply(stream.response.status, stream.response.headers)
            if stream.response.content_type == "text/event-stream":
                reply.events = [event async for event in stream.read_events()]
            else:
                reply.body = await stream.response.json()
            return reply

    async def chat(self, prompt: str | None = None, **body: Any) -> Reply:
        return await self.post("/api/v1/chat", _make_chat_body(prompt, body))

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        async with self.session.post(f"{self.base_url}{path}", json=body, **options) as response:
            return Reply(response.status, response.headers, body=await response.json())

    async def get(self, path: str, **options: Any) -> Reply:
        async with self.session.get(f"{self.base_url}{path}", **options) as response:
            return Reply(response.status, response.headers, body=await response.json(content_type=None))


def _make_chat_body(prompt: str | None, body: JsonObject) -> JsonObject:
    return body if prompt is None else {"messages": [{"role": "user", "content": prompt}], **body}


@dataclass
class Gateway(Client):
    """A gateway under test and a client of it."""

    base_url: str
    session: aiohttp.ClientSession
    state: State
    simulator: Simulator


ServeSharedGateway = Callable[..., Awaitable[Gateway]]


@asynccontextmanager
async def serve_gateway(
    database_url: str,
    simulator: Simulator,
    tools_url: str | None,
    *,
    port: int = 0,
    timeouts: Timeouts = TIMEOUTS,
    http: type[HttpProtocol] = HttpProtocol,
    **settings: Any,
) -> AsyncGenerator[Gateway]:
    """Serve the real gateway with a database, simulator and tool server."""
    defaults: dict[str, Any] = {
        "groq_api_key": SecretStr("simulated"),
        "groq_base_url": simulator.base_url,
        "groq_simulated": True,
        "mcp_server_url": tools_url or "http://127.0.0.1:9/mcp",
        "tools_server_secret": SecretStr(SECRET),
        **PATIENT_SETTINGS,
    }
    all_settings = _GatewaySettings(database_url=database_url, **defaults | settings)
    app = create_app(all_settings, timeouts=timeouts)
    timeout = aiohttp.ClientTimeout(total=60)
    async with serve_asgi(app, port, http) as base_url, aiohttp.ClientSession(timeout=timeout) as session:
        yield Gateway(base_url, session, app.state, simulator)


async def insert_rows(gateway: Gateway, statement: str, rows: Sequence[Any]) -> None:
    """Insert rows into a gateway's database over a connection of its own."""
    connection = await asyncpg.connect(gateway.state.database.connector.dsn)
    try:
        await connection.executemany(statement, rows)
    finally:
        await connection.close()

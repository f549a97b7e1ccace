"""Questions of legacy HTTP servers on the GET stream."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from gateway.domain.messages import Answer, Principal, Question
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import CallObserver, ToolCallRequest
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.gateway.mcp_client.test_toolbox import connect_toolbox, get_text
from tests.stack import serve_asgi


class StreamAskingServer(RawServer):
    """Asks on the GET stream for every call."""

    def __init__(self) -> None:
        super().__init__(make_raw_tool("ask"), modern=False, tools__call=self._ask)
        self._ids = count(1)
        self._open: dict[str, asyncio.Future[Any]] = {}

    async def _ask(self, params: Any, _request: Request) -> Any:
        key = f"q{next(self._ids)}"
        self._open[key] = asyncio.get_running_loop().create_future()
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        question = {"message": f"question of {params['arguments']['name']}", "requestedSchema": schema}
        self.streams[0].put_nowait({"id": key, "method": "elicitation/create", "params": question})
        answer = await self._open[key]
        return {"content": [{"type": "text", "text": str((answer.get("content") or answer).get("text"))}]}

    async def _respond(self, request: Request) -> Response:
        if request.method == "POST" and "method" not in (message := await request.json()):
            self._open[message["id"]].set_result(message["result"])
            return Response(status_code=202)
        return await super()._respond(request)


class Person(CallObserver):
    """Answers with the own name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.questions: list[str] = []

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None: ...
    def on_log(self, level: str, data: Any, logger: str | None) -> None: ...

    async def ask_user(self, question: Question) -> Answer:
        self.questions.append(question.message)
        await asyncio.sleep(0.01)
        return Answer("accept", {"text": f"answer of {self.name}"})


@asynccontextmanager
async def connect_server(server: StreamAskingServer) -> AsyncGenerator[McpToolbox]:
    async with serve_asgi(server) as url:
        config = ServerConfig(name="s", prefix="", url=f"{url}/mcp", protocol="legacy")
        async with connect_toolbox(config) as toolbox:
            yield toolbox


@pytest.fixture
async def toolbox() -> AsyncGenerator[McpToolbox]:
    server = StreamAskingServer()
    async with connect_server(server) as toolbox:
        yield toolbox


async def call(toolbox: McpToolbox, person: Person) -> str:
    spec = toolbox.find_tool("ask")
    assert spec is not None
    return get_text(await toolbox.call_tool(ToolCallRequest(spec, {"name": person.name}, Principal("ada"), person)))  # type: ignore[arg-type]


async def test_calls_of_a_server_that_has_asked_on_its_stream_get_their_own_questions(toolbox: McpToolbox) -> None:
    first = Person("first")
    assert await call(toolbox, first) == "answer of first"
    people = [Person(f"p{number}") for number in range(5)]
    assert await asyncio.gather(*(call(toolbox, person) for person in people)) == [
        f"answer of {person.name}" for person in people
    ]
    assert [person.questions for person in people] == [[f"question of {person.name}"] for person in people]


async def test_first_call_waits_until_the_server_can_ask() -> None:
    class SlowServer(StreamAskingServer):
        async def _respond(self, request: Request) -> Response:
            if request.method == "GET":
                await asyncio.sleep(0.1)
            return await super()._respond(request)

    async with connect_server(SlowServer()) as toolbox:
        assert await call(toolbox, Person("ada")) == "answer of ada"

"""Tool calls over HTTP whose answers are more than a result."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.mcp_client.connection import question_routing
from gateway.mcp_client.connection.message_tap import SentRequest
from gateway.mcp_client.connection.ongoing_calls import OngoingCall
from gateway.ports.servers import ServerConfig
from tests.eventually import eventually
from tests.gateway.mcp_client.odd_http_server import OddHttpServer, stay_silent
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.gateway.mcp_client.test_toolbox import call_tool, connect_toolbox, get_text
from tests.stack import serve_asgi

LOG = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "working"}}


class AnsweringServer(RawServer):
    """Answers calls by `answer_call`."""

    def __init__(self, *, modern: bool = True) -> None:
        super().__init__(make_raw_tool("echo"), modern=modern)
        self.requests: list[Request] = []
        """The calls that have arrived."""

    async def _respond(self, request: Request) -> Response:
        message = await request.json() if request.method == "POST" else {}
        if message.get("method") != "tools/call":
            return await super()._respond(request)
        self.requests.append(request)
        return self.answer_call(request, message["id"])

    def answer_call(self, request: Request, request_id: int) -> Response:
        return JSONResponse(self.make_result(request_id))

    def make_result(self, request_id: int) -> dict[str, Any]:
        result = {**self.hints, "content": [{"type": "text", "text": "done"}]}
        return {"jsonrpc": "2.0", "id": request_id, "result": result}


class SplittingServer(AnsweringServer):
    """Sends the events of an answer in pieces."""

    def __init__(self, make_pieces: Any, *, modern: bool) -> None:
        super().__init__(modern=modern)
        self._make_pieces = make_pieces

    def answer_call(self, request: Request, request_id: int) -> Response:
        pieces: Sequence[str] = self._make_pieces(f"data: {json.dumps(self.make_result(request_id))}\n\n")

        async def send_pieces() -> AsyncGenerator[str]:
            for piece in pieces:
                yield piece
                await asyncio.sleep(0.05)  # so that each arrives alone

        return StreamingResponse(send_pieces(), media_type="text/event-stream")


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
@pytest.mark.parametrize(
    "make_pieces",
    [
        lambda event: [event],
        lambda event: [f"event: message\r\nid: 7\r\n{event[:-2]}\r\n\r\n"],
        lambda event: [event[:20], event[20:]],
        lambda event: ["id: 1\ndata:\n\n", event],
        lambda event: [f"data: {json.dumps(LOG)}\n\n{event}"],
        lambda event: [f": a comment\n\n{event}"],
    ],
    ids=["one", "with-an-id", "in-two", "after-an-empty-one", "after-a-log-line", "after-a-comment"],
)
async def test_result_in_an_event_is_read(make_pieces: Any, modern: bool) -> None:
    async with (
        serve_asgi(SplittingServer(make_pieces, modern=modern)) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        for _ in range(2):
            assert get_text(await call_tool(toolbox, "echo")) == "done"


class EventServer(AnsweringServer):
    """Answers calls by an event of a stream.

    The stream may stay open behind it.
    """

    def __init__(self, *, modern: bool, stays_open: bool) -> None:
        super().__init__(modern=modern)
        self._stays_open = stays_open

    def answer_call(self, request: Request, request_id: int) -> Response:
        async def send_event() -> AsyncGenerator[str]:
            yield f"data: {json.dumps(self.make_result(request_id))}\n\n"
            if self._stays_open:
                await asyncio.Event().wait()

        return StreamingResponse(send_event(), media_type="text/event-stream")


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
@pytest.mark.parametrize("stays_open", [False, True], ids=["stream-ends", "stream-stays-open"])
async def test_calls_share_a_connection_unless_its_stream_stays_open(modern: bool, stays_open: bool) -> None:
    server = EventServer(modern=modern, stays_open=stays_open)
    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        for _ in range(6):
            assert get_text(await call_tool(toolbox, "echo")) == "done"
    connections = {request.client for request in server.requests}
    assert (len(connections) == 6) == stays_open


class CookieServer(AnsweringServer):
    def answer_call(self, request: Request, request_id: int) -> Response:
        response = super().answer_call(request, request_id)
        response.set_cookie("route", "7")
        return response


async def test_cookie_of_an_answer_comes_with_the_next_call() -> None:
    server = CookieServer()
    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        for _ in range(3):
            assert get_text(await call_tool(toolbox, "echo")) == "done"
    assert [request.cookies.get("route") for request in server.requests] == [None, "7", "7"]


class MovedServer(AnsweringServer):
    def answer_call(self, request: Request, request_id: int) -> Response:
        if request.url.path == "/mcp":
            return RedirectResponse("/mcp/", status_code=307)
        return super().answer_call(request, request_id)


async def test_redirected_call_is_made_once_at_its_new_address() -> None:
    server = MovedServer()
    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        assert get_text(await call_tool(toolbox, "echo")) == "done"
    assert [request.url.path for request in server.requests] == ["/mcp", "/mcp/"]
    first, second = server.requests
    assert await first.json() == await second.json()


class CutResponse(JSONResponse):
    """Ends the connection in place of the body's last chunk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


class CuttingServer(AnsweringServer):
    def answer_call(self, request: Request, request_id: int) -> Response:
        return CutResponse(self.make_result(request_id))


async def test_whole_result_is_read_before_the_connection_fails() -> None:
    async with (
        serve_asgi(CuttingServer()) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        assert get_text(await call_tool(toolbox, "echo")) == "done"


class DoubtfulServer(AnsweringServer):
    def answer_call(self, request: Request, request_id: int) -> Response:
        return JSONResponse(self.make_result(request_id) | {"error": {"code": -32001, "message": "It broke."}})


async def test_answer_with_an_error_beside_its_result_is_an_error() -> None:
    async with (
        serve_asgi(DoubtfulServer()) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        assert "It broke." in get_text(await call_tool(toolbox, "echo"))


async def test_credentials_of_an_address_come_with_each_call() -> None:
    server = AnsweringServer()
    async with (
        serve_asgi(server) as address,
        connect_toolbox(
            ServerConfig(name="t", url=f"{address.replace('://', '://ada:secret@')}/mcp", prefix="")
        ) as toolbox,
    ):
        assert get_text(await call_tool(toolbox, "echo")) == "done"
    assert server.requests[0].headers["authorization"].startswith("Basic ")


class OtherStreamServer(AnsweringServer):
    """Answers calls on the stream of its own messages."""

    def answer_call(self, request: Request, request_id: int) -> Response:
        message = self.make_result(request_id)
        self.streams[0].put_nowait({"id": request_id, "result": message["result"]})

        async def send_nothing() -> AsyncGenerator[str]:
            while not await request.is_disconnected():
                await asyncio.sleep(0.05)
            yield ""

        return StreamingResponse(send_nothing(), media_type="text/event-stream")


async def test_result_on_another_stream_ends_the_call() -> None:
    async with (
        serve_asgi(OtherStreamServer(modern=False)) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        assert get_text(await call_tool(toolbox, "echo")) == "done"


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
async def test_end_of_the_session_ends_its_calls(modern: bool) -> None:
    odd = OddHttpServer(modern=modern, call=stay_silent)
    async with (
        serve_asgi(odd) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        call = asyncio.create_task(call_tool(toolbox, "slow"))
        async with asyncio.timeout(30):
            while "tools/call" not in odd.receives:
                await asyncio.sleep(0.01)
            await toolbox.disconnect_servers()
            result = await call
    assert (result.outcome, "was lost" in get_text(result)) == ("unknown", True)


class BusyServer(AnsweringServer):
    """Answers calls on its own stream, and cancellations when it may."""

    def __init__(self) -> None:
        super().__init__(modern=False)
        self.open_calls: list[int] = []
        self.cancellations = 0
        self.may_answer = asyncio.Event()

    async def _respond(self, request: Request) -> Response:
        if request.method == "POST" and (await request.json())["method"] == "notifications/cancelled":
            self.cancellations += 1
            await self.may_answer.wait()
        return await super()._respond(request)

    def answer_call(self, request: Request, request_id: int) -> Response:
        self.open_calls.append(request_id)

        async def send_nothing() -> AsyncGenerator[str]:
            try:
                await asyncio.Event().wait()
                yield ""
            finally:  # the client has closed the connection
                self.open_calls.remove(request_id)

        return StreamingResponse(send_nothing(), media_type="text/event-stream")

    def answer_elsewhere(self, request_id: int) -> None:
        self.streams[0].put_nowait({"id": request_id, "result": self.make_result(request_id)["result"]})


async def test_answer_to_a_call_that_is_being_cancelled_leaves_the_session_open() -> None:
    server = BusyServer()
    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        calls: list[asyncio.Task[Any]] = []
        for count in range(1, 4):
            calls.append(asyncio.create_task(call_tool(toolbox, "echo")))
            await eventually(lambda count=count: len(server.open_calls) == count)
        _, second, third = server.open_calls
        calls[0].cancel()
        await eventually(lambda: server.cancellations == 1)  # the next notification waits for the answer to this one
        calls[1].cancel()
        await eventually(lambda: server.open_calls == [third])
        server.answer_elsewhere(second)
        server.answer_elsewhere(third)
        assert get_text(await calls[2]) == "done"
        server.may_answer.set()
        await asyncio.wait(calls)
    assert [call.cancelled() for call in calls] == [True, True, False]


class SilentServer(AnsweringServer):
    """Does not answer calls."""

    def answer_call(self, request: Request, request_id: int) -> Response:
        async def send_nothing() -> AsyncGenerator[str]:
            await asyncio.Event().wait()
            yield ""

        return StreamingResponse(send_nothing(), media_type="text/event-stream")


def count_kept_requests(text: str) -> int:
    return sum(isinstance(kept, SentRequest) and text in str(kept.params) for kept in gc.get_objects())


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
async def test_cancelled_call_leaves_no_arguments_in_memory(modern: bool) -> None:
    server = SilentServer(modern=modern)
    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        call = asyncio.create_task(call_tool(toolbox, "echo", text="long"))
        await eventually(lambda: server.requests)
        assert count_kept_requests("'text': 'long'") == 1
        call.cancel()
        await asyncio.wait([call])
        assert count_kept_requests("'text': 'long'") == 0


async def test_call_that_was_given_up_is_forgotten_when_the_server_has_ended_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(question_routing, "_GIVEN_UP_SECONDS", 0.0)
    server = SilentServer()

    def count_kept_calls() -> int:
        gc.collect()
        return sum(isinstance(kept, OngoingCall) for kept in gc.get_objects())

    async with (
        serve_asgi(server) as address,
        connect_toolbox(ServerConfig(name="t", url=f"{address}/mcp", prefix="")) as toolbox,
    ):
        before = count_kept_calls()
        for count in range(1, 4):
            call = asyncio.create_task(call_tool(toolbox, "echo"))
            await eventually(lambda count=count: len(server.requests) == count)
            call.cancel()
            await asyncio.wait([call])
            del call
        assert count_kept_calls() <= before + 1

"""The simulator's HTTP server."""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.common.concurrency import WorkInterrupted, run_until
from gateway.domain.messages import JsonObject
from gateway.llm.recording import RecordedExchange, Recordings
from gateway.simulator.faults import Fault, FaultPlan
from gateway.simulator.file_routes import FileRoutes
from gateway.simulator.media_routes import MediaRoutes
from gateway.simulator.pieces import (
    Aborted,
    ScriptedError,
    make_json_response,
    make_tool_use_failed,
    raise_fault,
    wait_for_disconnect,
)
from gateway.simulator.replies import Reply, SimulatedCall
from gateway.simulator.request import ApiError, Chat, check_api_key, list_models, parse_chat_request
from gateway.simulator.responder import make_reply
from gateway.simulator.wire import PromptCache, SimulatedAnswer, encode_frame

_FRAMES_PER_WRITE = 64
_ENDLESS_TEXT = "and so on, " * 10
_RATE_LIMIT = 100_000_000  # so high that it never limits a client


class SimulatorSettings(msgspec.Struct, frozen=True):
    """Settings of the simulator.

    `tokens_per_second` 0: no delay. `first_token_delay` in seconds. `replay`: directory of recorded exchanges.
    With `replays_only`, a request that was not recorded is an error. `context_window` is that of each model.
    """

    tokens_per_second: float = 150.0
    first_token_delay: float = 0.05
    replay: Path | None = None
    replays_only: bool = False
    context_window: int = 131_072


class Simulator:
    """The simulator's state and routes.

    Tests inspect the requests and streams, and inject faults.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.base_url = ""
        self.faults = FaultPlan()
        self.requests: deque[JsonObject] = deque(maxlen=1000)
        self.open_streams = 0
        self.cancelled_streams = 0
        self.cache = PromptCache()
        self.uploads = FileRoutes(self.faults, self.record_request, lambda: self.is_paused)
        self.replayed_requests = 0
        self._recordings = Recordings(settings.replay) if settings.replay is not None else None
        self._changed = asyncio.Condition()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def pause_streams(self) -> None:
        """Send no further chunk of any stream until `resume_streams`.

        A stream that begins meanwhile sends its first chunk.
        """
        self._flowing.clear()

    @property
    def is_paused(self) -> bool:
        return not self._flowing.is_set()

    def resume_streams(self) -> None:
        self._flowing.set()

    async def wait_until_resumed(self) -> None:
        """Return while streams are not paused."""
        await self._flowing.wait()

    async def wait_until(self, condition: Callable[["Simulator"], bool], seconds: float = 30.0) -> None:
        """Return once the condition holds.

        Raises:
            TimeoutError: the condition does not hold in time.
        """
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def notify_changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def record_request(self, request: JsonObject) -> None:
        self.requests.append(request)
        await self.notify_changed()

    async def track_stream(self, work: Coroutine[object, object, None], receive: Receive) -> None:
        """Send a stream until its client disconnects, and count it meanwhile."""
        self.open_streams += 1
        await self.notify_changed()
        try:
            await run_until(work, wait_for_disconnect(receive))
        except WorkInterrupted:
            self.cancelled_streams += 1
        finally:
            self.open_streams -= 1
            await self.notify_changed()

    def create_app(self) -> Starlette:
        routes = [
            Route("/openai/v1/chat/completions", self._complete_chat, methods=["POST"]),
            *MediaRoutes(self.faults, self.record_request, self.track_stream, self.wait_until_resumed).list_routes(),
            *self.uploads.list_routes(),
            Route("/openai/v1/models", self._list_models),
            Route("/openai/v1/models/{name:path}", self._get_model),
            Route("/simulator/faults", self._set_faults, methods=["POST", "DELETE"]),
            Route("/simulator/requests", self._get_requests),
        ]
        return Starlette(routes=routes, exception_handlers={ApiError: _answer_api_error, 404: _answer_not_found})

    async def _list_models(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        return make_json_response({"object": "list", "data": list_models(self.settings.context_window)})

    async def _get_model(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        name = request.path_params["name"]
        model = next((model for model in list_models(self.settings.context_window) if model["id"] == name), None)
        if model is None:
            raise ApiError(404, f"The model `{name}` does not exist", "model_not_found")
        return make_json_response(model)

    async def _set_faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.faults.clear_faults()
        else:
            self.faults.add_faults(*msgspec.json.decode(await request.body(), type=list[Fault]))
        return make_json_response({"faults": list(self.faults)})

    async def _get_requests(self, _request: Request) -> Response:
        return make_json_response(list(self.requests))

    async def _complete_chat(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        body = await request.body()
        if self._recordings is not None and (exchange := self._recordings.take_response(body)) is not None:
            self.replayed_requests += 1
            await self.record_request(msgspec.json.decode(body))
            return _ReplayedResponse(exchange)
        if self.settings.replays_only:
            raise ApiError(400, "There is no recording of this request.", "not_recorded")
        chat = parse_chat_request(body)
        await self.record_request(msgspec.json.decode(body))
        faults = self.faults.take_faults(chat)
        raise_fault(faults)
        answer = SimulatedAnswer(chat, _choose_reply(chat, faults), self.cache)
        headers = {"x-request-id": answer.request_id} | _make_limit_headers(answer)
        if chat.stream:
            return _PacedStream(self, answer, faults, headers)
        if (slow_start := faults.get("slow_first_token")) is not None:
            await asyncio.sleep(slow_start.seconds)
        return make_json_response(answer.to_response(), headers=headers)


class _ReplayedResponse(Response):
    """A recorded response, chunk by chunk.

    An incomplete one lasts until the client disconnects.
    """

    def __init__(self, exchange: RecordedExchange) -> None:
        super().__init__(status_code=exchange.status, headers=exchange.headers)
        del self.headers["content-length"]
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._exchange.status, "headers": self.raw_headers})
        for chunk in self._exchange.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
        match self._exchange.end:
            case "complete":
                await send({"type": "http.response.body", "body": b""})
            case "broken":
                raise Aborted
            case "silent" | "left":
                await wait_for_disconnect(receive)


class _PacedStream(Response):
    """The answer as a paced stream, which stops when its client disconnects."""

    media_type = "text/event-stream"

    def __init__(
        self, simulator: Simulator, answer: SimulatedAnswer, faults: dict[str, Fault], headers: dict[str, str]
    ) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._simulator = simulator
        self._answer = answer
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._simulator.track_stream(self._send_frames(send), receive)

    async def _send_frames(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in _split_frames(self._generate_frames(), small="split_frames" in self._faults):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _generate_frames(self) -> AsyncGenerator[bytes]:
        settings, chunks = self._simulator.settings, self._answer.make_frames()
        slow_start = self._faults.get("slow_first_token")
        await asyncio.sleep(slow_start.seconds if slow_start else settings.first_token_delay)
        pause = 1 / settings.tokens_per_second if settings.tokens_per_second else 0.0
        burst = 1 if pause or self._faults else _FRAMES_PER_WRITE
        start = 0
        while start < len(chunks):
            async for frame in self._apply_faults(start):
                yield frame
            end = start + (1 if self._simulator.is_paused else burst)
            yield b"".join(chunks[start:end])
            start = end
            await asyncio.sleep(pause)
            await self._simulator.wait_until_resumed()
        if (open_end := self._faults.get("no_done")) is not None:
            await asyncio.sleep(open_end.seconds)
            return
        yield b"data: [DONE]\n\n"

    async def _apply_faults(self, sent: int) -> AsyncGenerator[bytes]:
        """Yield the frames of faults after `sent` chunks.

        A fault may also raise to end the stream.
        """
        for kind, fault in self._faults.items():
            if fault.after_chunks != sent:
                continue
            match kind:
                case "stall":
                    await asyncio.sleep(fault.seconds)
                case "endless":
                    while True:
                        yield self._answer.make_text_frames(_ENDLESS_TEXT, count=_FRAMES_PER_WRITE)
                        await asyncio.sleep(fault.seconds)
                case "garbage":
                    yield b"data: {this is not JSON\n\n"
                case "mid_stream_error":
                    yield encode_frame(
                        {"error": fault.error or {"message": "broke", "type": "server_error"}}, event="error"
                    )
                    raise _EndOfStream
                case "data_error":
                    yield encode_frame({"error": fault.error or {"message": "broke", "type": "server_error"}})
                    raise _EndOfStream
                case "malformed_tool_call":
                    yield encode_frame({"error": make_tool_use_failed(fault)}, event="error")
                    raise _EndOfStream
                case "x_groq_error":
                    yield self._answer.make_error_frame(str(fault.error or "stopped early"))
                    raise _EndOfStream
                case "cut":
                    raise _EndOfStream
                case "abort":
                    raise Aborted
                case _:
                    pass  # already applied before the stream


class _EndOfStream(Exception):
    """Raised to end the body of the stream."""


async def _split_frames(frames: AsyncGenerator[bytes], *, small: bool) -> AsyncGenerator[bytes]:
    try:
        async for data in frames:
            size = 3 if small else len(data) or 1
            for start in range(0, len(data), size):
                yield data[start : start + size]
    except _EndOfStream:
        return


def _choose_reply(chat: Chat, faults: dict[str, Fault]) -> Reply:
    """Return the reply of the model, changed by the faults."""
    if (fault := faults.get("tool_calls")) is not None:
        return Reply(calls=[SimulatedCall(str(call["name"]), call.get("arguments", {})) for call in fault.calls])
    if (fault := faults.get("text")) is not None:
        return Reply(fault.text)
    if "unknown_tool" in faults:
        return Reply(calls=[SimulatedCall("no_such_tool", {"x": 1})])
    reply = make_reply(chat)
    name = reply.calls[0].name if reply.calls else next(iter(chat.functions), "calculator")
    if "invalid_json_arguments" in faults:
        return Reply(calls=[SimulatedCall(name, '{"expression": "1+')])
    if "bad_arguments" in faults:
        return Reply(calls=[SimulatedCall(name, {"no_such_argument": [1, 2]})])
    return reply


def _make_limit_headers(answer: SimulatedAnswer) -> dict[str, str]:
    used_tokens = answer.usage["total_tokens"]
    return {
        "x-ratelimit-limit-requests": str(_RATE_LIMIT),
        "x-ratelimit-remaining-requests": str(_RATE_LIMIT - 1),
        "x-ratelimit-reset-requests": "0.864ms",
        "x-ratelimit-limit-tokens": str(_RATE_LIMIT),
        "x-ratelimit-remaining-tokens": str(_RATE_LIMIT - used_tokens),
        "x-ratelimit-reset-tokens": f"{used_tokens / _RATE_LIMIT * 60:.3f}s",
    }


async def _answer_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if isinstance(error, ScriptedError):
        if isinstance(error.scripted, str):
            return Response(error.scripted, error.status, error.headers, "text/html")
        return make_json_response(error.scripted or error.body, error.status, error.headers)
    return make_json_response(error.body, error.status)


async def _answer_not_found(request: Request, _error: Exception) -> Response:
    return make_json_response(
        {"error": {"message": f"Unknown request URL: {request.url.path}", "code": "unknown_url"}}, 404
    )


class _QuietServer(uvicorn.Server):
    """A server that leaves the handling of signals to its program."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


_SERVER_LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@contextmanager
def _quiet_loggers() -> Generator[None]:
    """Silence uvicorn's loggers, which a gateway in the same process uses too."""
    levels = {name: logging.getLogger(name).level for name in _SERVER_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@asynccontextmanager
async def serve_simulator(
    settings: SimulatorSettings | None = None, listener: socket.socket | None = None
) -> AsyncGenerator[Simulator]:
    """Serve in the running event loop.

    Without a listener, serve on any free loopback port.
    """
    simulator = Simulator(settings or SimulatorSettings())
    if listener is None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        simulator.create_app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=0,
        server_header=False,
    )
    server = _QuietServer(config)
    with _quiet_loggers():
        server_task = asyncio.create_task(server.serve(sockets=[listener]), name="simulator")
        simulator.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:
            if server_task.done():
                server_task.result()
            await asyncio.sleep(0.005)
    try:
        yield simulator
    finally:
        server.should_exit = True
        server.force_exit = True
        with _quiet_loggers():  # requests that are broken off at once are no error
            await asyncio.wait([server_task], timeout=2)

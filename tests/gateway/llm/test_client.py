"""Requests to a model server and the translation of its responses."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestServer
from multidict import CIMultiDictProxy

from gateway.domain.errors import ModelError, ModelRequestRefused, ModelStreamBroken, ModelUnavailable
from gateway.domain.messages import JsonObject, Message, ToolCall
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.llm.providers import groq, openai
from gateway.llm.providers.groq import create_groq_model
from gateway.llm.providers.openai import create_openai_model
from gateway.ports.model import ModelCall
from tests.gateway.llm.test_retries import Sink


@asynccontextmanager
async def serve_errors(received: list[CIMultiDictProxy[str]]) -> AsyncGenerator[str]:
    """Run a server that responds with an error.

    It records the headers of each request.
    """

    async def record_headers(request: web.Request) -> web.Response:
        received.append(request.headers)
        return web.Response(status=500)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", record_headers)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))


@pytest.mark.parametrize("make", [create_groq_model, create_openai_model])
async def test_request_contains_no_details_of_this_machine(
    make: Callable[[ModelServerOptions], OpenAICompatibleModel],
) -> None:
    received: list[CIMultiDictProxy[str]] = []
    async with serve_errors(received) as url:
        model = make(ModelServerOptions(api_key="key-of-ours", base_url=url))
        call = ModelCall(model="m", messages=(Message("user", "Hello"),))
        for _ in range(2):
            with pytest.raises(ModelError):
                await model.complete(call, Sink())
        await model.close()
    assert len(received) == 2
    for headers in received:
        assert headers["Authorization"] == "Bearer key-of-ours"
        assert headers["Content-Type"] == "application/json"
        assert not [name for name in headers if name.lower().startswith("x-stainless")]


@pytest.mark.parametrize("make", [create_groq_model, create_openai_model])
async def test_unrequested_compression_of_a_stream_is_decoded(
    make: Callable[[ModelServerOptions], OpenAICompatibleModel],
) -> None:
    accept_encodings: list[str] = []

    async def respond(request: web.Request) -> web.StreamResponse:
        accept_encodings.append(request.headers["Accept-Encoding"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        for delta in ('{"content":"Hel"}', '{"content":"lo"}'):
            await response.write(b'data: {"choices":[{"index":0,"delta":%s}]}\n\n' % delta.encode())
        await response.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", respond)
    sink = Sink()
    async with TestServer(app) as server:
        model = make(ModelServerOptions(api_key="key-of-ours", base_url=str(server.make_url("/v1"))))
        answer = await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), sink)
        await model.close()
    assert (sink.text, answer.finish_reason, accept_encodings) == ("Hello", "stop", ["identity"])


async def close_connection(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def send_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("handle_connection", "idle_timeout", "message"),
    [(close_connection, 30.0, "cannot be reached"), (send_nothing, 0.2, "did not answer in time")],
    ids=["closed-connection", "silence"],
)
async def test_closed_connection_and_timeout_have_different_messages(
    handle_connection: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    idle_timeout: float,
    message: str,
) -> None:
    server = await asyncio.start_server(handle_connection, "127.0.0.1", 0)
    async with server:
        model = create_groq_model(
            ModelServerOptions(
                api_key="key-of-ours",
                base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
                idle_timeout=idle_timeout,
            )
        )
        with pytest.raises(ModelUnavailable, match=message):
            await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), Sink())
        await model.close()


_WHOLE_ANSWER = (
    b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
)


async def keep_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + _WHOLE_ANSWER + b"data: [DONE]\n\n")
    await reader.read()
    writer.close()


async def keep_pinging(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + _WHOLE_ANSWER + b"data: [DONE]\n\n")
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b": ping\n\n")
            await asyncio.sleep(0.01)


async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + b"%x\r\n" % len(_WHOLE_ANSWER) + _WHOLE_ANSWER + b"\r\n")  # and no last chunk
    writer.close()


@pytest.mark.parametrize("handle_connection", [keep_open, keep_pinging, break_off])
async def test_complete_answer_survives_errors_of_its_connection(
    handle_connection: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    server = await asyncio.start_server(handle_connection, "127.0.0.1", 0)
    sink = Sink()
    async with server:
        model = create_openai_model(
            ModelServerOptions(
                api_key="key-of-ours", base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            )
        )
        async with asyncio.timeout(30):
            answer = await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), sink)
        await model.close()
    assert (sink.text, answer.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("header", "retry_after"),
    [("3", 3), ("nan", None), ("inf", None), ("-5", None), ("9" * 40, None), ("Wed, 21 Oct 2030 07:28:00 GMT", None)],
)
async def test_invalid_retry_after_is_ignored(header: str, retry_after: float | None) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": header})

    app = web.Application()
    app.router.add_post("/{path:.*}", respond)
    async with TestServer(app) as server:
        model = create_openai_model(ModelServerOptions(api_key="key-of-ours", base_url=str(server.make_url("/v1"))))
        with pytest.raises(ModelUnavailable) as error:
            await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), Sink())
        await model.close()
    assert error.value.retry_after == retry_after


@pytest.mark.parametrize(
    ("body", "models"),
    [
        ('{"object": "list", "data": [{"id": "m", "context_window": 8}]}', [{"id": "m", "context_window": 8}]),
        ('{"object": "list", "data": null}', []),  # from some that have none
        ("<html>It works!</html>", None),
    ],
)
@pytest.mark.parametrize(
    ("make", "path"), [(create_groq_model, "/v1/openai/v1/models"), (create_openai_model, "/v1/models")]
)
async def test_model_list_of_a_server_is_decoded(
    make: Callable[[ModelServerOptions], OpenAICompatibleModel], path: str, body: str, models: list[JsonObject] | None
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    app = web.Application()
    app.router.add_get(path, respond)
    async with TestServer(app) as server:
        model = make(ModelServerOptions(api_key="key-of-ours", base_url=str(server.make_url("/v1"))))
        with nullcontext() if models is not None else pytest.raises(ModelError):
            assert await model.list_models() == models
        await model.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"error": {"message": "too many tools"}}', "too many tools"),
        ('{"error": "too many tools"}', "too many tools"),
        ('{"detail": "too many tools"}', "too many tools"),
        ('[{"error": {"code": 400, "message": "too many tools"}}]', "too many tools"),
        ("too many tools", "too many tools"),
        ("<html>nginx</html>", "no reason given"),
        ('{"error": null}', "no reason given"),
    ],
)
@pytest.mark.parametrize("make", [create_groq_model, create_openai_model])
async def test_reason_of_a_rejection_is_read_from_any_format(
    make: Callable[[ModelServerOptions], OpenAICompatibleModel], body: str, reason: str
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=400, text=body)

    app = web.Application()
    app.router.add_post("/{path:.*}", refuse)
    async with TestServer(app) as server:
        model = make(ModelServerOptions(api_key="key-of-ours", base_url=str(server.make_url("/v1"))))
        with pytest.raises(ModelRequestRefused, match=f"refused the request: {reason}$"):
            await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), Sink())
        await model.close()


async def test_endless_refusal_is_read_in_part() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400, headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        while True:  # until the client closes the connection
            await response.write(b"too many tools " * 4_000)

    app = web.Application()
    app.router.add_post("/{path:.*}", refuse)
    async with TestServer(app) as server:
        model = create_openai_model(ModelServerOptions(api_key="key-of-ours", base_url=str(server.make_url("/v1"))))
        with pytest.raises(ModelRequestRefused, match="too many tools"):
            await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), Sink())
        await model.close()


@pytest.mark.parametrize("make_body", [groq.make_request_body, openai.make_request_body])
def test_providers_themselves_get_no_extra_content_that_they_would_reject(make_body: Any) -> None:
    call = ToolCall("a", "f", "{}", extra_content={"google": {"thought_signature": "x"}})
    model_call = ModelCall("m", (Message("user", "Hi."), Message("assistant", None, (call,))))
    bodies = [make_body(model_call, official=official) for official in (True, False)]
    sent = [body["messages"][1]["tool_calls"][0].get("extra_content") for body in bodies]
    assert sent == [None, call.extra_content]


async def test_calls_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def answer_as_proxy(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path_qs} {request.headers['Host']}")
        return web.Response(body=_WHOLE_ANSWER + b"data: [DONE]\n\n", content_type="text/event-stream")

    async with RawTestServer(answer_as_proxy) as server:
        monkeypatch.setenv("HTTP_PROXY", str(server.make_url("/")))
        model = create_groq_model(ModelServerOptions(api_key="key-of-ours", base_url="http://model.invalid"))
        sink = Sink()
        await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), sink)
        await model.close()
    assert sink.text == "Hello"
    assert asked == ["POST /openai/v1/chat/completions model.invalid"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"no HTTP\r\n\r\n", ModelUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + _WHOLE_ANSWER[:40], ModelStreamBroken),
    ],
)
async def test_proxy_that_breaks_an_answer_is_the_servers_failure(
    answer: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        model = create_groq_model(ModelServerOptions(api_key="key-of-ours", base_url="http://model.invalid"))
        with pytest.raises(error):
            await model.complete(ModelCall(model="m", messages=(Message("user", "Hello"),)), Sink())
        await model.close()


async def test_invalid_chunk_through_a_proxy_ends_the_call_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        start = _WHOLE_ANSWER[:40]
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(start), start))
        await asyncio.sleep(0.05)  # the client reads on
        writer.write(b"no size\r\n")
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        options = ModelServerOptions(api_key="key-of-ours", base_url="http://model.invalid", idle_timeout=0.5)
        model = create_groq_model(options)
        with pytest.raises(ModelUnavailable, match="did not answer in time"):
            await asyncio.wait_for(model.complete(ModelCall(model="m", messages=(Message("user", "Hi"),)), Sink()), 30)
        await model.close()

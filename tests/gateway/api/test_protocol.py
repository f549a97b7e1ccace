"""Malformed and slow HTTP, and responses to internal errors."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.api.mcp.endpoint import McpEndpoint
from gateway.llm.catalog import Catalog
from gateway.simulator import Simulator
from gateway_runtime.http_protocol import MAX_HEAD_BYTES, HttpProtocol
from tests.stack import TIMEOUTS, Gateway, Reply, serve_gateway

HOST = b"Host: localhost\r\n"
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


async def send_raw(gateway: Gateway, *chunks: bytes) -> bytes:
    """Send raw bytes, and return everything that the gateway sends back."""
    url = urlsplit(gateway.base_url)
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        reading = asyncio.create_task(reader.read())
        try:
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            assert reader.at_eof()
        try:
            return await reading
        except ConnectionResetError:  # closed by the gateway while the client was sending
            return b""
        finally:
            writer.close()


def parse_reply(answer: bytes) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Reply(int(start.split()[1]), headers, body=json.loads(body))


def assert_refusal(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.body["error"]["code"]) == (status, code)
    assert reply.headers["x-request-id"] == reply.body["error"]["request_id"]
    for name, value in SECURITY_HEADERS.items():
        assert reply.headers[name] == value


async def test_invalid_http_is_rejected_in_the_error_format(gateway: Gateway) -> None:
    for request in (
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # start of a TLS handshake
        b"GET /caf\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        assert_refusal(parse_reply(await send_raw(gateway, request)), 400, "invalid_http")


def repeat_over_limit(chunk: bytes, times: float = 1.1) -> Iterable[bytes]:
    """Repeat bytes beyond the limit of a request head."""
    return (chunk * 512 for _ in range(int(times * MAX_HEAD_BYTES / 512 / len(chunk)) + 1))


async def test_endless_request_head_is_rejected(gateway: Gateway) -> None:
    for start, chunk in (
        (b"GET /health HTTP/1.1\r\nX-A: ", b"a"),
        (b"GET /health HTTP/1.1\r\n", b"X-A: a\r\n"),
        (b"GET /", b"a"),
    ):
        assert_refusal(parse_reply(await send_raw(gateway, start, *repeat_over_limit(chunk))), 431, "head_too_large")


async def test_endless_trailers_are_rejected(gateway: Gateway) -> None:
    start = b"POST /api/v1/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: "
    for chunk in (b"X-A: a\r\n", b"a"):
        answer = await send_raw(gateway, start, *repeat_over_limit(chunk, times=20))
        assert b"200 OK" not in answer  # the connection is closed, as no response is possible within a request


async def test_slow_request_head_times_out_and_a_silent_connection_is_closed(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    class ShortTimeoutProtocol(HttpProtocol):
        head_timeout_seconds = 0.5  # in which the first bytes must arrive: without any, there is no response

    async with serve_gateway(database_url, simulator, tools_url, http=ShortTimeoutProtocol) as gateway:
        assert_refusal(parse_reply(await send_raw(gateway, b"GET /health HT")), 408, "request_timeout")
        ShortTimeoutProtocol.head_timeout_seconds = 0.05
        assert await send_raw(gateway) == b""
        ShortTimeoutProtocol.head_timeout_seconds = HttpProtocol.head_timeout_seconds
        assert (await gateway.get("/health")).status == 200


async def test_missing_body_times_out(database_url: str, simulator: Simulator, tools_url: str) -> None:
    short_timeout = replace(TIMEOUTS, body=0.05)
    headers = HOST + b"Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"
    async with serve_gateway(database_url, simulator, tools_url, timeouts=short_timeout) as gateway:
        for path in (b"/api/v1/chat", b"/v1/chat/completions"):
            reply = parse_reply(await send_raw(gateway, b"POST " + path + b" HTTP/1.1\r\n" + headers + b'{"mess'))
            assert (reply.status, reply.body["error"]["code"]) == (408, "request_timeout")
        assert b" 408 " in await send_raw(gateway, b"POST /mcp HTTP/1.1\r\n" + headers)


# --- internal errors


@pytest.fixture
async def gateway_with_cors(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    """A gateway with an allowed CORS origin."""
    origins = ("https://app.example",)
    async with serve_gateway(database_url, simulator, tools_url, cors_origins=origins) as gateway:
        yield gateway


@pytest.mark.parametrize("source", ["middleware", "route"])
async def test_internal_error_is_a_500_in_the_error_format_without_internals(
    gateway_with_cors: Gateway, monkeypatch: pytest.MonkeyPatch, log_text: io.StringIO, source: str
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("hunter2 is in /etc/secret")

    if source == "middleware":
        monkeypatch.setattr(gateway_with_cors.state.auth, "authenticate_request", fail)
    monkeypatch.setattr(McpEndpoint, "__call__", fail)
    monkeypatch.setattr(Catalog, "list_models", fail)
    headers = {"X-Request-ID": "the-request", "Origin": "https://app.example"}
    for path in ("/api/v1/models", "/v1/models", "/mcp"):
        async with gateway_with_cors.session.get(f"{gateway_with_cors.base_url}{path}", headers=headers) as response:
            assert response.status == 500
            text = await response.text()
            error = json.loads(text)["error"]
            assert error["code"] == ("server_error" if path == "/v1/models" else "internal_error")
            assert path == "/v1/models" or error["request_id"] == "the-request"
            assert "hunter2" not in text
            assert response.headers.getall("X-Request-ID") == ["the-request"]
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            for name, value in SECURITY_HEADERS.items():
                assert response.headers.getall(name) == [value]
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    failure_lines = [line for line in lines if line["event"] == "request_failed"]
    assert [line["request_id"] for line in failure_lines] == ["the-request"] * 3
    assert all("RuntimeError" in str(line["exception"]) for line in failure_lines)


async def test_failure_after_the_response_start_closes_the_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_after_start(_endpoint: Any, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        raise RuntimeError

    monkeypatch.setattr(McpEndpoint, "__call__", fail_after_start)
    answer = await send_raw(gateway, b"GET /mcp HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"so far")


@pytest.mark.parametrize("log_text", [False], indirect=True)
async def test_access_log_has_statuses_as_numbers(gateway: Gateway, log_text: io.StringIO) -> None:
    """The SDK answers with an enum, whose repr is no number."""
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    notification = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    async with gateway.session.post(f"{gateway.base_url}/mcp", json=notification, headers=headers) as response:
        status = response.status
    assert f"status={status}" in log_text.getvalue()
    assert "HTTPStatus" not in log_text.getvalue()

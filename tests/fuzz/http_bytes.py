"""Generator and sender of random HTTP bytes."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

READ_TIMEOUT_SECONDS = 0.5
_HEADERS = (
    b"Host: localhost",
    b"Host: evil.example",
    b"Content-Type: application/json",
    b"Accept: application/json, text/event-stream",
    b"Transfer-Encoding: chunked",
    b"Content-Length: 10",
    b"Content-Length: 18446744073709551616",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"MCP-Protocol-Version: 2026-07-28",
    b"Mcp-Method: tools/call",
    b"Mcp-Session-Id: \xff",
    b"Cookie: a=b; a=c",
    b"X-A: " + b"a" * 70_000,
)
_BODIES = (
    b'{"messages":[{"role":"user","content":"What is 23*19?"}],"tools":[]}',
    b'{"input":[{"type":"message","role":"user","content":"hi"}],"store":false}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"calculator","arguments":{"expression":"1"}}}',
    b'{"name":"calculator","arguments":{"expression":"5*9"}}',
    b"[" * 5_000,
    b'"\\ud800',
    b"\xff\xfe[\x00",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"",
)
_METHODS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"G\x00T")


@dataclass
class FuzzReport:
    """Counts of statuses, and the requests that caused server errors."""

    statuses: dict[str, int] = field(default_factory=dict[str, int])
    server_errors: list[bytes] = field(default_factory=list[bytes])

    def add(self, request: bytes, answer: bytes) -> None:
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status.startswith("5") and status != "503":
            self.server_errors.append(request)


def generate_requests(
    seed: int, count: int, paths: list[bytes], *, host: bytes = b"localhost", optional: tuple[bytes, ...] = ()
) -> Iterator[bytes]:
    """Generate requests; a seed always generates the same.

    Four of five have all `optional` headers.
    """
    generator = random.Random(seed)
    for _ in range(count):
        yield _mutate(_build_request(generator, paths, host, optional), generator)


def _build_request(generator: random.Random, paths: list[bytes], host: bytes, optional: tuple[bytes, ...]) -> bytes:
    own = optional if optional and generator.random() < 0.8 else ()
    headers = [b"Host: " + host, *own, *generator.sample(_HEADERS[1:], generator.randrange(5))]
    body = generator.choice(_BODIES)
    if generator.random() < 0.7:
        headers.append(b"Content-Length: %d" % len(body))
    if generator.random() < 0.6:
        headers.append(b"Content-Type: application/json")
    start = generator.choice(_METHODS[:2] if generator.random() < 0.7 else _METHODS)
    return b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (start, generator.choice(paths), b"\r\n".join(headers), body)


def _mutate(request: bytes, generator: random.Random) -> bytes:
    changed = bytearray(request)
    for _ in range(generator.choice((0, 0, 1, 1, 2, 8))):
        position = generator.randrange(len(changed))
        match generator.randrange(4):
            case 0:
                changed[position] = generator.randrange(256)
            case 1:
                del changed[position : position + generator.randrange(1, 20)]
            case 2:
                changed[position:position] = bytes(generator.randrange(256) for _ in range(generator.randrange(1, 20)))
            case _:
                changed[position:position] = changed[: generator.randrange(len(changed))]
        if not changed:
            return b"\r\n"
    return bytes(changed)


async def send_requests(base_url: str, requests: Iterator[bytes], *, connections: int = 8) -> FuzzReport:
    """Send each request over a connection of its own, several at once."""
    report = FuzzReport()
    url = urlsplit(base_url)
    assert url.hostname is not None
    assert url.port is not None

    async def send_next() -> None:
        for request in requests:  # one iterator for all senders
            report.add(request, await _send(url.hostname or "", url.port or 0, request))

    await asyncio.gather(*(send_next() for _ in range(connections)))
    return report


async def _send(host: str, port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            await writer.drain()
            return await reader.read(4_096)
    except (TimeoutError, ConnectionError):  # the request is incomplete, or was refused while it was being sent
        return b""
    finally:
        writer.transport.abort()

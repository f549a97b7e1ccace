"""A load generator that costs little itself: a raw protocol a connection, which counts tokens and notes when they come.

A token is told by the TILDE in it (see `upstream`), so the formats of all contestants are counted alike.
"""

import asyncio
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.upstream import TILDE

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CODE = re.compile(rb'"code":\s*"(\w+)"')
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class Figures:
    """What came of a load. Times in seconds; `gaps`: between tokens of a stream (those that came together are 0)."""

    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    first: array = field(default_factory=lambda: array("d"))
    gaps: array = field(default_factory=lambda: array("d"))
    together: int = 0
    whole: array = field(default_factory=lambda: array("d"))

    def gap(self, share: float) -> float:
        """The time between tokens that so many per cent of them do not exceed."""
        rank = round(share / 100 * (len(self.gaps) + self.together)) - self.together
        return percentile(self.gaps, 100 * rank / len(self.gaps)) if rank > 0 and self.gaps else 0.0


def percentile(values: array, share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share / 100 * len(ordered)), len(ordered) - 1)] if ordered else 0.0


class _Connection(asyncio.Protocol):
    """Sends one request after the other, each when the answer before is whole."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._transport: Any = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # uvloop's transports are no asyncio.Transport by type
        self._next()

    def _next(self) -> None:
        request = self._load.take()
        self._busy = request is not None
        if request is None:
            self._transport.close()
            return
        self._tokens = 0
        self._code = ""
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self._last_token = 0.0
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[: end + 4], self._head[end + 4 :]
            self._head = None
            self._read_head(head)
        if count := data.count(TILDE):
            self._note(count)
        elif code := _CODE.search(data):
            self._code = f" ({code[1].decode()})"
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._end()
            return
        self._tail = (self._tail + data)[-5:] if len(data) < 5 else data[-5:]
        if self._tail == _LAST_CHUNK:
            self._end()

    def _read_head(self, head: bytes) -> None:
        self._status = head[9:12].decode()
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else None
        self._load.heard(head)

    def _note(self, count: int) -> None:
        now = time.perf_counter()
        figures = self._load.figures
        if self._tokens:
            figures.gaps.append(now - self._last_token)
        else:
            figures.first.append(now - self._sent_at)
        figures.together += count - 1
        self._last_token = now
        self._tokens += count

    def _end(self) -> None:
        figures = self._load.figures
        figures.whole.append(time.perf_counter() - self._sent_at)
        figures.tokens += self._tokens
        if self._status != "200":
            self._load.failed(f"status {self._status}{self._code}")
        elif self._tokens != self._load.tokens:
            how = "is missing" if self._tokens < self._load.tokens else "too many"
            self._load.failed(f"a token {how}{self._code}")
        else:
            self._load.succeeded()
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._load.failed("the connection broke")
        self._load.left()


class _Load:
    def __init__(self, request: Callable[[], bytes], tokens: int, connections: int, total: int) -> None:
        self.figures = Figures()
        self.tokens = tokens
        self.done = asyncio.get_running_loop().create_future()
        self.heads: list[bytes] = []
        self.over = False
        self._request = request
        self._open = connections
        self._unsent = total

    def take(self) -> bytes | None:
        if not self._unsent:
            return None
        self._unsent -= 1
        return self._request()

    def heard(self, head: bytes) -> None:
        if not self.heads:
            self.heads.append(head)

    def succeeded(self) -> None:
        self.figures.requests += 1

    def failed(self, reason: str) -> None:
        if self.over:
            return
        self.figures.requests += 1
        self.figures.errors[reason] += 1

    def left(self) -> None:
        self._open -= 1
        if not self._open and not self.done.done():
            self.done.set_result(None)


async def put(
    port: int,
    request: bytes | Callable[[], bytes],
    *,
    tokens: int,
    connections: int,
    total: int | None = None,
    over: float = 0.0,
    patience: float = 120.0,
    on_head: Callable[[bytes], None] | None = None,
) -> Figures:
    """Send `total` requests (default: one a connection) over so many connections, which open within `over` seconds.

    `tokens` are what each answer must hold. What is not answered in `patience` seconds is an error.
    """
    total = total or connections
    load = _Load(request if callable(request) else lambda: request, tokens, connections, total)
    if on_head is not None:
        load.heard = on_head
    loop = asyncio.get_running_loop()
    opened: list[Any] = []

    async def open_one(delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            transport, _ = await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port)
            opened.append(transport)
        except OSError:
            load.failed("no connection")
            load.left()

    started = time.perf_counter()
    opening = [asyncio.ensure_future(open_one(over * n / connections)) for n in range(connections)]
    try:
        async with asyncio.timeout(patience):
            await load.done
    except TimeoutError:
        for task in opening:
            task.cancel()
        load.over = True
        load.figures.errors["no answer in time"] += total - load.figures.requests
        for transport in opened:
            transport.abort()
    load.figures.seconds = time.perf_counter() - started
    return load.figures

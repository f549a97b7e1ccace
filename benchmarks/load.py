"""Load generator with low overhead.

One raw protocol per connection counts tokens and their times. Each token contains one TOKEN_MARK (see `upstream`), so
tokens of all wire formats are counted in the same way.
"""

import asyncio
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.upstream import TOKEN_MARK

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CODE = re.compile(rb'"code":\s*"(\w+)"')
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class LoadStats:
    """Counts and times of a load, in seconds.

    `gap_seconds` are the times between tokens of a stream that are not zero; `zero_gaps` counts tokens that arrived in
    one read with the token before.
    """

    requests: int = 0
    tokens: int = 0
    duration_seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    first_token_seconds: array = field(default_factory=lambda: array("d"))
    gap_seconds: array = field(default_factory=lambda: array("d"))
    zero_gaps: int = 0
    request_seconds: array = field(default_factory=lambda: array("d"))

    def compute_gap_percentile(self, percent: float) -> float:
        """Return the time between tokens that `percent` per cent do not exceed."""
        rank = round(percent / 100 * (len(self.gap_seconds) + self.zero_gaps)) - self.zero_gaps
        if rank <= 0 or not self.gap_seconds:
            return 0.0
        return compute_percentile(self.gap_seconds, 100 * rank / len(self.gap_seconds))


def compute_percentile(values: array, percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(percent / 100 * len(ordered)), len(ordered) - 1)] if ordered else 0.0


class _Connection(asyncio.Protocol):
    """Sends the next request when the previous answer is complete."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._transport: Any = None
        self._awaits_answer = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # uvloop's transports do not derive from asyncio.Transport
        self._send_next_request()

    def _send_next_request(self) -> None:
        request = self._load.take_request()
        self._awaits_answer = request is not None
        if request is None:
            self._transport.close()
            return
        self._tokens = 0
        self._code = ""
        self._head = b""
        self._remaining_bytes: int | None = None
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
        if count := data.count(TOKEN_MARK):
            self._record_tokens(count)
        elif code := _CODE.search(data):
            self._code = f" ({code[1].decode()})"
        if self._remaining_bytes is not None:
            self._remaining_bytes -= len(data)
            if self._remaining_bytes <= 0:
                self._finish_response()
            return
        self._tail = (self._tail + data)[-5:] if len(data) < 5 else data[-5:]
        if self._tail == _LAST_CHUNK:
            self._finish_response()

    def _read_head(self, head: bytes) -> None:
        self._status = head[9:12].decode()
        length = _LENGTH.search(head)
        self._remaining_bytes = int(length[1]) if length else None
        self._load.on_head(head)

    def _record_tokens(self, count: int) -> None:
        now = time.perf_counter()
        stats = self._load.stats
        if self._tokens:
            stats.gap_seconds.append(now - self._last_token)
        else:
            stats.first_token_seconds.append(now - self._sent_at)
        stats.zero_gaps += count - 1
        self._last_token = now
        self._tokens += count

    def _finish_response(self) -> None:
        stats = self._load.stats
        stats.request_seconds.append(time.perf_counter() - self._sent_at)
        stats.tokens += self._tokens
        if self._status != "200":
            self._load.record_failure(f"status {self._status}{self._code}")
        elif self._tokens != self._load.tokens:
            problem = "missing tokens" if self._tokens < self._load.tokens else "too many tokens"
            self._load.record_failure(f"{problem}{self._code}")
        else:
            self._load.record_success()
        self._send_next_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._awaits_answer:
            self._load.record_failure("connection lost")
        self._load.count_closed_connection()


class _Load:
    """State that all connections of a load share."""

    def __init__(
        self,
        request: Callable[[], bytes],
        tokens: int,
        connections: int,
        total: int,
        on_head: Callable[[bytes], object],
    ) -> None:
        self.stats = LoadStats()
        self.tokens = tokens
        self.done = asyncio.get_running_loop().create_future()
        self.has_timed_out = False
        self.on_head = on_head
        self._request = request
        self._open_connections = connections
        self._unsent = total

    def take_request(self) -> bytes | None:
        if not self._unsent:
            return None
        self._unsent -= 1
        return self._request()

    def record_success(self) -> None:
        self.stats.requests += 1

    def record_failure(self, reason: str) -> None:
        if self.has_timed_out:
            return
        self.stats.requests += 1
        self.stats.errors[reason] += 1

    def count_closed_connection(self) -> None:
        self._open_connections -= 1
        if not self._open_connections and not self.done.done():
            self.done.set_result(None)


async def run_load(
    port: int,
    request: bytes | Callable[[], bytes],
    *,
    tokens: int,
    connections: int,
    total: int | None = None,
    ramp_up_seconds: float = 0.0,
    timeout_seconds: float = 120.0,
    on_head: Callable[[bytes], object] = lambda _head: None,
) -> LoadStats:
    """Send `total` requests (default: one per connection) over `connections` connections.

    The connections are opened within `ramp_up_seconds`. Each answer must have `tokens` tokens; requests without an
    answer after `timeout_seconds` count as errors. `on_head` gets the head of each answer.
    """
    total = total or connections
    load = _Load(request if callable(request) else lambda: request, tokens, connections, total, on_head)
    loop = asyncio.get_running_loop()
    transports: list[Any] = []

    async def open_connection(delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            transport, _ = await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port)
            transports.append(transport)
        except OSError:
            load.record_failure("cannot connect")
            load.count_closed_connection()

    started_at = time.perf_counter()
    open_tasks = [asyncio.ensure_future(open_connection(ramp_up_seconds * n / connections)) for n in range(connections)]
    try:
        async with asyncio.timeout(timeout_seconds):
            await load.done
    except TimeoutError:
        for task in open_tasks:
            task.cancel()
        load.has_timed_out = True
        load.stats.errors["timeout"] += total - load.stats.requests
        for transport in transports:
            transport.abort()
    load.stats.duration_seconds = time.perf_counter() - started_at
    return load.stats

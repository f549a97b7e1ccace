"""Limits on what clients leave unread, in time and bytes."""

import asyncio
from collections import Counter

import structlog

log = structlog.stdlib.get_logger(__name__)

MIN_WRITTEN_BYTES = 256 * 1024
"""Bytes that a client must read in each interval."""
BUFFER_BYTES = 64 * 1024
"""Bytes that may wait unwatched: the event loop's high-water mark."""
MAX_PATIENT_BYTES, MAX_UNSENT_BYTES = 32 * 1024 * 1024, 128 * 1024 * 1024
_PATIENCE_SECONDS = 2.0


class UnsentBytes:
    """Counts the bytes that clients of a server have not read.

    Beyond `max_patient_bytes`, connections that have waited for two seconds are aborted, beyond `max_bytes` also
    younger ones: the oldest of the source that has most.
    """

    def __init__(self, max_patient_bytes: int = MAX_PATIENT_BYTES, max_bytes: int = MAX_UNSENT_BYTES) -> None:
        self._max_patient_bytes = max_patient_bytes
        self._max_bytes = max_bytes
        self._watches: dict[ReaderWatch, float] = {}
        """Watches with the time of their begin, oldest first."""
        self._recent_bytes = 0
        """An upper bound of what waits."""
        self._check: asyncio.TimerHandle | None = None

    def add(self, watch: "ReaderWatch") -> None:
        """Count a connection until `remove` is called."""
        loop = asyncio.get_running_loop()
        self._watches[watch] = loop.time()
        self._recent_bytes += watch.get_unsent_bytes()
        if self._recent_bytes > self._max_bytes:
            self._abort_excess(self._max_bytes, began_before=loop.time())
        if self._recent_bytes > self._max_patient_bytes and self._check is None:
            self._check = loop.call_later(_PATIENCE_SECONDS, self._on_check)

    def remove(self, watch: "ReaderWatch") -> None:
        if self._watches.pop(watch, None) is not None and not self._watches:
            self._recent_bytes = 0

    def _on_check(self) -> None:
        self._check = None
        loop = asyncio.get_running_loop()
        self._abort_excess(self._max_patient_bytes, began_before=loop.time() - _PATIENCE_SECONDS)
        if self._recent_bytes > self._max_patient_bytes:
            self._check = loop.call_later(_PATIENCE_SECONDS, self._on_check)

    def _abort_excess(self, limit: int, *, began_before: float) -> None:
        """Abort connections until less than three quarters of the limit waits."""
        sizes = {watch: watch.get_unsent_bytes() for watch in self._watches}
        self._recent_bytes = sum(sizes.values())
        if self._recent_bytes <= limit:
            return
        by_source: Counter[str] = Counter()
        for watch, size in sizes.items():
            by_source[watch.source] += size
        candidates = [watch for watch, began in self._watches.items() if began <= began_before]
        while candidates and self._recent_bytes > limit * 3 // 4:
            heaviest = max({watch.source for watch in candidates}, key=by_source.__getitem__)
            watch = next(watch for watch in candidates if watch.source == heaviest)
            candidates.remove(watch)
            self._recent_bytes -= sizes[watch]
            by_source[heaviest] -= sizes[watch]
            watch.abort("too many bytes wait for slow clients")


class ReaderWatch:
    """Aborts a connection whose client reads less than `MIN_WRITTEN_BYTES` in each interval.

    It also ends if what waits is not read within `max_drain_seconds`, whatever its size. `tcp_transport`: the
    connection below TLS, which takes over what TLS has encrypted.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        tcp_transport: asyncio.Transport | None,
        source: str,
        unsent: UnsentBytes,
        *,
        interval_seconds: float,
        max_drain_seconds: float,
    ) -> None:
        self.source = source
        self._transport = transport
        self._tcp_transport = tcp_transport
        self._unsent = unsent
        self._interval_seconds = interval_seconds
        self._max_drain_seconds = max_drain_seconds
        self._is_paused = self._has_ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._bytes_before = 0
        self._deadline = 0.0

    def get_unsent_bytes(self) -> int:
        """Return the bytes that wait for the client."""
        below_tls = 0 if self._tcp_transport is None else self._tcp_transport.get_write_buffer_size()
        return self._transport.get_write_buffer_size() + below_tls

    def pause(self) -> None:
        """Begin to watch: the transport is full."""
        self._is_paused = True
        self._start()

    def resume(self) -> None:
        """End the watch, unless much waits below TLS or the connection ends."""
        self._is_paused = False
        self._stop_if_read()

    def look(self) -> None:
        """Begin to watch if much waits or the connection ends."""
        if self._transport.is_closing() or self.get_unsent_bytes() > BUFFER_BYTES:
            self._start()

    def end(self) -> None:
        """Stop for good: the connection is lost."""
        self._has_ended = True
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._unsent.remove(self)

    def abort(self, reason: str) -> None:
        """Close the connection without sending what waits."""
        log.info("slow_reader_disconnected", unsent_bytes=self.get_unsent_bytes(), reason=reason)
        self.end()
        self._transport.abort()

    def _start(self) -> None:
        if self._timer is None and not self._has_ended:
            self._deadline = asyncio.get_running_loop().time() + self._max_drain_seconds
            self._start_timer()
            self._unsent.add(self)

    def _stop_if_read(self) -> None:
        is_read = self.get_unsent_bytes() <= BUFFER_BYTES
        if is_read and not self._is_paused and not self._transport.is_closing():
            self._stop()

    def _start_timer(self) -> None:
        self._bytes_before = self.get_unsent_bytes()
        self._timer = asyncio.get_running_loop().call_later(self._interval_seconds, self._on_timeout)

    def _on_timeout(self) -> None:
        self._stop_if_read()
        if self._timer is None:
            return
        has_progressed = self._bytes_before - self.get_unsent_bytes() >= MIN_WRITTEN_BYTES
        if has_progressed and asyncio.get_running_loop().time() < self._deadline:
            self._start_timer()
        else:
            self.abort("too slow")

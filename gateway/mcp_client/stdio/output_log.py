"""Log of a command's other output, bounded in rate and length."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text

log = get_logger(__name__)

_MAX_LINE_LENGTH = 2_000
_MAX_LINES, _WINDOW_SECONDS = 200, 10.0
"""Maximum of logged lines in a window; further ones are counted."""
_MAX_BYTES_PER_SECOND = 16 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_LAST_LINES, _LAST_LINE_LENGTH = 20, 300
_MIN_SECRET_LENGTH = 6


class OutputLog:
    """Logs the lines of a command, and keeps the last ones.

    `secrets` are masked. Lines beyond a rate are only counted: a flood costs neither a full log nor the event loop.
    """

    def __init__(self, server: str, secrets: Collection[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._secrets = [secret for secret in secrets if len(secret) >= _MIN_SECRET_LENGTH]
        self._clock = clock
        self._rest = b""
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._window_start = clock()
        self._logged = self._dropped = 0

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines, cleaned and shortened."""
        return tuple(self._last_lines)

    async def copy_stream(self, stream: asyncio.StreamReader) -> None:
        """Log a stream until its end, at most 16 MiB a second."""
        started_at, read_bytes = self._clock(), 0
        while chunk := await stream.read(_CHUNK_BYTES):
            self.add_output(chunk)
            read_bytes += len(chunk)
            if read_bytes >= _MAX_BYTES_PER_SECOND:
                await asyncio.sleep(max(0.0, started_at + 1.0 - self._clock()))
                started_at, read_bytes = self._clock(), 0
        self.add_output(b"\n")

    def add_output(self, data: bytes) -> None:
        """Add bytes that may end within a line."""
        self._start_window()
        if self._logged >= _MAX_LINES:
            self._dropped += data.count(b"\n")
            data = data[-_LAST_LINES * _LAST_LINE_LENGTH :]
            for line in (self._rest + data).split(b"\n")[-_LAST_LINES - 1 : -1]:
                self._keep_line(line)
            self._rest = data.rpartition(b"\n")[2][:_MAX_LINE_LENGTH]
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_MAX_LINE_LENGTH]
        for line in lines:
            self.add_line(line, "mcp_server_stderr")

    def add_line(self, line: bytes, event: str) -> None:
        """Log a line under a name, unless there are too many."""
        self._start_window()
        text = self._keep_line(line)
        if not text:
            return
        if self._logged >= _MAX_LINES:
            self._dropped += 1
            return
        self._logged += 1
        log.info(event, server=self._server, line=text)

    def _keep_line(self, line: bytes) -> str:
        text = line[:_MAX_LINE_LENGTH].decode(errors="replace").rstrip()
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = clean_text(text, _MAX_LINE_LENGTH)
        if text:
            self._last_lines.append(text[:_LAST_LINE_LENGTH])
        return text

    def _start_window(self) -> None:
        now = self._clock()
        if now - self._window_start < _WINDOW_SECONDS:
            return
        if self._dropped:
            log.warning("mcp_server_output_dropped", server=self._server, lines=self._dropped)
        self._window_start, self._logged, self._dropped = now, 0, 0

"""Messages in the lines of a command's output."""

import mcp.types as t
from mcp.shared.message import SessionMessage

from gateway.mcp_client.messages.lenient import parse_messages
from gateway.mcp_client.size_limit import MessageBuffer, find_response_id, make_too_large_error

_MAX_LONG_LINE_FACTOR = 64
_EDGE_LENGTH = 200


class EndlessLine(Exception):
    """A line is too long to be expected to end."""


class LineSplitter:
    """Splits output into lines in linear time.

    A line that is too long is replaced by an error for the request that it answers, as soon as the id of the request is
    known: at the start or at the end of the line. A long line without such an id is dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._line = MessageBuffer(max_bytes, b"")
        self._max_length = max_bytes * _MAX_LONG_LINE_FACTOR
        self._has_error = self._was_checked = False

    def split(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes.

        Raises:
            EndlessLine: the current line has reached its limit 64 times.
        """
        *ends, rest = data.split(b"\n")
        lines: list[bytes] = []
        for part in ends:
            self._line.append(part)
            lines.append(self._end_line())
        self._line.append(rest)
        if self._line.is_too_large and not self._was_checked:
            self._was_checked = True
            error = self._make_error(b"")
            self._has_error = bool(error)
            lines.append(error)
        if self._line.length > self._max_length:
            raise EndlessLine
        return [line for line in lines if line.strip()]

    def _end_line(self) -> bytes:
        line = self._line
        text = line.join() if not line.is_too_large else b"" if self._has_error else self._make_error(line.end)
        line.clear()
        self._has_error = self._was_checked = False
        return text

    def _make_error(self, end: bytes) -> bytes:
        error = make_too_large_error(self._line.start.decode(errors="replace"), end.decode(errors="replace"))
        return (error or "").encode()


def parse_line(line: bytes) -> list[SessionMessage]:
    """Parse the messages in a line of output.

    An unreadable answer fails the request with its id.
    """
    try:
        return [SessionMessage(message) for message in parse_messages(line)]
    except ValueError:
        text = line.decode(errors="replace")
    request_id = find_response_id(text[:_EDGE_LENGTH], text.rstrip()[-_EDGE_LENGTH:])
    if request_id is None:
        return []
    error = t.ErrorData(code=t.PARSE_ERROR, message="Failed to parse the answer")
    return [SessionMessage(t.JSONRPCError(jsonrpc="2.0", id=request_id, error=error))]

"""Limits the length of a line of an MCP server's standard output."""

import json
import re

import mcp.client.stdio
from anyio.streams.text import TextReceiveStream
from mcp.types import PARSE_ERROR

from gateway.common.logging import get_logger
from gateway.mcp_client import size_limit

log = get_logger(__name__)

_EDGE_LENGTH = 200
_RESPONSE_ID = r'"jsonrpc": ?"2\.0", ?"id": ?(\d+)'
_ID_AT_START = re.compile(r"\{" + _RESPONSE_ID + r', ?"(?:result|error)"')
_ID_AT_END = re.compile(_RESPONSE_ID + r"\}\s*$")


class LineLimitingStream(TextReceiveStream):
    """Text in whole lines.

    A line that is too long is replaced by an error for the request that it answers, whose id is at the start or the end
    of the line. A long line without such an id is dropped.
    """

    _parts: list[str]
    _start = _end = ""  # of a line that is too long
    _length = 0

    def __post_init__(self, encoding: str, errors: str) -> None:
        super().__post_init__(encoding, errors)
        self._parts = []

    async def receive(self) -> str:
        """Return the next lines."""
        while True:
            *ends, rest = (await super().receive()).split("\n")
            lines: list[str] = []
            for text in ends:
                self._append(text)
                lines.append(self._end_line())
            self._append(rest)
            if lines:
                return "".join(lines)

    def _append(self, text: str) -> None:
        self._length += len(text)
        if self._length <= size_limit.MAX_MESSAGE_BYTES:
            self._parts.append(text)
            return
        if self._parts:
            self._start = "".join(self._parts)[:_EDGE_LENGTH]
            self._parts.clear()
        self._end = (self._end + text)[-_EDGE_LENGTH:]

    def _end_line(self) -> str:
        if self._length <= size_limit.MAX_MESSAGE_BYTES:
            line = "".join(self._parts) + "\n"
        else:
            line = _make_error_line(self._start, self._end)
        self._parts.clear()
        self._start = self._end = ""
        self._length = 0
        return line


def _make_error_line(start: str, end: str) -> str:
    found = _ID_AT_START.match(start) or _ID_AT_END.search(end)
    log.warning("mcp_line_too_long", has_id=found is not None)
    if found is None:
        return ""
    error = {"code": PARSE_ERROR, "message": size_limit.TOO_LARGE}
    return json.dumps({"jsonrpc": "2.0", "id": int(found[1]), "error": error}) + "\n"


def limit_stdio_lines() -> None:
    """Make the SDK read the output of commands by `LineLimitingStream`.

    Its `stdio_client` has no parameter for that, and keeps a line of any length.
    """
    mcp.client.stdio.TextReceiveStream = LineLimitingStream  # pyright: ignore[reportPrivateImportUsage]

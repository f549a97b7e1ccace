"""Limits the length of a line of an MCP server's standard output."""

import mcp.client.stdio
from anyio.streams.text import TextReceiveStream

from gateway.mcp_client.size_limit import MessageBuffer, make_too_large_error


class LineLimitingStream(TextReceiveStream):
    """Text in whole lines.

    A line that is too long is replaced by an error for the request that it answers, whose id is at the start or the end
    of the line. A long line without such an id is dropped.
    """

    _line: MessageBuffer

    def __post_init__(self, encoding: str, errors: str) -> None:
        super().__post_init__(encoding, errors)
        self._line = MessageBuffer()

    async def receive(self) -> str:
        """Return the next lines."""
        while True:
            *ends, rest = (await super().receive()).split("\n")
            lines: list[str] = []
            for text in ends:
                self._line.append(text)
                lines.append(self._end_line())
            self._line.append(rest)
            if lines:
                return "".join(lines)

    def _end_line(self) -> str:
        line = self._line
        text = make_too_large_error(line.start, line.end) if line.is_too_large else line.join()
        line.clear()
        return "" if text is None else f"{text}\n"


def limit_stdio_lines() -> None:
    """Make the SDK read the output of commands by `LineLimitingStream`.

    Its `stdio_client` has no parameter for that, and keeps a line of any length.
    """
    mcp.client.stdio.TextReceiveStream = LineLimitingStream  # pyright: ignore[reportPrivateImportUsage]

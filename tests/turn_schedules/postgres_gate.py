"""A TCP gate between one worker and Postgres.

It knows whether Postgres still has something to answer.
"""

import asyncio
import struct
from contextlib import suppress
from pathlib import Path
from typing import Literal

GateState = Literal["open", "closed", "silent"]
_CANCEL_REQUEST = 80_877_102
_HEADER = struct.Struct("!cI")
_STARTUP_BYTES = 8


_LAST_ANSWERS = {b"Q": b"Z", b"S": b"Z", b"H": b"TnE"}
"""Types of messages, each with those of its last answer.

The messages are Query, Sync and Flush.
"""


class _Link:
    """A connection through the gate.

    `awaited` has the types of the message that ends Postgres's current answer.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.awaited = b""
        self.is_silent = False
        self.loses_answer = False

    def close(self) -> None:
        self.awaited = b""
        self.client.transport.abort()
        self.server.close()


class PostgresGate:
    """Forwards the connections of a worker to Postgres."""

    def __init__(self, socket_path: Path) -> None:
        self.state: GateState = "open"
        self.port = 0
        self._socket_path = socket_path
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def unanswered(self) -> int:
        """Number of connections on which Postgres has something to answer."""
        return sum(bool(link.awaited) for link in self._links)

    def open(self) -> None:
        """Forward new connections. Those that became silent stay so."""
        self.state = "open"

    def cut(self) -> None:
        """Abort every connection, and refuse new ones."""
        self.state = "closed"
        self.abort_connections()

    def silence(self) -> None:
        """Accept everything and answer nothing."""
        self.state = "silent"
        for link in self._links:
            link.is_silent = True
            link.awaited = b""

    def lose_next_answers(self) -> None:
        """Lose the next answers of Postgres, and abort their connections.

        Postgres executes the requests.
        """
        for link in self._links:
            link.loses_answer = True

    def abort_connections(self) -> None:
        for link in list(self._links):
            link.close()

    def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.state == "closed":
                return
            await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket_path)
            link = _Link(writer, server_writer)
            link.is_silent = self.state == "silent"
            self._links.add(link)
            try:
                answers = asyncio.create_task(self._forward_answers(link, server_reader))
                self._tasks.add(answers)
                try:
                    await self._forward_requests(link, reader)
                finally:
                    answers.cancel()
                    self._tasks.discard(answers)
            finally:
                self._links.discard(link)
                link.close()

    async def _forward_requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        startup = await reader.readexactly(_STARTUP_BYTES)
        length, code = struct.unpack("!II", startup)
        startup += await reader.readexactly(length - _STARTUP_BYTES)
        self._send(link, startup, awaited=b"" if code == _CANCEL_REQUEST else b"Z")
        while True:
            header = await reader.readexactly(_HEADER.size)
            kind, length = _HEADER.unpack(header)
            message = header + await reader.readexactly(length - 4)
            self._send(link, message, awaited=_LAST_ANSWERS.get(kind, b""))

    @staticmethod
    def _send(link: _Link, message: bytes, *, awaited: bytes) -> None:
        if not link.is_silent:
            link.awaited = awaited or link.awaited
            link.server.write(message)

    async def _forward_answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                header = await reader.readexactly(_HEADER.size)
                kind, length = _HEADER.unpack(header)
                message = header + await reader.readexactly(length - 4)
                is_last = kind in link.awaited
                if is_last:
                    link.awaited = b""
                if is_last and link.loses_answer:
                    break
                if not link.is_silent and not link.loses_answer:
                    link.client.write(message)
        link.close()

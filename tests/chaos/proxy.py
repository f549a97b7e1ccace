"""A TCP proxy between one worker and Postgres."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

_CHUNK_BYTES = 65_536


class DatabaseProxy:
    """Forwards connections, as long as its `state` is "open".

    "cut": connections are reset and refused. "silent": everything is accepted, and nothing is forwarded or answered.
    """

    def __init__(self, socket_path: Path) -> None:
        self.state: Literal["open", "cut", "silent"] = "open"
        self.port = 0
        self._socket_path = socket_path
        self._writers: set[asyncio.StreamWriter] = set()
        self._healed = asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[None]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self._healed.set()
            self._abort_all()

    def cut(self) -> None:
        self.state = "cut"
        self._abort_all()

    def silence(self) -> None:
        self.state = "silent"
        self._healed.clear()

    def heal(self) -> None:
        """Forward new connections, and reset the silent ones."""
        if self.state == "silent":
            self._abort_all()
        self.state = "open"
        self._healed.set()

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError):
                if self.state != "cut":
                    await self._forward_both(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward_both(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._socket_path)
        answers = asyncio.create_task(self._forward(server_reader, writer))
        try:
            await self._forward(reader, server_writer)
        finally:
            answers.cancel()
            server_writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.state == "silent":
                    await self._healed.wait()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

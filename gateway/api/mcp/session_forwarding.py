"""Workers of one machine pass requests on to the one among them that alone can answer.

Each has a Unix socket, named by its id, in a directory that only this user can enter and that all who work on the same
database find. A request that is passed on has been let in already; its answer comes back message by message.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.logging import get_logger
from gateway.domain.messages import Principal

log = get_logger(__name__)

_CONNECT_SECONDS = 2.0
_STALE_SECONDS = 60.0
_NAME = re.compile(r"[0-9a-f]{32}")
_SENT = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class _ForwardedRequest(msgspec.Struct):
    scope: dict[str, Any]
    principal: Principal
    body: bytes


_encode = msgspec.msgpack.encode
_decode_request = msgspec.msgpack.Decoder(_ForwardedRequest).decode
_decode_message = msgspec.msgpack.Decoder(dict[str, Any]).decode


class WorkerForwarder:
    """This worker among its neighbours. `application` answers what they pass on."""

    def __init__(self, worker_id: UUID, database: str, application: Application) -> None:
        self.name = worker_id.hex
        mark = hashlib.sha256(database.encode()).hexdigest()[:10]
        self._directory = Path(tempfile.gettempdir()) / f"agw-{os.geteuid()}-{mark}"
        self._application = application
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._passing: set[asyncio.StreamWriter] = set()

    async def start_listening(self) -> None:
        """Be there for the others, from the first call on. Where that cannot be, this worker stays alone."""
        async with self._opening:
            if self._server is not None:
                return
            try:
                self._make_directory()
                self._server = await asyncio.start_unix_server(self._serve_connection, self._directory / self.name)
            except OSError as error:
                log.warning("worker_stays_alone", directory=str(self._directory), error=str(error))

    def abort_connections(self) -> None:
        """End the answers that come from others."""
        for writer in self._passing:
            writer.close()

    async def close(self) -> None:
        self.abort_connections()
        if self._server is None:
            return
        self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        (self._directory / self.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are there
            self._directory.rmdir()

    # --- asking

    async def forward_request(self, to: str, scope: Message, receive: Receive, send: Send) -> bool:
        """Let the worker of that name answer a request. False: there is none, and nothing was sent."""
        if to == self.name or not _NAME.fullmatch(to):
            return False
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._directory / to)
        except (OSError, TimeoutError):
            return False
        self._passing.add(writer)
        leaving: asyncio.Task[None] | None = None
        try:
            body = await _read_body(receive)
            request = _ForwardedRequest(
                {key: scope[key] for key in _SENT if key in scope}, scope[PRINCIPAL_SCOPE_KEY], body
            )
            await _write_message(writer, request)
            leaving = asyncio.create_task(_abort_with_client(receive, writer))
            return await _relay_response(reader, send)
        except ConnectionError:
            return False
        finally:
            self._passing.discard(writer)
            writer.close()
            if leaving is not None:
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)

    # --- answering

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        gone: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                frame = await _read_message(reader)
            if frame is None:
                return
            request = _decode_request(frame)
            gone = asyncio.create_task(reader.read())  # nothing more is sent: this ends with the connection
            await self._application(
                {**request.scope, "asgi": {"version": "3.0"}, PRINCIPAL_SCOPE_KEY: request.principal},
                _make_receive(request.body, gone),
                _make_send(writer),
            )
        except TimeoutError:
            log.warning("neighbour_is_silent")
        finally:
            if gone is not None:
                gone.cancel()
            writer.close()
            self._answering.discard(task)

    def _make_directory(self) -> None:
        """Raises:
        OSError: it is not ours alone.
        """
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        found = self._directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self._directory} is not a private directory of ours")
        for path in self._directory.iterdir():
            _forget_if_dead(path)


def _forget_if_dead(path: Path) -> None:
    """A worker that was killed has left its socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if time.time() - path.stat().st_mtime < _STALE_SECONDS:
            return
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(parts)


async def _abort_with_client(receive: Receive, writer: asyncio.StreamWriter) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    writer.close()


async def _relay_response(reader: asyncio.StreamReader, send: Send) -> bool:
    """Whether there was an answer. One that breaks off is ended: its worker is gone, or this one stops."""
    begun, more = False, True
    while more and (frame := await _read_message(reader)) is not None:
        message = _decode_message(frame)
        begun = True
        more = message["type"] != "http.response.body" or message.get("more_body", False)
        await send(message)
    if begun and more:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    return begun


def _make_receive(body: bytes, gone: "asyncio.Task[bytes]") -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.wait((gone,))
        return {"type": "http.disconnect"}

    return receive


def _make_send(writer: asyncio.StreamWriter) -> Send:
    async def send(message: Message) -> None:
        with contextlib.suppress(ConnectionError):  # nobody reads any more: that is told by `receive`
            await _write_message(writer, message)

    return send


async def _write_message(writer: asyncio.StreamWriter, value: Any) -> None:
    frame = _encode(value)
    writer.write(len(frame).to_bytes(4, "big") + frame)
    await writer.drain()


async def _read_message(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame; None: the connection has ended."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None

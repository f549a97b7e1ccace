"""Forwarding of legacy MCP sessions' requests to the worker that owns them.

Each worker listens on a Unix socket named by its id, in a directory that only this user can enter and that all workers
of the same database share. Requests are forwarded after authentication; responses are relayed message by message. See
docs/adr/0014.
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
from pathlib import Path
from uuid import UUID

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.messages import Principal

log = get_logger(__name__)

_CONNECT_TIMEOUT_SECONDS = 2.0
_STALE_SOCKET_SECONDS = 60.0
_WORKER_NAME = re.compile(r"[0-9a-f]{32}")
_FORWARDED_SCOPE_KEYS = (
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


class _ForwardedRequest(msgspec.Struct):
    scope: dict[str, object]
    principal: Principal
    body: bytes


_encode = msgspec.msgpack.encode
_decode_request = msgspec.msgpack.Decoder(_ForwardedRequest).decode
_decode_message = msgspec.msgpack.Decoder(dict[str, object]).decode


class WorkerForwarder:
    """Forwards requests to other workers.

    It also serves, with `application`, the requests that other workers forward.
    """

    def __init__(self, worker_id: UUID, database: str, application: ASGIApp) -> None:
        self.name = worker_id.hex
        database_hash = hashlib.sha256(database.encode()).hexdigest()[:10]
        self._directory = Path(tempfile.gettempdir()) / f"agw-{os.geteuid()}-{database_hash}"
        self._application = application
        self._start_lock = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._serving_tasks = TaskSet("serve forwarded MCP request")
        self._forward_writers: set[asyncio.StreamWriter] = set()

    async def start_listening(self) -> None:
        """Open this worker's socket, once.

        If that fails, other workers cannot forward requests to it.
        """
        async with self._start_lock:
            if self._server is not None:
                return
            try:
                self._make_directory()
                self._server = await asyncio.start_unix_server(self._accept_connection, self._directory / self.name)
            except OSError as error:
                log.warning("forwarding_socket_failed", directory=str(self._directory), error=str(error))

    def abort_connections(self) -> None:
        """Break off the responses that other workers send."""
        for writer in self._forward_writers:
            writer.close()

    async def close(self) -> None:
        """Break off all forwarded requests, and remove the socket."""
        self.abort_connections()
        if self._server is None:
            return
        self._server.close()
        await self._serving_tasks.stop()
        (self._directory / self.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: other workers have sockets in it
            self._directory.rmdir()

    # --- client side

    async def forward_request(self, worker: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Forward a request to the named worker and relay its response.

        False: the worker is this one or cannot be reached, and nothing was sent to the client.
        """
        if worker == self.name or not _WORKER_NAME.fullmatch(worker):
            return False
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._directory / worker)
        except (OSError, TimeoutError):
            return False
        self._forward_writers.add(writer)
        disconnect: asyncio.Task[None] | None = None
        try:
            body = await _read_body(receive)
            forwarded_scope = {key: scope[key] for key in _FORWARDED_SCOPE_KEYS if key in scope}
            await _write_message(writer, _ForwardedRequest(forwarded_scope, scope[PRINCIPAL_SCOPE_KEY], body))
            disconnect = asyncio.create_task(_close_on_disconnect(receive, writer))
            return await _relay_response(reader, send)
        except ConnectionError:
            return False
        finally:
            self._forward_writers.discard(writer)
            writer.close()
            if disconnect is not None:
                disconnect.cancel()
                await asyncio.gather(disconnect, return_exceptions=True)

    # --- server side

    def _accept_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving_tasks.spawn(self._serve_connection(reader, writer))

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        disconnect: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
                frame = await _read_message(reader)
            if frame is None:
                return
            request = _decode_request(frame)
            # The client sends nothing after the request, so this read returns when it disconnects.
            disconnect = asyncio.create_task(reader.read())
            await self._application(
                {**request.scope, "asgi": {"version": "3.0"}, PRINCIPAL_SCOPE_KEY: request.principal},
                _make_receive(request.body, disconnect),
                _make_send(writer),
            )
        except TimeoutError:
            log.warning("forwarded_request_timed_out")
        finally:
            if disconnect is not None:
                disconnect.cancel()
            writer.close()

    def _make_directory(self) -> None:
        """Create the directory of the sockets, and remove stale sockets.

        Raises:
            OSError: the directory cannot be created, or another user can access it.
        """
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        status = self._directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{self._directory} is not a private directory of this user")
        for path in self._directory.iterdir():
            _remove_stale_socket(path)


def _remove_stale_socket(path: Path) -> None:
    """Remove the socket of a worker that was killed."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if time.time() - path.stat().st_mtime < _STALE_SOCKET_SECONDS:
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


async def _close_on_disconnect(receive: Receive, writer: asyncio.StreamWriter) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    writer.close()


async def _relay_response(reader: asyncio.StreamReader, send: Send) -> bool:
    """Relay the response; return whether there was one.

    A response that breaks off is ended, because its worker has ended or this worker stops.
    """
    has_begun, has_more = False, True
    while has_more and (frame := await _read_message(reader)) is not None:
        message = _decode_message(frame)
        has_begun = True
        has_more = message["type"] != "http.response.body" or bool(message.get("more_body", False))
        await send(message)
    if has_begun and has_more:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    return has_begun


def _make_receive(body: bytes, disconnect: "asyncio.Task[bytes]") -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.wait((disconnect,))
        return {"type": "http.disconnect"}

    return receive


def _make_send(writer: asyncio.StreamWriter) -> Send:
    async def send(message: Message) -> None:
        with contextlib.suppress(ConnectionError):  # `receive` reports the disconnect to the application
            await _write_message(writer, message)

    return send


async def _write_message(writer: asyncio.StreamWriter, value: object) -> None:
    frame = _encode(value)
    writer.write(len(frame).to_bytes(4, "big") + frame)
    await writer.drain()


async def _read_message(reader: asyncio.StreamReader) -> bytes | None:
    """Read the next frame; None: the connection has ended."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None

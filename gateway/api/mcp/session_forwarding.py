"""Forwarding of legacy MCP sessions' requests to the worker that owns them.

Each worker listens on a Unix socket named by its id, in a directory that only this user can enter and that all workers
of the same database share. Requests are forwarded after authentication; responses are relayed message by message. See
docs/adr/0014.
"""

import asyncio
import contextlib
import hashlib
import math
import os
import re
import socket
import struct
import tempfile
import time
from pathlib import Path
from uuid import UUID

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import Deadline, TaskSet, WorkInterrupted, run_until
from gateway.common.lease import read_clock
from gateway.common.logging import get_logger
from gateway.common.timeouts import Timeouts
from gateway.domain.errors import ClientGone, SessionUnavailable
from gateway.domain.messages import Principal
from gateway_runtime.private_files import check_private_directory

log = get_logger(__name__)

_STALE_SOCKET_SECONDS = 60.0
_CREDENTIALS = struct.Struct("3i")
"""C's `struct ucred`: process, user and group."""
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
    """A request to another worker.

    It must not be served after `expires_at`, because then its client has got an error. All workers with a socket run on
    one machine, so they share the clock of `read_clock`.
    """

    scope: dict[str, object]
    principal: Principal
    body: bytes
    expires_at: float = math.inf


_encode = msgspec.msgpack.encode
_decode_request = msgspec.msgpack.Decoder(_ForwardedRequest).decode
_decode_message = msgspec.msgpack.Decoder(dict[str, object]).decode


class WorkerForwarder:
    """Forwards requests to other workers.

    It also serves, with `application`, the requests that other workers forward.
    """

    def __init__(self, worker_id: UUID, database: str, application: ASGIApp, timeouts: Timeouts) -> None:
        self.name = worker_id.hex
        self._timeouts = timeouts
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
            writer.transport.abort()

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

        False: the worker is this one or has ended, and nothing was read or sent.

        Raises:
            SessionUnavailable: the worker did not begin to answer in time.
        """
        if worker == self.name or not _WORKER_NAME.fullmatch(worker):
            return False
        try:
            check_private_directory(self._directory, os.geteuid())
            async with Deadline.after(self._timeouts.forwarding).limit():
                reader, writer = await asyncio.open_unix_connection(self._directory / worker)
            _check_peer(writer)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError as error:  # another user would get the caller's key
            log.error("forwarding_socket_foreign", directory=str(self._directory), error=str(error))
            return False
        except OSError as error:  # also a timeout; the socket of a frozen worker takes few connections
            log.warning("forwarding_failed", worker=worker, error=type(error).__name__)
            raise SessionUnavailable from None
        self._forward_writers.add(writer)
        try:
            exchange = self._exchange(scope, await _read_body(receive), reader, writer, send)
            with contextlib.suppress(WorkInterrupted):
                await run_until(exchange, _wait_for_disconnect(receive))
        finally:
            self._forward_writers.discard(writer)
            writer.transport.abort()  # a graceful close would wait for a frozen worker
        return True

    async def _exchange(
        self, scope: Scope, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, send: Send
    ) -> None:
        """Send the request, and relay the response.

        A response that breaks off or is silent is ended: its worker has ended or is frozen, or this worker stops.

        Raises:
            SessionUnavailable: there was no response.
        """
        deadline = Deadline.after(self._timeouts.forwarding)
        request = _ForwardedRequest(
            {key: scope[key] for key in _FORWARDED_SCOPE_KEYS if key in scope},
            scope[PRINCIPAL_SCOPE_KEY],
            body,
            expires_at=read_clock() + deadline.remaining(),
        )
        frame: bytes | None = None
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with deadline.limit():
                await _write_message(writer, request)
                frame = await _read_message(reader)
        if frame is None:
            log.warning("forwarded_request_unanswered")
            raise SessionUnavailable
        has_more = True
        while frame is not None:
            message = _decode_message(frame)
            has_more = message["type"] != "http.response.body" or bool(message.get("more_body", False))
            await send(message)
            frame = await self._read_next(reader) if has_more else None
        if has_more:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read_next(self, reader: asyncio.StreamReader) -> bytes | None:
        """Read the next frame; None: the connection has ended, or is silent."""
        try:
            async with Deadline.after(self._timeouts.forwarding_silence).limit():
                return await _read_message(reader)
        except TimeoutError:
            log.warning("forwarded_response_silent")
            return None

    # --- server side

    def _accept_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving_tasks.spawn(self._serve_connection(reader, writer))

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        disconnect: asyncio.Task[bytes] | None = None
        try:
            _check_peer(writer)
            async with Deadline.after(self._timeouts.body + self._timeouts.forwarding).limit():
                frame = await _read_message(reader)
            if frame is None:
                return
            request = _decode_request(frame)
            if read_clock() > request.expires_at:  # this worker was frozen, and the client got an error
                log.warning("forwarded_request_expired")
                return
            # The client sends nothing after the request, so this read returns when it disconnects.
            disconnect = asyncio.create_task(reader.read())
            await self._application(
                {**request.scope, "asgi": {"version": "3.0"}, PRINCIPAL_SCOPE_KEY: request.principal},
                _make_receive(request.body, disconnect),
                _make_send(writer),
            )
        except PermissionError as error:
            log.error("forwarding_socket_foreign", directory=str(self._directory), error=str(error))
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
        check_private_directory(self._directory, os.geteuid())
        for path in self._directory.iterdir():
            _remove_stale_socket(path)


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Check that a connection's other end is a process of this user.

    Where the system does not report it, the directory's owner and mode must suffice.

    Raises:
        PermissionError: another user serves the socket; the connection is closed.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        writer.transport.abort()
        raise PermissionError(f"the other end of the socket is a process of user {user}")


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
    """Read a request's whole body.

    Raises:
        ClientGone: the client has disconnected.
    """
    parts: list[bytes] = []
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message.get("body", b""))
        has_more = message.get("more_body", False)
    return b"".join(parts)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
    """Write a frame.

    Raises:
        ConnectionError: the connection has ended. The transports of uvloop raise RuntimeError for that.
    """
    if writer.is_closing():
        raise ConnectionResetError
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

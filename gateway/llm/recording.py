"""Exchanges with the model's server, kept as files, so that a failure in the field becomes a test.

One JSON file an exchange: what was asked, and the answer's status, headers and bytes, in the pieces in which they were
read. The simulator serves them back. Keys are masked; what people said is not, so keep the files as you keep the chats.
"""

import base64
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import uuid_utils

from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject

log = get_logger(__name__)

_SECRETS = re.compile(
    rb"gsk_[A-Za-z0-9]{8,}|(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}|(?<=Bearer )[A-Za-z0-9._~+/-]{8,}"
    rb"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    rb"|(?<![A-Z0-9])AKIA[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,}"
)
_HEADERS = re.compile(r"content-type|content-encoding|retry-after|x-request-id|x-ratelimit-[a-z-]+")
_SHORTEST_KEY, _PIECE = 12, 6
_MOST_BYTES = 8 * 1024 * 1024
_encode = msgspec.json.Encoder(order="deterministic").encode


class Piece(msgspec.Struct, frozen=True):
    """Bytes that are no text: where a piece begins or ends inside a character."""

    base64: str


class Exchange(msgspec.Struct, frozen=True):
    """One of them. `end`: the answer was `complete`, `broken` off, went `silent`, or its reader had `left`."""

    at: str
    path: str
    request: JsonObject
    status: int
    headers: dict[str, str]
    pieces: list[str | Piece]
    end: Literal["complete", "broken", "silent", "left"]

    @property
    def chunks(self) -> list[bytes]:
        """The answer's bytes."""
        return [p.encode() if isinstance(p, str) else base64.b64decode(p.base64) for p in self.pieces]


class Recorder:
    """Writes exchanges into a directory, of which it keeps the newest. `key` is the gateway's own at the server."""

    def __init__(self, directory: Path, *, key: str = "", most: int = 1_000) -> None:
        self._directory = directory
        self._most = most
        self._key = key.encode() if len(key) >= _SHORTEST_KEY else None

    @property
    def hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """`event_hooks` of an httpx client."""
        return {"response": [self._record]}

    async def _record(self, response: httpx.Response) -> None:
        request = response.request
        if request.method == "POST" and isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _Recorded(response, response.stream, self._write)

    def _write(self, response: httpx.Response, chunks: list[bytes], end: Any) -> None:
        """A disk that is full must not end a turn."""
        body = response.request.content
        secrets = _secrets(body) | ({self._key} if self._key else set[bytes]())
        exchange = Exchange(
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            path=response.request.url.path,
            request=msgspec.json.decode(masked(body, secrets)),
            status=response.status_code,
            headers={name: value for name, value in response.headers.items() if _HEADERS.fullmatch(name)},
            pieces=[_piece(chunk) for chunk in _masked_chunks(chunks, secrets)],
            end=end,
        )
        file = self._directory / f"{uuid_utils.uuid7()}.json"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_bytes(msgspec.json.format(msgspec.json.encode(exchange)))
            for old in sorted(self._directory.glob("*.json"))[: -self._most]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("exchange_not_recorded", error=type(error).__name__)


class _Recorded(httpx.AsyncByteStream):
    """An answer's body on its way to its reader."""

    def __init__(
        self,
        response: httpx.Response,
        inner: httpx.AsyncByteStream,
        write: Callable[[httpx.Response, list[bytes], str], None],
    ) -> None:
        self._response = response
        self._inner = inner
        self._write = write
        self._chunks: list[bytes] = []
        self._room = _MOST_BYTES
        self._end = "left"
        self._written = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                self._room -= len(chunk)
                if self._room >= 0:
                    self._chunks.append(chunk)
                yield chunk
            self._end = "complete"
        except (TimeoutError, httpx.TimeoutException):
            self._end = "silent"
            raise
        except Exception:
            self._end = "broken"
            raise

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            if not self._written and self._room >= 0:
                self._written = True
                self._write(self._response, self._chunks, self._end)


class Recordings:
    """The exchanges of a directory, by request. Those of the same request come in the order in which they were, and
    then from the first again."""

    def __init__(self, directory: Path) -> None:
        self._known: dict[bytes, deque[Exchange]] = {}
        for file in sorted(directory.glob("*.json")):
            try:
                exchange = msgspec.json.decode(file.read_bytes(), type=Exchange)
            except msgspec.DecodeError as error:
                log.warning("recording_unreadable", file=file.name, error=str(error))
                continue
            self._known.setdefault(_same(exchange.request), deque()).append(exchange)

    def take(self, body: bytes) -> Exchange | None:
        """The next answer to a request, if there is one."""
        try:
            request = msgspec.json.decode(masked(body, _secrets(body)), type=JsonObject)
        except msgspec.DecodeError:
            return None
        if (known := self._known.get(_same(request))) is None:
            return None
        known.rotate(-1)
        return known[-1]


def _secrets(data: bytes) -> set[bytes]:
    """What looks like a key."""
    return {match[0] for match in _SECRETS.finditer(data)}


def masked(data: bytes, secrets: Iterable[bytes]) -> bytes:
    """The same, as long, without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        data = data.replace(secret, b"*" * len(secret))
    return data


def _masked_chunks(chunks: list[bytes], secrets: set[bytes]) -> list[bytes]:
    """Chunks of the same lengths without secrets, their own ones or those of the request, of which they may hold parts:
    a model says a long word in several deltas."""
    whole = b"".join(chunks)
    known = {secret for secret in secrets if any(part in whole for part in _parts(secret))}
    whole = masked(whole, _secrets(whole) | known)
    if known:
        parts = {part for secret in known for part in _parts(secret)}
        hidden = bytearray(whole)
        for at in range(len(whole) - _PIECE + 1):
            if whole[at : at + _PIECE] in parts:
                hidden[at : at + _PIECE] = b"*" * _PIECE
        whole = bytes(hidden)
    ends = [0]
    for chunk in chunks:
        ends.append(ends[-1] + len(chunk))
    return [whole[start:end] for start, end in pairwise(ends)]


def _parts(secret: bytes) -> set[bytes]:
    return {secret[at : at + _PIECE] for at in range(len(secret) - _PIECE + 1)}


def _piece(chunk: bytes) -> str | Piece:
    try:
        return chunk.decode()
    except UnicodeDecodeError:
        return Piece(base64.b64encode(chunk).decode())


def _same(request: JsonObject) -> bytes:
    """What is the same for requests that differ only in the order of fields and the random names of calls."""
    names: dict[str, str] = {}
    messages: list[JsonObject] = []
    for message in request.get("messages") or ():
        calls = [
            {**call, "id": names.setdefault(str(call.get("id")), str(len(names)))}
            for call in message.get("tool_calls") or ()
        ]
        answered = message.get("tool_call_id")
        messages.append(
            message
            | ({"tool_calls": calls} if calls else {})
            | ({"tool_call_id": names.get(str(answered), str(answered))} if answered else {})
        )
    return _encode(request | {"messages": messages})

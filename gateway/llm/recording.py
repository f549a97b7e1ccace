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
_MIN_KEY_LENGTH, _FRAGMENT_LENGTH = 12, 6
_MAX_RECORDED_BYTES = 8 * 1024 * 1024
_encode = msgspec.json.Encoder(order="deterministic").encode


class RecordedChunk(msgspec.Struct, frozen=True):
    """Bytes that are no text: where a piece begins or ends inside a character."""

    base64: str


class RecordedExchange(msgspec.Struct, frozen=True):
    """One of them. `end`: the answer was `complete`, `broken` off, went `silent`, or its reader had `left`."""

    at: str
    path: str
    request: JsonObject
    status: int
    headers: dict[str, str]
    pieces: list[str | RecordedChunk]
    end: Literal["complete", "broken", "silent", "left"]

    @property
    def chunks(self) -> list[bytes]:
        """The answer's bytes."""
        return [p.encode() if isinstance(p, str) else base64.b64decode(p.base64) for p in self.pieces]


class Recorder:
    """Writes exchanges into a directory, of which it keeps the newest. `key` is the gateway's own at the server."""

    def __init__(self, directory: Path, *, key: str = "", max_files: int = 1_000) -> None:
        self._directory = directory
        self._max_files = max_files
        self._key = key.encode() if len(key) >= _MIN_KEY_LENGTH else None

    @property
    def hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """`event_hooks` of an httpx client."""
        return {"response": [self._record_response]}

    async def _record_response(self, response: httpx.Response) -> None:
        request = response.request
        if request.method == "POST" and isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _RecordingStream(response, response.stream, self._write_exchange)

    def _write_exchange(self, response: httpx.Response, chunks: list[bytes], end: Any) -> None:
        """A disk that is full must not end a turn."""
        body = response.request.content
        secrets = _find_secrets(body) | ({self._key} if self._key else set[bytes]())
        exchange = RecordedExchange(
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            path=response.request.url.path,
            request=msgspec.json.decode(mask_secrets(body, secrets)),
            status=response.status_code,
            headers={name: value for name, value in response.headers.items() if _HEADERS.fullmatch(name)},
            pieces=[_encode_chunk(chunk) for chunk in _mask_chunks(chunks, secrets)],
            end=end,
        )
        file = self._directory / f"{uuid_utils.uuid7()}.json"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_bytes(msgspec.json.format(msgspec.json.encode(exchange)))
            for old in sorted(self._directory.glob("*.json"))[: -self._max_files]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("exchange_not_recorded", error=type(error).__name__)


class _RecordingStream(httpx.AsyncByteStream):
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
        self._remaining_bytes = _MAX_RECORDED_BYTES
        self._end = "left"
        self._written = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                self._remaining_bytes -= len(chunk)
                if self._remaining_bytes >= 0:
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
            if not self._written and self._remaining_bytes >= 0:
                self._written = True
                self._write(self._response, self._chunks, self._end)


class Recordings:
    """The exchanges of a directory, by request. Those of the same request come in the order in which they were, and
    then from the first again."""

    def __init__(self, directory: Path) -> None:
        self._known: dict[bytes, deque[RecordedExchange]] = {}
        for file in sorted(directory.glob("*.json")):
            try:
                exchange = msgspec.json.decode(file.read_bytes(), type=RecordedExchange)
            except msgspec.DecodeError as error:
                log.warning("recording_unreadable", file=file.name, error=str(error))
                continue
            self._known.setdefault(_normalize_request(exchange.request), deque()).append(exchange)

    def take_response(self, body: bytes) -> RecordedExchange | None:
        """The next answer to a request, if there is one."""
        try:
            request = msgspec.json.decode(mask_secrets(body, _find_secrets(body)), type=JsonObject)
        except msgspec.DecodeError:
            return None
        if (known := self._known.get(_normalize_request(request))) is None:
            return None
        known.rotate(-1)
        return known[-1]


def _find_secrets(data: bytes) -> set[bytes]:
    """What looks like a key."""
    return {match[0] for match in _SECRETS.finditer(data)}


def mask_secrets(data: bytes, secrets: Iterable[bytes]) -> bytes:
    """The same, as long, without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        data = data.replace(secret, b"*" * len(secret))
    return data


def _mask_chunks(chunks: list[bytes], secrets: set[bytes]) -> list[bytes]:
    """Chunks of the same lengths without secrets, their own ones or those of the request, of which they may hold parts:
    a model says a long word in several deltas."""
    whole = b"".join(chunks)
    known = {secret for secret in secrets if any(part in whole for part in _list_fragments(secret))}
    whole = mask_secrets(whole, _find_secrets(whole) | known)
    if known:
        parts = {part for secret in known for part in _list_fragments(secret)}
        hidden = bytearray(whole)
        for at in range(len(whole) - _FRAGMENT_LENGTH + 1):
            if whole[at : at + _FRAGMENT_LENGTH] in parts:
                hidden[at : at + _FRAGMENT_LENGTH] = b"*" * _FRAGMENT_LENGTH
        whole = bytes(hidden)
    ends = [0]
    for chunk in chunks:
        ends.append(ends[-1] + len(chunk))
    return [whole[start:end] for start, end in pairwise(ends)]


def _list_fragments(secret: bytes) -> set[bytes]:
    return {secret[at : at + _FRAGMENT_LENGTH] for at in range(len(secret) - _FRAGMENT_LENGTH + 1)}


def _encode_chunk(chunk: bytes) -> str | RecordedChunk:
    try:
        return chunk.decode()
    except UnicodeDecodeError:
        return RecordedChunk(base64.b64encode(chunk).decode())


def _normalize_request(request: JsonObject) -> bytes:
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

"""Records exchanges with the model's server as JSON files.

The simulator can replay them. A file has the request, and the status, headers and bytes of the response in the chunks
in which they were read. API keys are masked. Messages are not: protect the files like the conversations.
"""

import base64
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

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


ResponseEnd = Literal["complete", "broken", "silent", "left"]


class RecordedChunk(msgspec.Struct, frozen=True):
    """A chunk that is not valid UTF-8.

    It begins or ends inside a character.
    """

    base64: str


class RecordedExchange(msgspec.Struct, frozen=True):
    """A request and its response.

    `end`: the response was `complete`, was `broken` off, timed out (`silent`), or its reader `left` before the end.
    """

    at: str
    path: str
    request: JsonObject
    status: int
    headers: dict[str, str]
    pieces: list[str | RecordedChunk]
    end: ResponseEnd

    @property
    def chunks(self) -> list[bytes]:
        """Return the bytes of the response, one item per read."""
        return [p.encode() if isinstance(p, str) else base64.b64decode(p.base64) for p in self.pieces]


class Recorder:
    """Writes exchanges into a directory and deletes all but the newest `max_files`.

    `key`: the gateway's API key, which is masked.
    """

    def __init__(self, directory: Path, *, key: str = "", max_files: int = 1_000) -> None:
        self._directory = directory
        self._max_files = max_files
        self._key = key.encode() if len(key) >= _MIN_KEY_LENGTH else None

    @property
    def hooks(self) -> dict[str, list[Callable[[httpx.Response], Awaitable[None]]]]:
        """Return `event_hooks` for an httpx client."""
        return {"response": [self._record_response]}

    async def _record_response(self, response: httpx.Response) -> None:
        request = response.request
        if request.method == "POST" and isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _RecordingStream(response, response.stream, self._write_exchange)

    def _write_exchange(self, response: httpx.Response, chunks: list[bytes], end: ResponseEnd) -> None:
        """Write a file.

        Failures are logged: a full disk must not end a turn.
        """
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
            log.warning("exchange_recording_failed", error=type(error).__name__)


class _RecordingStream(httpx.AsyncByteStream):
    """Response body that records its chunks while they are read."""

    def __init__(
        self,
        response: httpx.Response,
        inner: httpx.AsyncByteStream,
        write: Callable[[httpx.Response, list[bytes], ResponseEnd], None],
    ) -> None:
        self._response = response
        self._inner = inner
        self._write = write
        self._chunks: list[bytes] = []
        self._remaining_bytes = _MAX_RECORDED_BYTES
        self._end: ResponseEnd = "left"
        self._is_written = False

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
            if not self._is_written and self._remaining_bytes >= 0:
                self._is_written = True
                self._write(self._response, self._chunks, self._end)


class Recordings:
    """The recorded exchanges of a directory, by request.

    Exchanges with equal requests are served in recorded order, and then from the first one again.
    """

    def __init__(self, directory: Path) -> None:
        self._exchanges: dict[bytes, deque[RecordedExchange]] = {}
        for file in sorted(directory.glob("*.json")):
            try:
                exchange = msgspec.json.decode(file.read_bytes(), type=RecordedExchange)
            except msgspec.DecodeError as error:
                log.warning("recording_decode_failed", file=file.name, error=str(error))
                continue
            self._exchanges.setdefault(_normalize_request(exchange.request), deque()).append(exchange)

    def take_response(self, body: bytes) -> RecordedExchange | None:
        """Return the next recorded exchange for a request body.

        None if there is none.
        """
        try:
            request = msgspec.json.decode(mask_secrets(body, _find_secrets(body)), type=JsonObject)
        except msgspec.DecodeError:
            return None
        if (exchanges := self._exchanges.get(_normalize_request(request))) is None:
            return None
        exchanges.rotate(-1)
        return exchanges[-1]


def _find_secrets(data: bytes) -> set[bytes]:
    """Find texts that look like API keys or tokens."""
    return {match[0] for match in _SECRETS.finditer(data)}


def mask_secrets(data: bytes, secrets: Iterable[bytes]) -> bytes:
    """Replace secrets by asterisks of the same length."""
    for secret in sorted(secrets, key=len, reverse=True):
        data = data.replace(secret, b"*" * len(secret))
    return data


def _mask_chunks(chunks: list[bytes], secrets: set[bytes]) -> list[bytes]:
    """Mask secrets in chunks, whose lengths stay.

    Also masks fragments of the request's secrets: a model writes a long word in several deltas.
    """
    body = b"".join(chunks)
    found_secrets = {secret for secret in secrets if any(part in body for part in _list_fragments(secret))}
    body = mask_secrets(body, _find_secrets(body) | found_secrets)
    if found_secrets:
        fragments = {part for secret in found_secrets for part in _list_fragments(secret)}
        masked_body = bytearray(body)
        for start in range(len(body) - _FRAGMENT_LENGTH + 1):
            if body[start : start + _FRAGMENT_LENGTH] in fragments:
                masked_body[start : start + _FRAGMENT_LENGTH] = b"*" * _FRAGMENT_LENGTH
        body = bytes(masked_body)
    ends = [0]
    for chunk in chunks:
        ends.append(ends[-1] + len(chunk))
    return [body[start:end] for start, end in pairwise(ends)]


def _list_fragments(secret: bytes) -> set[bytes]:
    return {secret[start : start + _FRAGMENT_LENGTH] for start in range(len(secret) - _FRAGMENT_LENGTH + 1)}


def _encode_chunk(chunk: bytes) -> str | RecordedChunk:
    try:
        return chunk.decode()
    except UnicodeDecodeError:
        return RecordedChunk(base64.b64encode(chunk).decode())


def _normalize_request(request: JsonObject) -> bytes:
    """Encode a request independently of field order and call ids.

    Call ids are random.
    """
    ids: dict[str, str] = {}
    messages: list[JsonObject] = []
    for message in request.get("messages") or ():
        calls = [
            {**call, "id": ids.setdefault(str(call.get("id")), str(len(ids)))}
            for call in message.get("tool_calls") or ()
        ]
        call_id = message.get("tool_call_id")
        messages.append(
            message
            | ({"tool_calls": calls} if calls else {})
            | ({"tool_call_id": ids.get(str(call_id), str(call_id))} if call_id else {})
        )
    return _encode(request | {"messages": messages})

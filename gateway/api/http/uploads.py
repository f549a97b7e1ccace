"""Forms with a file, read into a temporary file within limits."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import IO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from gateway.common.concurrency import Deadline
from gateway.config import Settings
from gateway.domain.errors import ClientGone, InvalidRequest, Overloaded, PayloadTooLarge, RateLimited
from gateway_runtime.request_body import BodyRejected, reject_compressed

_SLOT_SECONDS = 10.0
_RETRY_SECONDS = 5
_SILENCE_SECONDS = 30.0
_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 256 * 1024


@dataclass(frozen=True)
class UploadedForm:
    """Text fields in order, and one file of `size` bytes."""

    fields: list[tuple[str, str]]
    file: IO[bytes]
    size: int
    filename: str
    media_type: str

    def get_field(self, name: str) -> str | None:
        """Return a field.

        Raises:
            InvalidRequest: the form has it more than once, so that servers may read different ones.
        """
        values = [value for field, value in self.fields if field == name]
        if len(values) > 1:
            raise InvalidRequest(f"{name}: the form has it {len(values)} times; send it once.", param=name)
        return values[0] if values else None


class UploadReader:
    """Reads uploads, a bounded number at a time.

    An upload holds its slot until it has been passed on: its temporary file takes space. A user may have half of the
    slots, so that the others stay free for other users.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_upload_bytes
        self._seconds = settings.upstream_timeout_seconds
        self._slots = asyncio.Semaphore(settings.max_uploads)
        self._max_of_user = (settings.max_uploads + 1) // 2
        self._uploads: Counter[str] = Counter()

    @asynccontextmanager
    async def read(self, request: Request, user: str) -> AsyncGenerator[UploadedForm]:
        """Read the form of a request.

        Raises:
            GatewayError: the body is no such form, too large or too slow, or too many uploads are under way.
        """
        _check_head(request, self._max_bytes)
        with self._count_upload(user):
            async with self._hold_slot():
                form = await self._parse(request)
                try:
                    yield form
                finally:
                    form.file.close()

    @contextmanager
    def _count_upload(self, user: str) -> Generator[None]:
        if self._uploads[user] >= self._max_of_user:
            raise RateLimited(
                f"You have {self._max_of_user} uploads under way (half of MAX_UPLOADS). Try again shortly.",
                retry_after=_RETRY_SECONDS,
            )
        self._uploads[user] += 1
        try:
            yield
        finally:
            self._uploads[user] -= 1
            if not self._uploads[user]:
                del self._uploads[user]

    @asynccontextmanager
    async def _hold_slot(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(_SLOT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded(
                "Too many uploads are under way (MAX_UPLOADS). Try again shortly.", retry_after=_RETRY_SECONDS
            ) from None
        try:
            yield
        finally:
            self._slots.release()

    async def _parse(self, request: Request) -> UploadedForm:
        parser = MultiPartParser(
            request.headers,
            self._bound_stream(request),
            max_files=1,
            max_fields=_MAX_FIELDS,
            max_part_size=_MAX_FIELD_BYTES,
        )
        try:
            items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise InvalidRequest(f"The body is not a valid form: {error.message}") from None
        except ClientDisconnect:
            raise ClientGone from None
        files = [(name, value) for name, value in items if isinstance(value, UploadFile)]
        if len(files) != 1 or files[0][0] != "file":
            for _, file in files:
                file.file.close()
            raise InvalidRequest("file: the form needs one file in this field.", param="file")
        upload = files[0][1]
        return UploadedForm(
            [(name, value) for name, value in items if isinstance(value, str)],
            upload.file,
            upload.size or 0,
            upload.filename or "file",
            upload.content_type or "",
        )

    async def _bound_stream(self, request: Request) -> AsyncGenerator[bytes]:
        """Yield the body, and stop at its limits of size and time."""
        size, deadline = 0, Deadline.after(self._seconds)
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(min(_SILENCE_SECONDS, deadline.remaining())):
                    data = await anext(stream, None)
            except TimeoutError:
                raise InvalidRequest("The body did not arrive in time.") from None
            if data is None:
                return
            size += len(data)
            if size > self._max_bytes:
                raise make_too_large(self._max_bytes)
            yield data


def make_too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The upload is larger than the limit of {max_bytes:,} bytes (MAX_UPLOAD_BYTES).")


def _check_head(request: Request, max_bytes: int) -> None:
    """Refuse by the headers alone what cannot be read."""
    try:
        reject_compressed(request.scope["headers"])
    except BodyRejected as error:
        raise InvalidRequest(error.message) from None
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("Send a form (multipart/form-data) with a file in the field `file`.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise make_too_large(max_bytes)

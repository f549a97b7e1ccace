"""Forms with a file, written anew for the model's server."""

import re
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import IO

from gateway.ports.upstream import StreamedBody

_PIECE_BYTES = 64 * 1024
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)
_ESCAPES = {'"': "%22", "\r": "%0D", "\n": "%0A"}
_MAX_NAME_CHARS = 255


class MultipartBody(StreamedBody):
    """A form of text fields and one file, read in pieces.

    Names and values cannot begin another part: the boundary is random, and names are escaped.
    """

    def __init__(
        self, fields: Sequence[tuple[str, str]], file: IO[bytes], *, size: int, filename: str, media_type: str
    ) -> None:
        boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [f"--{boundary}\r\n{_describe_part(name)}\r\n\r\n{value}\r\n" for name, value in fields]
        media_type = media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
        disposition = f'{_describe_part("file")}; filename="{_escape(filename)}"'
        parts.append(f"--{boundary}\r\n{disposition}\r\nContent-Type: {media_type}\r\n\r\n")
        self._head = "".join(parts).encode(errors="replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self._file_size = size

    @property
    def size(self) -> int:
        return len(self._head) + self._file_size + len(self._tail)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._head
        self._file.seek(0)
        while data := self._file.read(_PIECE_BYTES):
            yield data
        yield self._tail


def _describe_part(name: str) -> str:
    return f'Content-Disposition: form-data; name="{_escape(name)}"'


def _escape(name: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in name[:_MAX_NAME_CHARS] if character != "\0")

"""Limits the size of what a model server answers, after decompression.

httpx decompresses each chunk as a whole, and the SDKs read refusals of any length.
"""

import zlib
from collections.abc import AsyncGenerator, Iterator

import httpx

_MAX_PIECE_BYTES = 64 * 1024
MAX_REFUSAL_BYTES = 1024 * 1024
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
"""Of the answer to a GET request."""
MAX_BYTES_EXTENSION = "gateway.max_bytes"
"""Extension of a request with the maximum size of its answer."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """Decompresses bodies in small pieces, and stops at their maximum size.

    The body of a refusal is truncated. The answers to POST requests have no maximum here, because their readers count
    what they read; uncompressed ones are passed on without any work.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return bound_response(await self._inner.handle_async_request(request), request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def bound_response(response: httpx.Response, request: httpx.Request) -> httpx.Response:
    """Limit the size of a response's body, unless its reader counts it."""
    encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
    max_bytes = request.extensions.get(MAX_BYTES_EXTENSION, None if request.method == "POST" else MAX_DOCUMENT_BYTES)
    if response.is_success and max_bytes is None and encoding == "identity":
        return response
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _BoundedStream(
        response.stream,
        _PieceDecoder(encoding),
        max_bytes if response.is_success else MAX_REFUSAL_BYTES,
        truncates=not response.is_success,
    )
    for name in ("content-encoding", "content-length"):  # they describe the body before it is decompressed
        response.headers.pop(name, None)
    return response


class _BoundedStream(httpx.AsyncByteStream):
    """A decompressed body, until it exceeds its maximum."""

    def __init__(
        self, inner: httpx.AsyncByteStream, decoder: "_PieceDecoder", max_bytes: int | None, *, truncates: bool
    ) -> None:
        self._inner = inner
        self._decoder = decoder
        self._max_bytes = max_bytes
        self._truncates = truncates

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        size = 0
        async for chunk in self._inner:
            for piece in self._decoder.decode(chunk):
                size += len(piece)
                if self._max_bytes is not None and size > self._max_bytes:
                    if self._truncates:
                        return
                    raise httpx.ReadError("the answer is too large")
                yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


class _PieceDecoder:
    """Decompresses gzip and deflate into pieces of a bounded size."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._is_first = True

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the pieces of a chunk.

        Raises:
            httpx.DecodingError: the body is malformed, or its encoding is not supported.
        """
        if self._encoding == "identity":
            yield data
            return
        if self._encoding not in ("gzip", "x-gzip", "deflate"):
            raise httpx.DecodingError("the model's server uses an encoding that was not asked for")
        while data:
            try:
                piece = self._inflate(data)
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from None
            if piece:
                yield piece
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of the next member

    def _inflate(self, data: bytes) -> bytes:
        is_first, self._is_first = self._is_first, False
        try:
            return self._inflater.decompress(data, _MAX_PIECE_BYTES)
        except zlib.error:
            if not is_first or self._encoding != "deflate":
                raise
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # some servers send deflate without a header
        return self._inflater.decompress(data, _MAX_PIECE_BYTES)

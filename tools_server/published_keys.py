"""Public keys of token issuers, as JWKS documents (RFC 7517)."""

import asyncio
import time
from pathlib import Path

import aiohttp
import jwt
import structlog

from gateway_runtime.background.tasks import SupervisedTask

log = structlog.stdlib.get_logger(__name__)

_MAX_DOCUMENT_BYTES = 1024 * 1024
_FETCH_TIMEOUT_SECONDS, _LIFETIME_SECONDS = 5.0, 3600.0
_WAIT_TIMEOUT_SECONDS = 6.0
_MIN_INTERVAL_SECONDS, _MIN_FIRST_INTERVAL_SECONDS = 5.0, 0.5
_UNUSABLE_DOCUMENT_ERRORS = (jwt.PyJWTError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


class KeysUnavailable(Exception):
    """The document could not be read yet."""


class UnknownKey(Exception):
    """The document has no key of this id."""


class PublishedKeys:
    """The keys of a JWKS document.

    It is at a URL or in a file. Keys are read again after an hour, or when a token names an unknown key, at most every
    five seconds, and twice a second until the first read succeeds (a gateway may start later). All requests wait for
    the same read. The read and each wait have a total time limit. While reads fail, the known keys stay valid.
    """

    def __init__(self, source: str | Path) -> None:
        self._source = source
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = self._attempted_at = float("-inf")
        self._reading = SupervisedTask("published keys", self._replace_keys, restart=False)

    async def find_key(self, token: str) -> jwt.PyJWK:
        """Return the key that a token names.

        Raises:
            jwt.PyJWTError: the token has no valid header.
            KeysUnavailable, UnknownKey: there is no such key.
        """
        key_id = jwt.get_unverified_header(token).get("kid")
        if key_id not in self._keys or time.monotonic() - self._read_at > _LIFETIME_SECONDS:
            await self._refresh()
        if (key := self._keys.get(key_id)) is not None:
            return key
        raise UnknownKey if self._keys else KeysUnavailable

    async def _refresh(self) -> None:
        """Wait for a read of the document, but at most `_WAIT_TIMEOUT_SECONDS`.

        A read starts unless the last one was a moment ago.
        """
        if not self._reading.is_running:
            interval = _MIN_INTERVAL_SECONDS if self._keys else _MIN_FIRST_INTERVAL_SECONDS
            if time.monotonic() - self._attempted_at < interval:
                return
            self._reading.start()
        # A file of a network file system, or the resolution of a name, may outlast the read's own limit.
        await self._reading.wait(_WAIT_TIMEOUT_SECONDS)

    async def _replace_keys(self) -> None:
        """Replace the keys; a document that cannot be read leaves them unchanged."""
        try:
            document = jwt.PyJWKSet.from_json(await self._read_document())
        except (aiohttp.ClientError, OSError, TimeoutError, *_UNUSABLE_DOCUMENT_ERRORS) as error:
            log.warning("keys_not_read", error=type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in document.keys if key.public_key_use in (None, "sig")}
            self._read_at = time.monotonic()
        finally:
            self._attempted_at = time.monotonic()

    async def _read_document(self) -> str:
        if isinstance(self._source, Path):
            return await asyncio.to_thread(_read_file, self._source)
        timeout = aiohttp.ClientTimeout(total=_FETCH_TIMEOUT_SECONDS)
        body = bytearray()
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self._source) as response:
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(65_536):
                body += chunk
                if len(body) > _MAX_DOCUMENT_BYTES:
                    raise ValueError("the document is too large")
        return body.decode()


def _read_file(path: Path) -> str:
    """Read a regular file of a limited size.

    A pipe would block the thread.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        data = file.read(_MAX_DOCUMENT_BYTES + 1)
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise ValueError("the document is too large")
    return data.decode()

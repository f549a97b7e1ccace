"""Errors of the HTTP client, without addresses and contents."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType


class HttpClientError(Exception):
    """A request that got no complete response."""


class ConnectFailed(HttpClientError):
    """No connection could be opened."""


class ConnectTimedOut(HttpClientError, TimeoutError):
    """No connection was open in time."""


class TooManyConnections(HttpClientError, TimeoutError):
    """All connections stayed in use for too long."""


class RequestInvalid(HttpClientError):
    """A header has a line break, or the address another scheme."""


class RequestTimedOut(HttpClientError, TimeoutError):
    """The server did not read the request in time."""


class ResponseTimedOut(HttpClientError, TimeoutError):
    """The server sent nothing for too long."""


class ResponseBroken(HttpClientError):
    """The connection ended inside a response, or sent no HTTP."""


class ErrorTranslation(AbstractContextManager[None]):
    """Translates errors of this client to those of a library above it.

    It has no state for a block, so one serves all of them.
    """

    def __init__(self, classes: Mapping[type[HttpClientError], type[Exception]]) -> None:
        self._classes = classes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, HttpClientError):
            raise self._classes[type(error)](str(error)) from error

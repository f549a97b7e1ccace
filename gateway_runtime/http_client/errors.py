"""Errors of the HTTP client, without addresses and contents."""


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

"""Sends tool calls without the tasks and streams of the SDK.

See docs/adr/0035.
"""

import contextlib
import contextvars
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import cast

import httpx2
import msgspec
from mcp.types import RequestId

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject
from gateway.mcp_client.http.call_lifetime import begin_direct_call, lasting_exchange
from gateway.mcp_client.http.pooled_transport import SET_COMPLETE
from gateway.mcp_client.http_transport import SESSION_HEADER

_FAILURES = (httpx2.RequestError, httpx2.StreamError)
_OK = 200
_JSON, _EVENT_STREAM = "application/json", "text/event-stream"
_MESSAGE_HEADERS = {"accept": f"{_JSON}, {_EVENT_STREAM}", "content-type": _JSON}
_RESULT_MEMBERS = {"jsonrpc", "id", "result"}
_ONLY_EVENT = re.compile(rb"(?:(?:event: ?message|id: ?[^\r\n]*)\r?\n)*data: ?(\{[^\r\n]*\})\r?\n\r?\n")


class UnusualOutcome:
    """An outcome that the SDK has to judge.

    It is any answer but a result as JSON or as the first event of a stream, or the failure of the exchange.
    """

    def __init__(self, outcome: httpx2.Response | httpx2.RequestError) -> None:
        self._outcome = outcome

    @contextlib.asynccontextmanager
    async def leave_to_sdk(self) -> AsyncGenerator[None]:
        """Make it the outcome of the first HTTP request of this block."""
        outcomes: list[UnusualOutcome] = [self]
        token = _outcomes.set(outcomes)
        try:
            with lasting_exchange():
                yield
        finally:
            _outcomes.reset(token)
            if outcomes and isinstance(self._outcome, httpx2.Response):  # the SDK has sent none
                outcomes.clear()
                await self._outcome.aclose()

    def take_response(self) -> httpx2.Response:
        """Return the response, or raise the failure."""
        if isinstance(self._outcome, httpx2.RequestError):
            raise self._outcome
        return self._outcome


class DirectCallTransport(httpx2.AsyncBaseTransport):
    """Sends tool calls, beside the requests of the SDK's client.

    `is_usable`: the SDK's client would send a call with the same headers. It alone knows cookies, and credentials of
    the address.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        url: str,
        hooks: Sequence[Callable[[httpx2.Request], Awaitable[None]]],
        timeout: httpx2.Timeout,
        max_event_bytes: int,
    ) -> None:
        self._inner = inner
        self._url = httpx2.URL(url)
        self._hooks = hooks
        self._timeouts = {**timeout.as_dict(), "read": None}
        self._max_event_bytes = max_event_bytes
        self._headers = httpx2.Headers()
        self._session: str | None = None
        self.is_usable = not self._url.userinfo

    def use_headers(self, headers: httpx2.Headers) -> None:
        """Send calls with the headers of the SDK's client."""
        self._headers = headers.copy()
        self._headers.update(_MESSAGE_HEADERS)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if outcomes := _outcomes.get():
            response = outcomes.pop().take_response()
        else:
            response = await self._inner.handle_async_request(request)
        self._session = request.headers.get(SESSION_HEADER)
        self.is_usable = self.is_usable and "set-cookie" not in response.headers
        return response

    async def send_call(
        self, request_id: RequestId, message: JsonObject, headers: Mapping[str, str]
    ) -> JsonObject | UnusualOutcome:
        """Send a call and return its result.

        The caller limits its time.
        """
        request = self._build_request(message, headers)
        begin_direct_call()
        try:
            for hook in self._hooks:
                await hook(request)
            response = await self._inner.handle_async_request(request)
        except httpx2.RequestError as error:
            return UnusualOutcome(error)
        body = _RepeatableBody(response)
        is_left = False
        try:
            result = await self._read_result(response, body, request_id)
            is_left = result is None
            if result is not None and (set_complete := response.extensions.get(SET_COMPLETE)) is not None:
                set_complete()
        finally:
            if not is_left:
                await response.aclose()
        if result is not None:
            return result
        response.stream = body
        return UnusualOutcome(response)

    def _build_request(self, message: JsonObject, headers: Mapping[str, str]) -> httpx2.Request:
        all_headers = self._headers.copy()
        if self._session is not None:
            all_headers[SESSION_HEADER] = self._session
        all_headers.update(headers)
        content, extensions = msgspec.json.encode(message), {"timeout": self._timeouts}
        return httpx2.Request("POST", self._url, headers=all_headers, content=content, extensions=extensions)

    async def _read_result(
        self, response: httpx2.Response, body: "_RepeatableBody", request_id: RequestId
    ) -> JsonObject | None:
        if response.status_code != _OK or "set-cookie" in response.headers:
            return None
        content_type = response.headers.get("content-type", "").lower()
        if content_type.startswith(_JSON):
            return _find_result(await body.read_all(), request_id)
        if not content_type.startswith(_EVENT_STREAM) or "content-encoding" in response.headers:
            return None
        data = await body.read_first()
        event = _ONLY_EVENT.fullmatch(data) if len(data) <= self._max_event_bytes else None
        return None if event is None else _find_result(event[1], request_id)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _RepeatableBody(httpx2.AsyncByteStream):
    """A body that begins again after it was read in part."""

    def __init__(self, response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._inner = response.stream
        self._rest = aiter(response.stream)
        self._pieces: list[bytes] = []
        self._error: Exception | None = None

    async def read_all(self) -> bytes:
        """Read the body to its end, or to a failure."""
        try:
            async for piece in self._rest:
                self._pieces.append(piece)  # one by one: a failure loses none
        except _FAILURES as error:
            self._error = error
        return b"".join(self._pieces)

    async def read_first(self) -> bytes:
        """Read what arrives first."""
        try:
            self._pieces.append(await anext(self._rest, b""))
        except _FAILURES as error:
            self._error = error
        return b"".join(self._pieces)

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error
        async for piece in self._rest:
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


def _find_result(data: bytes, request_id: RequestId) -> JsonObject | None:
    """Return the result in a JSON-RPC message, if it is the request's."""
    try:
        message = msgspec.json.decode(data, type=JsonObject)
    except JSON_DECODE_ERRORS:
        return None
    is_result = message.keys() == _RESULT_MEMBERS and message["jsonrpc"] == "2.0" and message["id"] == request_id
    result: object = message["result"] if is_result else None
    return cast("JsonObject", result) if isinstance(result, dict) else None


_outcomes: contextvars.ContextVar[list[UnusualOutcome] | None] = contextvars.ContextVar("mcp_outcomes", default=None)

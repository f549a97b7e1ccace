"""Client of the model server's API beyond chat."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import cached_property

import httpx

from gateway.common.concurrency import Deadline
from gateway.domain.errors import GatewayError, InvalidRequest, ModelRequestRefused, NotFound, PromptTooLong
from gateway.llm.client import ModelServerConnection
from gateway.llm.http.bounded_transport import MAX_BYTES_EXTENSION
from gateway.llm.http.sdk_client import create_http_client
from gateway.llm.tool_repair.json_repair import is_object
from gateway.llm.upstream_errors import decode_error_body, read_upstream_error
from gateway.ports.upstream import StreamedBody, UpstreamAnswer, UpstreamApi, UpstreamRequest
from gateway_runtime.telemetry.trace_context import get_trace_headers

_CONNECT_TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_MAX_PARAM_CHARS = 200


class _PassedAnswer(UpstreamAnswer):
    """See `UpstreamAnswer`."""

    def __init__(self, response: httpx.Response, connection: ModelServerConnection) -> None:
        self._response = response
        self._connection = connection

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "")

    async def iterate_bytes(self) -> AsyncGenerator[bytes]:
        with self._connection.translated_errors:
            async for data in self._response.aiter_raw():  # decompressed by the transport
                yield data


class UpstreamClient(UpstreamApi):
    """See `UpstreamApi`.

    It has connections of its own, so that large bodies do not delay chats. The request and its answer together take at
    most `timeout_seconds`.
    """

    def __init__(self, connection: ModelServerConnection, *, timeout_seconds: float) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds

    @cached_property
    def _http_client(self) -> httpx.AsyncClient:
        return create_http_client(None)

    async def close(self) -> None:
        if "_http_client" in self.__dict__:
            await self._http_client.aclose()

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncGenerator[UpstreamAnswer]:
        """See `UpstreamApi.open`.

        Raises:
            UpstreamRateLimited: the wait for the model's rate limits would be too long.
        """
        connection = self._connection
        deadline = Deadline.after(self._timeout_seconds)
        async with AsyncExitStack() as stack:
            stack.enter_context(connection.translated_errors)
            await stack.enter_async_context(deadline.limit())
            permit = None
            if request.model:
                permit = await stack.enter_async_context(
                    connection.limiter.create_permit(
                        request.model,
                        tokens=request.tokens,
                        user=request.user,
                        max_wait_seconds=connection.queue_seconds,
                    )
                )
            response = await self._http_client.send(self._build_request(request), stream=True)
            await stack.enter_async_context(aclosing(response))
            if permit is not None:
                permit.on_response(response.headers, response.status_code)
            if not response.is_success:
                body = decode_error_body(await response.aread())
                raise self._make_error(request, response, body)
            yield _PassedAnswer(response, connection)

    def _build_request(self, request: UpstreamRequest) -> httpx.Request:
        connection = self._connection
        headers = connection.headers | {"Accept": "*/*"} | get_trace_headers()
        if request.content_type:
            headers["Content-Type"] = request.content_type
        content: bytes | StreamedBody | None = request.body or None
        if content is not None and not isinstance(content, bytes):
            headers["Content-Length"] = str(content.size)
        timeout = httpx.Timeout(self._timeout_seconds, connect=_CONNECT_TIMEOUT_SECONDS).as_dict()
        return httpx.Request(
            request.method,
            connection.url + request.path,
            headers=headers,
            content=content,
            extensions={"timeout": timeout, MAX_BYTES_EXTENSION: MAX_ANSWER_BYTES},
        )

    def _make_error(self, request: UpstreamRequest, response: httpx.Response, body: object) -> GatewayError:
        """Translate a refusal.

        That of an unknown address names the setting of the server.
        """
        error, status = read_upstream_error(body), response.status_code
        names_object = not request.model and "/" in request.path
        is_about_model = bool(request.model) and error.is_about_model
        if status in (404, 405, 501) and not is_about_model and not names_object:
            return NotFound(
                f"The model's server has no /{request.path}. The administrator can set {self._connection.url_setting}"
                " to a server that has it."
            )
        if status == 404 and names_object:
            return NotFound(error.message[:500] or None)
        translated = self._connection.make_status_error(response.status_code, response.headers, body)
        if isinstance(translated, PromptTooLong):
            return InvalidRequest(f"The model's server refused the request: {error.message[:500]}", param="input")
        if isinstance(translated, ModelRequestRefused):
            translated.param = _read_param(body)
        return translated


def _read_param(body: object) -> str | None:
    inner = body.get("error") if is_object(body) else None
    param = inner.get("param") if is_object(inner) else None
    return param[:_MAX_PARAM_CHARS] if isinstance(param, str) else None

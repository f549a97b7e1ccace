"""A model server with OpenAI's chat-completions format.

The Groq or OpenAI SDK provides authentication and addresses. A call is sent with prepared headers, and its stream is
read as bytes. See docs/adr/0003.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import httpx
import msgspec

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.domain.errors import (
    GatewayError,
    ModelAnswerTooLong,
    ModelError,
    ModelRateLimited,
    ModelRequestRefused,
    ModelStreamBroken,
    ModelUnavailable,
)
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject
from gateway.llm.catalog import Catalog
from gateway.llm.http.completion_requests import CompletionRequests, CompletionResponse
from gateway.llm.http.sdk_client import create_http_client
from gateway.llm.message_indexes import name_client_messages
from gateway.llm.rate_limit.limiter import ModelRateLimiter, RateLimitPermit
from gateway.llm.recording import Recorder
from gateway.llm.stream import MAX_ANSWER_CHARS, ChunkReader, read_whole_answer
from gateway.llm.upstream_errors import decode_error_body, make_status_error
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink
from gateway.ports.model_sdk import SdkClient, SdkModule, SdkStatusError
from gateway_runtime.telemetry.trace_context import get_trace_headers

log = get_logger(__name__)

_CONNECT_TIMEOUT_SECONDS = 5.0
_CATALOG_REFRESH_SECONDS = 3600.0
_EXPECTED_ANSWER_TOKENS = 1_024
_MAX_BODY_BYTES = 4 * MAX_ANSWER_CHARS
_MAX_REFUSAL_BYTES = 1024 * 1024
_CLOSE_WAIT_SECONDS = 0.2
_USAGE_WAIT_SECONDS = 1.0
"""Seconds to wait for the usage after the finish reason.

OpenAI sends the usage in a chunk of its own.
"""
_OMITTED_HEADERS = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
_OMITTED_CALL_HEADERS = ("Retry-Count", "Read-Timeout")


class _ModelList(msgspec.Struct):
    data: list[JsonObject] | None = None


def _omit_headers(sdk: SdkModule, names: tuple[str, ...]) -> dict[str, Any]:
    return {f"X-Stainless-{name}": sdk.Omit() for name in names}


@dataclass(frozen=True, kw_only=True)
class ModelServerOptions:
    """Connection to a model server, and its limits.

    `idle_timeout` is in seconds between two reads. A call waits at most `queue_seconds` for a permit of `limiter`,
    which has the rate limits of the key.
    """

    api_key: str = field(repr=False)
    base_url: str
    idle_timeout: float = 60.0
    limiter: ModelRateLimiter = field(default_factory=ModelRateLimiter)
    queue_seconds: float = 30.0
    recorder: Recorder | None = None

    def make_client_arguments(self, sdk: SdkModule, http_client: httpx.AsyncClient) -> dict[str, Any]:
        """Make the arguments of an SDK's client.

        The headers suppress the SDK's details about this machine. See docs/adr/0003.
        """
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "max_retries": 0,  # `ResilientModel` retries, visibly to clients
            "timeout": httpx.Timeout(self.idle_timeout, connect=_CONNECT_TIMEOUT_SECONDS),
            "http_client": http_client,
            "default_headers": _omit_headers(sdk, _OMITTED_HEADERS),
        }


@dataclass(frozen=True, kw_only=True)
class ModelServerConnection:
    """The address of a model server, and how its errors are translated.

    `url` ends in `/`; `url_setting` names its setting. `headers` authenticate a request.
    """

    url: str
    url_setting: str
    headers: dict[str, str] = field(repr=False)
    limiter: ModelRateLimiter
    queue_seconds: float
    translated_errors: AbstractContextManager[None]
    make_status_error: Callable[[int, Mapping[str, str], object], GatewayError]


class _ServerErrors(AbstractContextManager[None]):
    """Translates errors of the SDK and httpx.

    It has no state: one serves all calls.
    """

    def __init__(
        self, sdk: SdkModule, make_status_error: Callable[[int, Mapping[str, str], object], GatewayError]
    ) -> None:
        self._sdk = sdk
        self._make_status_error = make_status_error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        sdk = self._sdk
        if isinstance(error, sdk.APIStatusError):
            status_error = cast(SdkStatusError, error)
            response = status_error.response
            raise self._make_status_error(response.status_code, response.headers, _get_refusal(status_error)) from error
        if isinstance(error, (TimeoutError, sdk.APITimeoutError, httpx.TimeoutException)):
            message = "The model's server did not answer in time." if _is_timeout(error) else None
            raise ModelUnavailable(message) from error
        if isinstance(error, sdk.APIConnectionError):
            raise ModelUnavailable from error
        if isinstance(error, (httpx.HTTPError, sdk.APIError)):
            raise ModelStreamBroken from error


class OpenAICompatibleModel(Model):
    """A model server, called through one connection pool.

    `create_client` creates the SDK's client; `sdk` is its module, whose errors are translated. `make_body` makes the
    body of a call. The API is at `root` under the client's base URL. With `streams_structured_output`, answers with a
    response format are streamed like others. `options` limits the calls.
    """

    def __init__(
        self,
        create_client: Callable[..., SdkClient],
        sdk: SdkModule,
        make_body: Callable[[ModelCall], JsonObject],
        options: ModelServerOptions,
        *,
        root: str,
        key_setting: str,
        streams_structured_output: bool = False,
    ) -> None:
        self._http_client = create_http_client(options.recorder)
        self._client = client = create_client(**options.make_client_arguments(sdk, self._http_client))
        self._sdk = sdk
        self._make_body = make_body
        root = str(client.base_url).rstrip("/") + root
        self._models_url = httpx.URL(f"{root}/models")
        self._request = self._prepare_request(f"{root}/chat/completions")
        self._requests = CompletionRequests(self._http_client, self._request, recorded=options.recorder is not None)
        self._key_setting = key_setting
        self._url_setting = key_setting.replace("_API_KEY", "_BASE_URL")
        self._streams_structured_output = streams_structured_output
        self._translated_errors = _ServerErrors(sdk, self._make_status_error)
        self._limiter = options.limiter
        self._queue_seconds = options.queue_seconds

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """See `Model.complete`.

        Raises:
            UpstreamRateLimited: the wait for a permit would exceed `queue_seconds`.
        """
        tokens = call.estimated_tokens + min(
            call.parameters.max_tokens or _EXPECTED_ANSWER_TOKENS, _EXPECTED_ANSWER_TOKENS
        )
        async with self._limiter.create_permit(
            call.model, tokens=tokens, user=call.user, max_wait_seconds=self._queue_seconds
        ) as permit:
            call.require_lease()  # the wait for the permit, or for a retry, may have been long
            is_streamed = call.response_format is None or self._streams_structured_output
            complete = self._complete_streaming if is_streamed else self._complete_structured
            try:
                answer = await complete(call, sink, permit)
            except ModelRequestRefused as error:
                raise name_client_messages(error, call) from error.__cause__
            except ModelRateLimited:
                permit.on_response({}, 429)
                raise
            permit.on_usage(answer.usage.total_tokens - answer.usage.cached_tokens)
            return answer

    async def _complete_streaming(self, call: ModelCall, sink: ModelSink, permit: RateLimitPermit) -> ModelAnswer:
        reader = ChunkReader(sink)
        with self._translated_errors:
            async with aclosing(await self._send_request(call, permit, stream=True)) as response:
                try:
                    await _feed_stream(response, reader, sink)
                except (TimeoutError, httpx.HTTPError) as error:
                    if reader.is_accepted and not reader.is_complete:
                        raise ModelStreamBroken from error
                    if not reader.is_complete:
                        raise
        return reader.finish_answer()

    async def _complete_structured(self, call: ModelCall, sink: ModelSink, permit: RateLimitPermit) -> ModelAnswer:
        """Request a structured answer without streaming.

        Groq does not stream structured answers.
        """
        with self._translated_errors:
            async with aclosing(await self._send_request(call, permit, stream=False)) as response:
                body = await _collect_body(response, _MAX_BODY_BYTES)
            if len(body) > _MAX_BODY_BYTES:
                raise ModelAnswerTooLong
            return read_whole_answer(body, sink)

    def _prepare_request(self, url: str) -> httpx.Request:
        """Build the common part of all calls. See docs/adr/0003."""
        headers = {**self._client.auth_headers, **self._client.default_headers}
        sent = {name: value for name, value in headers.items() if isinstance(value, str)}
        request = self._http_client.build_request("POST", url, headers=sent, timeout=self._client.timeout)
        del request.headers["Content-Length"]
        return request

    async def _send_request(self, call: ModelCall, permit: RateLimitPermit, *, stream: bool) -> CompletionResponse:
        """Send a request, and return the response before its body.

        Raises:
            GatewayError: the server cannot be reached, or refuses the request.
        """
        body = self._make_body(call) | ({"stream": True} if stream else {})
        try:
            response = await self._requests.send_completion(msgspec.json.encode(body), get_trace_headers())
        except (httpx.TimeoutException, TimeoutError):
            raise
        except Exception as error:  # as the SDK does
            raise ModelUnavailable from error
        if response.is_success:
            permit.on_response(response.headers, response.status)
            response.headers = {}  # a stream may take minutes, and some servers send forty
            return response
        async with aclosing(response):
            content = await _collect_body(response, _MAX_REFUSAL_BYTES)
        permit.on_response(response.headers, response.status)
        raise self._make_status_error(response.status, response.headers, decode_error_body(content))

    def _make_status_error(self, status: int, headers: Mapping[str, str], body: object) -> GatewayError:
        settings = {"key_setting": self._key_setting, "url_setting": self._url_setting}
        return make_status_error(status, body, headers, **settings)

    async def check(self) -> str | None:
        """See `Model.check`. Requests the list of models, which costs no tokens."""
        try:
            await self.list_models(timeout=2.0)
        except GatewayError as error:
            return error.message
        return None

    async def list_models(self, timeout: float = 10.0) -> list[JsonObject]:
        """Return the server's list of models, one object per model.

        Raises:
            ModelError: the server sends no list of models, or rejects the key.
        """
        with self._translated_errors:
            # `client.models` would import all resources of the SDK. See docs/adr/0003.
            options = {"headers": _omit_headers(self._sdk, _OMITTED_CALL_HEADERS), "timeout": timeout}
            async with Deadline.after(2 * timeout).limit():  # the SDK's timeout is that of each read
                response = await self._client.get(self._models_url, cast_to=httpx.Response, options=options)
            try:
                return msgspec.json.decode(response.content, type=_ModelList).data or []
            except JSON_DECODE_ERRORS:
                raise ModelError("The model's server did not send a list of models.") from None

    async def refresh_catalog_periodically(self, catalog: Catalog) -> None:
        """Refresh the catalogue now and every hour."""
        while True:
            await self.refresh_catalog(catalog)
            await asyncio.sleep(_CATALOG_REFRESH_SECONDS)

    async def refresh_catalog(self, catalog: Catalog) -> None:
        """Update the catalogue from the server's list of models.

        If the server does not answer, nothing changes.
        """
        try:
            entries = await self.list_models()
        except GatewayError as error:
            log.warning("model_list_failed", code=error.code)
            return
        catalog.update_models(entries)

    async def close(self) -> None:
        await self._client.close()
        await self._limiter.close()

    def get_connection(self) -> ModelServerConnection:
        """Return what other parts of the server's API need."""
        headers = {name: value for name, value in self._request.headers.items() if name.lower() != "content-type"}
        return ModelServerConnection(
            url=str(self._models_url).removesuffix("models"),
            url_setting=self._url_setting,
            headers=headers,
            limiter=self._limiter,
            queue_seconds=self._queue_seconds,
            translated_errors=self._translated_errors,
            make_status_error=self._make_status_error,
        )


async def _collect_body(response: CompletionResponse, max_bytes: int) -> bytes:
    """Read a body, or the start of a longer one."""
    body = bytearray()

    def collect(data: bytes) -> bool:
        body.extend(data)
        return len(body) <= max_bytes

    await response.push_body(collect)
    return bytes(body)


def _get_refusal(error: SdkStatusError) -> object:
    """Return the whole body, of which the SDK has only the `error`."""
    response = error.response
    return decode_error_body(response.content) if response.is_stream_consumed else error.body


async def _feed_stream(response: CompletionResponse, reader: ChunkReader, sink: ModelSink) -> None:
    """Read the stream to its end.

    Some servers leave out `[DONE]`, or keep the connection open after it.

    Raises:
        TimeoutError: the answer is complete, but the connection stays open.
    """

    def consume(data: bytes) -> bool:
        reader.feed_bytes(data)
        return sink.capacity.has_capacity() and not reader.is_complete

    while not await response.push_body(consume):
        await sink.capacity.wait_for_capacity()
        if reader.is_complete:
            await _feed_rest(response, consume, reader, sink)
            break
    await sink.capacity.wait_for_capacity()


async def _feed_rest(
    response: CompletionResponse, consume: Callable[[bytes], bool], reader: ChunkReader, sink: ModelSink
) -> None:
    """Read the stream behind a complete answer, which may have the usage.

    Raises:
        TimeoutError: the connection stays open.
    """
    clock = asyncio.get_running_loop().time
    when = clock() + _USAGE_WAIT_SECONDS
    async with asyncio.timeout_at(when) as end:
        while True:
            if reader.is_done or reader.has_usage:
                when = min(when, clock() + _CLOSE_WAIT_SECONDS)
                end.reschedule(when)
            if await response.push_body(consume):
                return
            await sink.capacity.wait_for_capacity()


def _is_timeout(error: BaseException) -> bool:
    """Whether a cause is a timeout.

    The transport httpx-aiohttp also reports a closed connection as a timeout. A timeout of asyncio has a cause itself.
    """
    while not isinstance(error, TimeoutError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, TimeoutError)

"""Groq through its official SDK: the SDK brings authentication, parameters and errors; the stream is read as bytes.

The SDK builds a pydantic object for every chunk, which costs more than all else on the way of a token.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import groq
import httpx
import msgspec

from gateway.errors import (
    GatewayError,
    ModelError,
    ModelKeyRefused,
    ModelNotFound,
    ModelRateLimited,
    ModelRequestRefused,
    ModelStreamBroken,
    ModelUnavailable,
    OutputInvalid,
)
from gateway.llm.base import ModelAnswer, ModelCall, ModelInfo, ModelSink
from gateway.llm.catalog import Catalog
from gateway.llm.chunks import ChunkReader, UpstreamError, read_whole
from gateway.log import get_logger
from gateway.messages import JsonObject, Message, ToolSpec

log = get_logger(__name__)

_CONNECT_TIMEOUT = 5.0


class GroqModel:
    """One pool of connections to Groq, or to whatever speaks as it does."""

    def __init__(
        self, *, api_key: str, base_url: str, idle_timeout: float = 60.0, max_connections: int = 2_000
    ) -> None:
        self._idle_timeout = idle_timeout
        self._client = groq.AsyncGroq(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,  # the loop retries, where a client can see it
            timeout=httpx.Timeout(idle_timeout, connect=_CONNECT_TIMEOUT),
            http_client=groq.DefaultAioHttpClient(
                limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=200)
            ),
        )

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """See `Model.complete`."""
        if call.response_format is not None:
            return await self._complete_form(call, sink)
        reader = ChunkReader(sink)
        create = self._client.chat.completions.with_streaming_response.create
        async with _translated(), create(stream=True, **_untouched(request_body(call))) as response:
            async for data in response.http_response.aiter_raw():
                reader.feed(data)
                await sink.drain()
        return reader.answer()

    async def _complete_form(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        """Groq does not stream answers in a form."""
        create: Any = self._client.chat.completions.with_raw_response.create
        async with _translated():
            response = await create(**_untouched(request_body(call) | {"response_format": call.response_format}))
            return read_whole(await response.read(), sink)
        raise AssertionError("unreachable")

    async def check(self) -> str | None:
        """See `Model.check`: asks for the list of models, which costs no tokens."""
        try:
            await self.list_models(timeout=2.0)
        except GatewayError as error:
            return error.message
        return None

    async def list_models(self, timeout: float = 10.0) -> list[JsonObject]:
        """The server's own list, an object a model.

        Raises:
            ModelError: the server does not answer, or refuses the key.
        """
        async with _translated():
            page = await self._client.models.list(timeout=timeout)
            return [model.model_dump() for model in page.data]
        raise AssertionError("unreachable")

    async def refresh(self, catalog: Catalog) -> None:
        """Bring the catalogue up to what the server lists. A server that does not answer changes nothing."""
        try:
            listed = await self.list_models()
        except GatewayError as error:
            log.warning("models_not_listed", code=error.code)
            return
        catalog.update([_merge(catalog.known(str(entry["id"])), entry) for entry in listed])

    async def close(self) -> None:
        await self._client.close()


def request_body(call: ModelCall) -> dict[str, Any]:
    """The body of a call. The same call gives the same bytes: the prompt cache lives on it."""
    body: dict[str, Any] = {"model": call.model, "messages": [message_body(message) for message in call.messages]}
    if call.tools:
        body["tools"] = [_tool_body(tool) for tool in call.tools]
        if call.tool_choice is not None:
            body["tool_choice"] = call.tool_choice
    parameters: dict[str, Any] = msgspec.to_builtins(call.parameters)
    if "max_tokens" in parameters:
        parameters["max_completion_tokens"] = parameters.pop("max_tokens")
    return body | parameters


def _untouched(body: dict[str, Any]) -> dict[str, Any]:
    """The SDK's keyword arguments for a body that is to be sent as it is.

    The SDK walks through messages and tools with `typing` to rename fields, of which these have none: a sixth of what a
    turn with tools costs. What is in `extra_body` it leaves alone.
    """
    return {"model": body["model"], "messages": (), "extra_body": body}


def message_body(message: Message) -> JsonObject:
    """The fields that Groq knows of a message: it refuses any other, and a null where it wants none."""
    body: JsonObject = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        body["tool_call_id"] = message.tool_call_id
    elif message.name is not None:
        body["name"] = message.name
    return body


def _tool_body(tool: ToolSpec) -> JsonObject:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _merge(known: ModelInfo | None, listed: JsonObject) -> ModelInfo:
    window = listed.get("context_window") or (known.context_window if known else 8_192)
    most = listed.get("max_completion_tokens") or (known.max_output_tokens if known else window)
    base = known or ModelInfo(str(listed["id"]), window, most, owned_by=listed.get("owned_by"))
    return msgspec.structs.replace(base, context_window=window, max_output_tokens=most)


@asynccontextmanager
async def _translated() -> AsyncGenerator[None]:
    """Whatever the SDK and the two HTTP stacks beneath it raise, as ours."""
    try:
        yield
    except groq.APIStatusError as error:
        raise _status_error(error) from error
    except (TimeoutError, groq.APITimeoutError, httpx.TimeoutException) as error:
        raise ModelUnavailable("The model's server did not answer in time.") from error
    except groq.APIConnectionError as error:
        raise ModelUnavailable from error
    except (httpx.HTTPError, aiohttp.ClientError, groq.APIError) as error:
        raise ModelStreamBroken from error


def _status_error(error: groq.APIStatusError) -> GatewayError:
    """An HTTP status of Groq's, as ours. Its message is shown only where it tells callers what to change."""
    status, detail = error.status_code, _detail(error)
    log.warning("model_refused", status=status, code=detail.code)
    if status in (401, 403):
        return ModelKeyRefused()
    if status == 404:
        return ModelNotFound("The model's server does not know this model.", param="model")
    if status == 429:
        return ModelRateLimited(retry_after=_seconds(error.response.headers.get("retry-after")))
    if status == 413:
        return ModelRequestRefused("The request is too large for this model: shorten the messages or the history.")
    if status == 498 or status >= 500:
        return ModelUnavailable(retry_after=_seconds(error.response.headers.get("retry-after")))
    if detail.code == "json_validate_failed":
        return OutputInvalid()
    if detail.code == "tool_use_failed":
        return ModelRequestRefused("The model wrote a tool call that its server could not read.")
    if 400 <= status < 500:
        return ModelRequestRefused(f"The model's server refused the request: {detail.message[:500]}")
    return ModelError()


def _detail(error: groq.APIStatusError) -> UpstreamError:
    body = error.body.get("error", error.body) if isinstance(error.body, dict) else {}  # pyright: ignore
    try:
        return msgspec.convert(body, UpstreamError, strict=False)
    except msgspec.ValidationError:
        return UpstreamError(message="no reason given")


def _seconds(value: str | None) -> float | None:
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None

"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`, for OpenAI and Groq clients."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from msgspec.structs import replace

from gateway.api.deps import CatalogDep, PrincipalDep, SettingsDep, get_principal
from gateway.api.turn_responses import (
    GatewayToolsHeader,
    IdempotencyKey,
    build_tool_offer,
    start_turn,
    stream_turn,
    turn_headers,
    wait_for_turn,
)
from gateway.domain.errors import ModelNotFound
from gateway.domain.messages import JsonObject
from gateway.ports.model import PLAIN_SUFFIX, ModelInfo
from gateway.wire.anthropic.models import build_model, build_model_list
from gateway.wire.openai.completions import CompletionRequest, TextChunkWriter, build_text_completion
from gateway.wire.openai_chat import ChatCompletionRequest
from gateway.wire.openai_chat_answers import ChatDialect, ChunkWriter, build_completion, stream_chunks

router = APIRouter(tags=["OpenAI"])
PREFIXES = ("/v1", "/openai/v1")
"""Groq's SDK uses the second prefix."""

AnthropicVersion = Annotated[
    str | None, Header(max_length=100, description="Any value: the answer has Anthropic's shape.")
]
_CONTENT: dict[int | str, JsonObject] = {
    200: {
        "description": "A `chat.completion`; with `stream`, its chunks as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}

_TEXT_CONTENT: dict[int | str, JsonObject] = {
    200: _CONTENT[200] | {"description": "A `text_completion`; with `stream`, its chunks as server-sent events"}
}


@router.post("/chat/completions", summary="Create a chat completion", response_class=JSONResponse, responses=_CONTENT)
async def chat_completions(
    body: ChatCompletionRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a chat completion in OpenAI's format.

    Gateway tools run in the gateway. Calls of the client's own tools are returned to the client. A request with tools
    of its own gets no gateway tools, unless it asks for them with `x_gateway.tools` or the header.
    """
    principal = get_principal(request)
    offer = build_tool_offer(request, principal, body.model, x_gateway_tools)
    turn_request = body.to_turn_request(offer, idempotency_key=idempotency_key)
    turn = await start_turn(turn_request, request, principal)
    dialect = ChatDialect(groq=_is_groq_client(request), functions=body.uses_functions)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = ChunkWriter(include_usage=usage, dialect=dialect)
        return stream_turn(turn, request, partial(stream_chunks, chunks=chunks))
    summary = await wait_for_turn(turn, request)
    return JSONResponse(build_completion(summary, dialect), headers=turn_headers(turn))


@router.post("/completions", summary="Create a text completion", response_class=JSONResponse, responses=_TEXT_CONTENT)
async def completions(
    body: CompletionRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer a prompt in OpenAI's older format.

    The prompt is the user message of a turn: chat models answer it and do not continue its text.
    """
    principal = get_principal(request)
    offer = build_tool_offer(request, principal, body.model, x_gateway_tools)
    turn = await start_turn(body.to_turn_request(offer, idempotency_key=idempotency_key), request, principal)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = TextChunkWriter(include_usage=usage, prefix=body.echoed_prompt)
        return stream_turn(turn, request, partial(stream_chunks, chunks=chunks))
    summary = await wait_for_turn(turn, request)
    return JSONResponse(build_text_completion(summary, body.echoed_prompt), headers=turn_headers(turn))


def _is_groq_client(request: Request) -> bool:
    """Recognize a Groq client by the path or the User-Agent header."""
    return request.url.path.startswith("/openai/") or "groq" in request.headers.get("User-Agent", "").lower()


@router.get("/models", summary="List the models in OpenAI's or Anthropic's format")
async def list_models(
    principal: PrincipalDep,
    catalog: CatalogDep,
    settings: SettingsDep,
    anthropic_version: AnthropicVersion = None,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Of a page in Anthropic's format.")] = 1_000,
    after_id: Annotated[str | None, Query(max_length=200)] = None,
    before_id: Annotated[str | None, Query(max_length=200)] = None,
) -> JsonObject:
    """The models that you may use.

    A request with the header `anthropic-version` gets them in Anthropic's shape, in pages. With the setting
    LIST_PLAIN_MODELS, each is listed a second time as `NAME:plain`, which has no gateway tools.
    """
    models = [model for model in catalog.list_models() if principal.can_use_model(model.id)]
    if settings.list_plain_models:
        models += [replace(model, id=model.id + PLAIN_SUFFIX) for model in models]
    if anthropic_version is not None:
        return build_model_list(models, limit=limit, after=after_id, before=before_id)
    return {"object": "list", "data": [_build_model(model) for model in models]}


@router.get("/models/{model:path}", summary="Get a model in OpenAI's or Anthropic's format")
async def get_model(
    model: str, principal: PrincipalDep, catalog: CatalogDep, anthropic_version: AnthropicVersion = None
) -> JsonObject:
    """A model of the catalog, by any of its names."""
    name, _ = catalog.split_plain(model)
    try:
        info, _ = catalog.resolve(name)
    except ModelNotFound:
        info = None
    if info is None or not principal.can_use_model(info.id):
        raise ModelNotFound(f"The model {model[:200]!r} does not exist.", param="model")
    info = replace(info, id=model)
    return build_model(info) if anthropic_version is not None else _build_model(info)


def _build_model(model: ModelInfo) -> JsonObject:
    return {
        "id": model.id,
        "object": "model",
        "created": 1_754_400_000,
        "owned_by": model.owned_by or "unknown",
        "active": True,
        "context_window": model.context_window,
        "max_completion_tokens": model.max_output_tokens,
        "input_modalities": list(model.input_modalities),
    }

"""`/v1/chat/completions` and `/v1/models`: what OpenAI's and Groq's clients call."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.deps import ModelsDep, PrincipalDep, get_principal
from gateway.api.turn_responses import start_turn, stream_turn, wait_for_turn
from gateway.domain.errors import ModelNotFound
from gateway.domain.messages import JsonObject
from gateway.ports.model import ModelInfo
from gateway.wire.openai_chat import ChatCompletionRequest, ChunkWriter, build_completion, stream_chunks

router = APIRouter(tags=["OpenAI"])
PREFIXES = ("/v1", "/openai/v1")  # the second is where Groq's SDK looks

GatewayTools = Annotated[
    str | None, Header(max_length=8_192, description="`none`, `all`, or the names of the gateway's tools to offer.")
]
IdempotencyKey = Annotated[str | None, Header(max_length=200)]
_CONTENT: dict[int | str, JsonObject] = {
    200: {
        "description": "A `chat.completion`, or with `stream` its chunks as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@router.post("/chat/completions", summary="Chat completions", response_class=JSONResponse, responses=_CONTENT)
async def chat_completions(
    body: ChatCompletionRequest,
    request: Request,
    response: Response,
    x_gateway_tools: GatewayTools = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """OpenAI's chat completions. The gateway's tools run inside; calls of the client's own tools come back to it."""
    turn_request = body.to_turn_request(tools=x_gateway_tools, idempotency_key=idempotency_key)
    turn = await start_turn(turn_request, request, get_principal(request))
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return stream_turn(turn, request, partial(stream_chunks, chunks=ChunkWriter(include_usage=usage)))
    summary = await wait_for_turn(turn, request, response)
    return JSONResponse(build_completion(summary), headers=dict(response.headers))


@router.get("/models", summary="The models on offer, as OpenAI lists them")
async def list_models(principal: PrincipalDep, models: ModelsDep) -> JsonObject:
    return {
        "object": "list",
        "data": [_build_model(model) for model in models.list_models() if principal.can_use_model(model.id)],
    }


@router.get("/models/{model:path}", summary="A model")
async def get_model(model: str, principal: PrincipalDep, models: ModelsDep) -> JsonObject:
    found = next(
        (entry for entry in models.list_models() if entry.id == model and principal.can_use_model(model)), None
    )
    if found is None:
        raise ModelNotFound(f"The model {model[:200]!r} does not exist.", param="model")
    return _build_model(found)


def _build_model(model: ModelInfo) -> JsonObject:
    return {
        "id": model.id,
        "object": "model",
        "created": 1_754_400_000,
        "owned_by": model.owned_by or "unknown",
        "active": True,
        "context_window": model.context_window,
        "max_completion_tokens": model.max_output_tokens,
    }

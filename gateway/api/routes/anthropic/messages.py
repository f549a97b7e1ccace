"""`/v1/messages`, for Anthropic's clients and Claude Code."""

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.deps import get_principal, get_turn_service, run_until_disconnect
from gateway.api.turn_responses import (
    GatewayToolsHeader,
    IdempotencyKey,
    build_tool_offer,
    list_model_tools,
    list_server_urls,
    start_turn,
    stream_turn,
    turn_headers,
)
from gateway.domain.errors import error_from_info
from gateway.domain.events import TurnCancelled, TurnFailed
from gateway.domain.messages import JsonObject, TurnRequest
from gateway.domain.toolsets import bind_toolset
from gateway.wire.anthropic.answers import MessageWriter, stream_message
from gateway.wire.anthropic.request import MessagesRequest, PromptBody

router = APIRouter(prefix="/v1/messages", tags=["Anthropic"])

_CONTENT: dict[int | str, JsonObject] = {
    200: {
        "description": "A `message`; with `stream`, its events as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@router.post("", summary="Create a message", response_class=JSONResponse, responses=_CONTENT)
async def create_message(
    body: MessagesRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a message in Anthropic's format.

    Calls of gateway tools are `mcp_tool_use` blocks with their results. Calls of the client's own tools are `tool_use`
    blocks; a request that has tools of its own gets no gateway tools, unless it asks for them with `mcp_servers`,
    `x_gateway.tools` or the header. Fields that are not known are ignored, with a warning.
    """
    turn_request = _to_turn_request(body, request, x_gateway_tools, idempotency_key)
    turn = await start_turn(turn_request, request, get_principal(request))
    create_writer = partial(MessageWriter, shows_thinking=body.shows_thinking)
    if body.stream:
        return stream_turn(turn, request, partial(stream_message, writer=create_writer()))
    writer = await run_until_disconnect(request, get_turn_service(request).wait_for_turn(turn, create_writer))
    if isinstance(end := writer.turn.end, TurnFailed | TurnCancelled):
        raise turn.failure or error_from_info(end.error)
    return JSONResponse(writer.build_message(), headers=turn_headers(turn))


@router.post("/count_tokens", summary="Estimate the tokens of a prompt")
async def count_tokens(body: PromptBody, request: Request, x_gateway_tools: GatewayToolsHeader = None) -> JsonObject:
    """An estimate of the tokens of a message's prompt.

    It includes the gateway's system prompt and the tools on offer.
    """
    turn_request = _to_turn_request(body, request, x_gateway_tools, None)
    return {"input_tokens": await get_turn_service(request).count_tokens(turn_request, get_principal(request))}


def _to_turn_request(body: PromptBody, request: Request, tools: str | None, idempotency_key: str | None) -> TurnRequest:
    principal = bind_toolset(get_principal(request), body.toolset)
    specs, urls = list_model_tools(request, principal), list_server_urls(request, principal)
    offer = build_tool_offer(request, principal, body.model, tools)
    return body.to_turn_request(offer, specs=specs, urls=urls, idempotency_key=idempotency_key)

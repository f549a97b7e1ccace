"""Start turns for requests, and answer with them in any wire format."""

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from hashlib import blake2b
from typing import Annotated, Literal

from fastapi import Header, Request, Response
from msgspec.structs import replace

from gateway.agent.service import TurnHandle, TurnListener
from gateway.api.deps import get_toolbox, get_turn_service, list_visible_servers, run_until_disconnect
from gateway.api.http.request_context import TURN_SCOPE_KEY
from gateway.common.logging import request_id
from gateway.domain.errors import error_from_info
from gateway.domain.events import TurnCancelled, TurnFailed, TurnStarted
from gateway.domain.messages import Principal, ToolSpec, TurnRequest
from gateway.domain.toolsets import bind_toolset
from gateway.ports.listener import EventListener
from gateway.wire.legacy import LegacyChatRequest, LegacyChatStreamRequest, LegacyStreamRequest
from gateway.wire.native import ChatRequest
from gateway.wire.sse import SSE, FrameStream
from gateway.wire.tool_offer import ToolOffer
from gateway.wire.turn_summary import TurnSummary

FIRST_OUTPUT_TIMEOUT_SECONDS = 10.0
_MAX_WARNING_LENGTH = 1_000
_RETRY_HEADER = "X-Stainless-Retry-Count"
"""Number of the attempt, of OpenAI's, Groq's and Anthropic's SDKs."""
_RETRY_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_NOT_IN_HEADERS = re.compile(r"[^ -~]")

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=200, description="Each key starts one turn. A repeated request with the key returns the same turn."
    ),
]

GatewayToolsHeader = Annotated[
    str | None,
    Header(
        alias="X-Gateway-Tools",
        max_length=8_192,
        description="Allowed gateway tools: `all`, `none`, or names separated by commas. Overrides the body.",
    ),
]

NativeOrLegacyRequest = ChatRequest | LegacyStreamRequest | LegacyChatStreamRequest | LegacyChatRequest

WriteStream = Callable[[EventListener], AsyncGenerator[bytes]]
"""Wire format: writes a turn's events as a response's bytes."""


async def start_turn(
    turn_request: TurnRequest, request: Request, principal: Principal, *, if_busy: Literal["wait", "reject"] = "wait"
) -> TurnHandle:
    """Start a turn for this request; see `TurnService.start_turn`.

    Raises:
        ClientGone: the client disconnected while another turn of the conversation ran.
        GatewayError: the turn cannot be started.
    """
    turn = await get_turn_service(request).start_turn(
        replace(turn_request, request_hash=_hash_request(await request.body(), request, principal)),
        principal,
        request_id=request_id.get(),
        if_busy=if_busy,
        run_busy_wait=partial(run_until_disconnect, request),
        retry_count=_parse_retry_count(request.headers.get(_RETRY_HEADER)),
    )
    register_turn(request, turn)
    return turn


def register_turn(request: Request, turn: TurnHandle) -> None:
    """Name the turn in the request's errors and in its log line."""
    request.scope[TURN_SCOPE_KEY] = turn
    turn.begin_request()


def _parse_retry_count(header: str | None) -> int | None:
    return int(header) if header is not None and _RETRY_COUNT.fullmatch(header) else None


def _hash_request(body: bytes, request: Request, principal: Principal) -> str:
    """Hash caller, path and body.

    A retry finds the turn of its request by the hash.
    """
    caller = f"{principal.user}\0{principal.key or ''}\0{request.scope['path']}\0"
    return blake2b(caller.encode() + body, digest_size=16).hexdigest()


async def start_native_turn(
    body: NativeOrLegacyRequest,
    request: Request,
    principal: Principal,
    *,
    tools_header: str | None = None,
    idempotency_key: str | None = None,
) -> TurnHandle:
    """Start the turn of a native or legacy body; see `start_turn`."""
    principal = bind_toolset(principal, body.toolset)
    gateway_tools = {spec.name for spec in list_model_tools(request, principal)} if body.defines_tools else ()
    turn_request = body.to_turn_request(gateway_tools=gateway_tools)
    names, own_names = turn_request.tools, {spec.name for spec in turn_request.client_tools}
    offer = build_tool_offer(request, principal, turn_request.model, tools_header)
    selected = None if names is None or (names and own_names.issuperset(names)) else names
    if selected is None and turn_request.toolset is not None:
        selected = "all"
    turn_request = replace(turn_request, tools=offer.select(selected, brings_tools=bool(own_names)))
    if idempotency_key is not None:
        turn_request = replace(turn_request, idempotency_key=idempotency_key)
    return await start_turn(turn_request, request, principal, if_busy=body.if_busy)


def build_tool_offer(request: Request, principal: Principal, model: str | None, header: str | None) -> ToolOffer:
    """Return what decides on the gateway's tools beside the body."""
    state = request.app.state
    is_plain = model is not None and state.catalog.split_plain(model)[1]
    return ToolOffer(header, principal.gateway_tools or state.settings.gateway_tools, is_plain)


def list_model_tools(request: Request, principal: Principal) -> tuple[ToolSpec, ...]:
    """List the gateway's tools that the caller may offer to a model."""
    specs = get_toolbox(request).list_specs(principal)
    return tuple(spec for spec in specs if spec.for_model and principal.can_use_tool(spec))


def list_server_urls(request: Request, principal: Principal) -> dict[str, str | None]:
    """Return the URLs of the caller's MCP servers, by name."""
    return {server.name: server.url for server in list_visible_servers(get_toolbox(request), principal)}


def stream_turn(
    turn: TurnHandle,
    request: Request,
    write: WriteStream,
    *,
    after: int = 0,
    media_type: str = SSE,
    headers: Mapping[str, str] | None = None,
    listener: TurnListener | None = None,
) -> Response:
    """Stream the events after number `after`, or those of the `listener`.

    A failure before the model's first output is an HTTP error.
    """
    listener = listener or get_turn_service(request).listen_to_turn(turn, after=after)
    ready = partial(_wait_for_headers, turn, listener)
    return FrameStream(write(listener), headers=headers or {}, listener=listener, ready=ready, media_type=media_type)


async def wait_for_turn(turn: TurnHandle, request: Request) -> TurnSummary:
    """Return the turn at its end, or when it waits.

    A turn waits for a person.

    Raises:
        ClientGone: the client disconnected.
        GatewayError: the turn failed, was cancelled, or its end cannot be read.
    """
    summary = await run_until_disconnect(request, get_turn_service(request).wait_for_turn(turn, TurnSummary))
    if isinstance(summary.end, TurnFailed | TurnCancelled):
        raise turn.failure or error_from_info(summary.end.error)
    return summary


def turn_headers(turn: TurnHandle) -> dict[str, str]:
    """Build response headers with the turn's id, cache status and warnings.

    The cache status is left out if it is not known.
    """
    headers = {"X-Turn-Id": turn.id_text}
    if isinstance(turn.first_event, TurnStarted) and turn.first_event.warnings:
        headers["X-Gateway-Warnings"] = _to_header_value(" ".join(turn.first_event.warnings))
    if (status := turn.cache_status) is not None:
        headers["X-Gateway-Cache"] = status
    return headers


def _to_header_value(text: str) -> str:
    """Replace all but printable ASCII, and cut."""
    return _NOT_IN_HEADERS.sub("?", text)[:_MAX_WARNING_LENGTH]


async def _wait_for_headers(turn: TurnHandle, listener: TurnListener) -> dict[str, str]:
    await listener.wait_until_accepted(FIRST_OUTPUT_TIMEOUT_SECONDS)
    return turn_headers(turn)

"""Start turns for requests, and answer with them in any wire format."""

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Annotated, Literal

from fastapi import Header, Request, Response

from gateway.agent.service import TurnHandle, TurnListener
from gateway.api.deps import get_turn_service, run_until_disconnect
from gateway.common.logging import request_id
from gateway.domain.errors import error_from_info
from gateway.domain.events import TurnCancelled, TurnFailed
from gateway.domain.messages import Principal, TurnRequest
from gateway.ports.listener import EventListener
from gateway.wire.sse import SSE, FrameStream
from gateway.wire.turn_summary import TurnSummary

FIRST_OUTPUT_TIMEOUT_SECONDS = 10.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=200, description="Each key starts one turn. A repeated request with the key returns the same turn."
    ),
]

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
        turn_request,
        principal,
        request_id=request_id.get(),
        if_busy=if_busy,
        run_busy_wait=partial(run_until_disconnect, request),
    )
    request.state.turn_id = str(turn.id)
    return turn


def stream_turn(
    turn: TurnHandle, request: Request, write: WriteStream, *, after: int = 0, media_type: str = SSE
) -> Response:
    """Stream the turn's events, from number `after` + 1 on.

    A failure before the model's first output is an HTTP error.
    """
    listener = get_turn_service(request).listen_to_turn(turn, after=after)
    ready = partial(_wait_for_headers, turn, listener)
    return FrameStream(write(listener), headers={}, listener=listener, ready=ready, media_type=media_type)


async def wait_for_turn(turn: TurnHandle, request: Request, response: Response) -> TurnSummary:
    """Return the turn at its end, or when it waits.

    A turn waits for a person.

    Raises:
        ClientGone: the client disconnected.
        GatewayError: the turn failed, was cancelled, or its end cannot be read.
    """
    summary = await run_until_disconnect(request, get_turn_service(request).wait_for_turn(turn, TurnSummary))
    response.headers.update(turn_headers(turn))
    if isinstance(summary.end, TurnFailed | TurnCancelled):
        raise turn.failure or error_from_info(summary.end.error)
    return summary


def turn_headers(turn: TurnHandle) -> dict[str, str]:
    """Build response headers with the turn's id and cache status.

    The cache status is left out if it is not known.
    """
    headers = {"X-Turn-Id": str(turn.id)}
    if (status := turn.cache_status) is not None:
        headers["X-Gateway-Cache"] = status
    return headers


async def _wait_for_headers(turn: TurnHandle, listener: TurnListener) -> dict[str, str]:
    await listener.wait_until_accepted(FIRST_OUTPUT_TIMEOUT_SECONDS)
    return turn_headers(turn)

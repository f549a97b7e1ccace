"""`/api/v1/ag-ui`: runs of AG-UI's clients."""

from functools import partial

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from gateway.api.deps import get_principal, get_turn_service
from gateway.api.routes.front_ends.chat_turns import plan_chat
from gateway.api.turn_responses import GatewayToolsHeader, IdempotencyKey, build_tool_offer, start_turn, stream_turn
from gateway.domain.messages import JsonObject
from gateway.wire.ag_ui.request import RunInput

router = APIRouter(prefix="/api/v1/ag-ui", tags=["front ends"])

GRACE_SECONDS = 0.0
"""AG-UI's clients do not reconnect."""
_CONTENT: dict[int | str, JsonObject] = {
    200: {"description": "Events of an AG-UI run, as server-sent events", "content": {"text/event-stream": {}}}
}


@router.post("", summary="Run an AG-UI agent", response_class=Response, responses=_CONTENT)
async def run_agent(
    body: RunInput,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a turn for an AG-UI client, or continue one with `resume`.

    The thread's id names your conversation. Of the messages, only those after the last answer are new. Questions and
    approvals end the run with an interrupt; calls of the front end's tools end it with the ids of these. If the
    connection ends before the run, the turn is cancelled.
    """
    from gateway.wire.ag_ui.stream import RunWriter, stream_run  # see docs/adr/0016

    warnings: dict[str, None] = {}
    chat = body.read_chat(warnings)
    principal = get_principal(request)
    offer = build_tool_offer(request, principal, body.forwarded_options.model, x_gateway_tools)
    plan = await plan_chat(chat, body.to_turn_request(offer, idempotency_key=idempotency_key), request)
    answered: list[str] = []
    if (turn := plan.answered_turn) is not None:
        answered = [str(answer.input_id) for answer in chat.answers]
        is_kept = turn.echo.get("ag_ui", {}).get("is_kept", True)
    else:
        is_kept = plan.turn_request.on_disconnect == "continue"
        turn_request = replace(
            plan.turn_request,
            warnings=tuple(warnings),
            on_disconnect="continue",  # `listen_for_client` cancels it
            echo={"ag_ui": {"is_kept": is_kept}},
        )
        turn = await start_turn(turn_request, request, principal)
    listener = get_turn_service(request).listen_for_client(turn, grace_seconds=None if is_kept else GRACE_SECONDS)
    is_legacy = body.protocol_version is None
    writer = RunWriter(body.thread_id, body.run_id, answered=answered, is_legacy=is_legacy)
    return stream_turn(turn, request, partial(stream_run, writer=writer), listener=listener)

"""The call of a turn that asks no model.

The call is the turn's only step, which is complete before the turn begins. So it is continued, repeated, cancelled and
taken over as the last step of any other turn.
"""

import msgspec

from gateway.agent.model_context import TurnContext
from gateway.agent.transcript import Transcript
from gateway.domain.direct_calls import DirectCall
from gateway.domain.events import Event, StepCompleted, ToolCallStarted, ToolFinished
from gateway.domain.messages import ToolResult, Usage
from gateway.ports.tools import make_idempotency_key

DIRECT_CALL_ID = "call_direct"


def build_call_events(call: DirectCall) -> list[Event]:
    """Build the events of the step that makes a direct call."""
    started = ToolCallStarted(
        step=1, call_id=DIRECT_CALL_ID, server=call.server or None, tool=call.tool, arguments=call.arguments
    )
    return [started, StepCompleted(step=1, finish_reason="tool_calls", usage=Usage(), cost_usd=0.0)]


def choose_idempotency_key(turn: TurnContext, call_id: str) -> str:
    """Return the idempotency key of a call: the caller's own, if any."""
    own_key = turn.direct_call and turn.direct_call.idempotency_key
    return own_key or make_idempotency_key(turn.id, call_id)


def choose_finish_reason(transcript: Transcript) -> str | None:
    """Return how a direct call ended.

    None: the call waits. `refused`: the server answered with a JSON-RPC error.
    """
    result = transcript.find_result(DIRECT_CALL_ID)
    if result is None:
        return None
    if result.refusal is not msgspec.UNSET:
        return "refused"
    return "stop" if result.outcome == "ok" else "error"


def build_result_event(turn: TurnContext, call_id: str, result: ToolResult, duration_ms: float) -> ToolFinished:
    """Build the event of a call's result; a direct call's is whole."""
    is_direct = turn.direct_call is not None
    return ToolFinished(
        call_id=call_id,
        outcome=result.outcome,
        content=result.content,
        structured=result.structured,
        duration_ms=duration_ms,
        meta=result.meta if is_direct and result.meta else msgspec.UNSET,
        refusal=result.refusal if is_direct and result.refusal else msgspec.UNSET,
    )

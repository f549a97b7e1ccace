"""The MCP tool `ask_agent`, which runs a turn."""

from uuid import UUID

from mcp.types import CallToolRequestParams
from msgspec.structs import replace

from gateway.agent.service import TurnService
from gateway.api.mcp.host import HostObserver
from gateway.api.mcp.schemas import parse_idempotency_key
from gateway.domain.errors import GatewayError, InvalidRequest, error_from_info
from gateway.domain.events import Event, ToolCallStarted, TurnCancelled, TurnFailed
from gateway.domain.messages import (
    GatewayTools,
    JsonObject,
    Message,
    Principal,
    ToolResult,
    ToolSpec,
    TurnRequest,
    text_block,
)
from gateway.wire.tool_offer import ToolOffer
from gateway.wire.turn_summary import TurnSummary

ERROR_META_KEY = "mcp-agent-gateway/error"
"""Key in the `_meta` of an error result.

The value has `code`, `message`, and `param` if a field is invalid.
"""
WEBHOOK_META_KEY = "mcp-agent-gateway/webhook_url"
"""Key of a webhook's URL in the `_meta` of a call."""
ASK_AGENT = ToolSpec(
    name="ask_agent",
    server="",
    tool="ask_agent",
    title="Ask the agent",
    description=(
        "Give a task to the gateway's agent, which uses the gateway's model and all of its tools, and answers in text. "
        "Use it for tasks that need several tools. Pass the conversation_id of an earlier answer to continue it."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "prompt": {
                "type": "string",
                "minLength": 1,
                "description": "The task, with all information that the agent needs.",
            },
            "conversation_id": {
                "type": "string",
                "description": "Conversation to continue, from an earlier answer. Default: a new conversation.",
            },
            "model": {"type": "string", "description": "A model of the gateway. Default: the gateway's default model."},
        },
        "required": ["prompt"],
        "additionalProperties": False,
    },
    output_schema={
        "type": "object",
        "properties": {
            "response": {"type": "string"},
            "turn_id": {"type": "string"},
            "conversation_id": {"type": ["string", "null"]},
        },
        "required": ["response", "turn_id"],
    },
    destructive=False,
    deduplicates=True,
    runs_as_task=True,
)


class _ReportingSummary(TurnSummary):
    """Turn summary that reports tool calls to the host as progress.

    `reported_calls` has the ids of the calls that another summary of the turn has reported, before a hand-over: the
    protocol requires that progress increases.
    """

    def __init__(self, host: HostObserver, reported_calls: set[str]) -> None:
        super().__init__()
        self._host = host
        self._reported_calls = reported_calls

    def apply(self, event: Event) -> None:
        super().apply(event)
        if isinstance(event, ToolCallStarted) and event.call_id not in self._reported_calls:
            self._reported_calls.add(event.call_id)
            self._host.on_progress(len(self._reported_calls), None, f"{event.tool} …")


def may_ask_agent(principal: Principal) -> bool:
    """Return whether the caller may start turns at the MCP endpoint.

    A toolset has tools of servers alone.
    """
    return principal.role != "viewer" and principal.has_scope("chat") and principal.toolset is None


async def ask_agent(
    service: TurnService,
    params: CallToolRequestParams,
    principal: Principal,
    host: HostObserver,
    default_tools: GatewayTools = "auto",
) -> tuple[ToolResult, JsonObject]:
    """Run a turn; return its result and the result's `_meta`.

    `default_tools` is the setting GATEWAY_TOOLS, which the principal's key overrides.
    Errors are returned as results, because only a result reaches the host's model.
    """
    reported_calls: set[str] = set()
    try:
        turn = await service.start_turn(make_agent_request(params, principal, default_tools), principal)
        summary = await service.wait_for_turn(turn, lambda: _ReportingSummary(host, reported_calls))
    except GatewayError as error:
        return make_agent_error(error)
    if isinstance(summary.end, TurnFailed) and turn.failure is not None:
        return make_agent_error(turn.failure)
    return build_agent_result(turn.id, summary)


def make_agent_request(params: CallToolRequestParams, principal: Principal, default_tools: GatewayTools) -> TurnRequest:
    """Build the request of a turn.

    Raises:
        InvalidRequest: an argument is not valid.
    """
    tools = ToolOffer(default=principal.gateway_tools or default_tools).select(None, brings_tools=False)
    return replace(_parse_turn_request(params), tools=tools)


def build_agent_result(turn_id: UUID, summary: TurnSummary) -> tuple[ToolResult, JsonObject]:
    """Build the result and its `_meta` of a turn that is over."""
    if isinstance(summary.end, TurnFailed | TurnCancelled):
        return make_agent_error(error_from_info(summary.end.error))
    assert summary.started is not None
    response = summary.response or f"The turn waits for an answer from a person: see /api/v1/turns/{turn_id}."
    structured = {
        "response": response,
        "turn_id": str(turn_id),
        "conversation_id": summary.started.conversation_id,
    }
    return ToolResult("ok", [text_block(response)], structured), {}


def make_agent_error(error: GatewayError) -> tuple[ToolResult, JsonObject]:
    """Build an error result and its `_meta`.

    An error that is no result would not reach the host's model.
    """
    info = {"code": error.code, "message": error.message} | ({"param": error.param} if error.param else {})
    return ToolResult("error", [text_block(error.message)]), {ERROR_META_KEY: info}


def _parse_turn_request(params: CallToolRequestParams) -> TurnRequest:
    arguments = params.arguments or {}
    prompt = arguments.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("prompt: must be a non-empty string.", param="prompt")
    webhook_url: object = (params.meta or {}).get(WEBHOOK_META_KEY)
    if webhook_url is not None and not isinstance(webhook_url, str):
        raise InvalidRequest(f"_meta: {WEBHOOK_META_KEY} must be a string.", param="_meta")
    return TurnRequest(
        messages=(Message("user", prompt),),
        webhook_url=webhook_url,
        model=str(arguments.get("model") or ""),
        conversation_id=str(arguments.get("conversation_id") or "new"),
        idempotency_key=parse_idempotency_key(params),
    )

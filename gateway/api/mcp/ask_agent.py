"""The MCP tool `ask_agent`: a turn of the gateway's own agent."""

from mcp.types import CallToolRequestParams

from gateway.agent.service import TurnService
from gateway.api.mcp.host import HostObserver
from gateway.domain.errors import GatewayError, InvalidRequest, error_from_info
from gateway.domain.events import Event, ToolCallStarted, TurnCancelled, TurnFailed
from gateway.domain.messages import JsonObject, Message, Principal, ToolResult, ToolSpec, TurnRequest, text_block
from gateway.wire.turn_summary import TurnSummary

IDEMPOTENCY_META_KEY = "mcp-agent-gateway/idempotency-key"
"""In the `_meta` of a call: a key starts a turn once; again, the call is answered with that turn."""
ERROR_META_KEY = "mcp-agent-gateway/error"
"""In the `_meta` of a result that is an error: its code, message and, if a field is at fault, its name."""
MAX_IDEMPOTENCY_KEY_LENGTH = 200
ASK_AGENT = ToolSpec(
    name="ask_agent",
    server="",
    tool="ask_agent",
    title="Ask the agent",
    description=(
        "Give a task to the gateway's own agent: it works with the gateway's model and all of its tools, and answers "
        "in text. Use it for what takes several tools in a row. Pass the conversation_id of an answer to go on from it."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "description": "The task, with all that the agent must know."},
            "conversation_id": {"type": "string", "description": "From an earlier answer, to go on from it."},
            "model": {"type": "string", "description": "A model of the gateway's. Leave it out for the usual one."},
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
)


class _ReportedSummary(TurnSummary):
    """A summary that reports each tool call to the host as progress."""

    def __init__(self, host: HostObserver) -> None:
        super().__init__()
        self._host = host
        self._calls_seen = 0

    def apply(self, event: Event) -> None:
        super().apply(event)
        if isinstance(event, ToolCallStarted):
            self._calls_seen += 1
            self._host.progress(self._calls_seen, None, f"{event.tool} …")


def may_ask_agent(principal: Principal) -> bool:
    return principal.role != "viewer" and principal.has_scope("chat")


async def ask_agent(
    service: TurnService, params: CallToolRequestParams, principal: Principal, host: HostObserver
) -> tuple[ToolResult, JsonObject]:
    """Run a turn; its result, and the `_meta` of that. Errors are results, too: the host's model reads them."""
    try:
        turn = await service.start(_turn_request(params), principal)
        summary = await service.wait(turn, lambda: _ReportedSummary(host))
        if isinstance(summary.end, TurnFailed | TurnCancelled):
            raise turn.failure or error_from_info(summary.end.error)
    except GatewayError as error:
        info = {"code": error.code, "message": error.message} | ({"param": error.param} if error.param else {})
        return ToolResult("error", [text_block(error.message)]), {ERROR_META_KEY: info}
    assert summary.started is not None
    response = summary.response or f"The agent waits for an answer of its user: see /api/v1/turns/{turn.id}."
    structured = {
        "response": response,
        "turn_id": str(turn.id),
        "conversation_id": summary.started.conversation_id,
    }
    return ToolResult("ok", [text_block(response)], structured), {}


def _turn_request(params: CallToolRequestParams) -> TurnRequest:
    arguments = params.arguments or {}
    prompt = arguments.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("prompt: a text is needed.", param="prompt")
    return TurnRequest(
        messages=(Message("user", prompt),),
        model=str(arguments.get("model") or ""),
        conversation_id=str(arguments.get("conversation_id") or "new"),
        idempotency_key=_idempotency_key(params),
    )


def _idempotency_key(params: CallToolRequestParams) -> str | None:
    key: object = (params.meta or {}).get(IDEMPOTENCY_META_KEY)
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        at_most = f"at most {MAX_IDEMPOTENCY_KEY_LENGTH} characters"
        raise InvalidRequest(f"_meta: {IDEMPOTENCY_META_KEY} must be a text of {at_most}.", param="_meta")
    return key

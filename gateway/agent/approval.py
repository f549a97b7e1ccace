"""Which tool calls a person must approve."""

from gateway.domain.messages import Approval, JsonObject, PendingInput, Question, ToolSpec

_STRICTNESS: dict[Approval, int] = {"never": 0, "destructive": 1, "always": 2}


def needs_approval(spec: ToolSpec, wanted: Approval) -> bool:
    """Whether the server's policy or the request's wish, whichever is stricter, asks for approval of this tool."""
    policy = max(spec.approval, wanted, key=_STRICTNESS.__getitem__)
    return policy == "always" or (policy == "destructive" and spec.destructive and not spec.read_only)


def build_approval_request(spec: ToolSpec, arguments: JsonObject) -> PendingInput:
    """The question whether a call may run; who accepts may give other arguments, which must fit the tool's schema."""
    schema = {"type": "object", "properties": {"arguments": spec.input_schema}, "additionalProperties": False}
    message = f"May the tool {spec.title or spec.name} of the server {spec.server} run with {arguments}?"
    return PendingInput((Question("approval", "approval", message[:2_000], schema),))

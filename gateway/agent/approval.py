"""Decides which tool calls a person must approve."""

from urllib.parse import quote

import msgspec

from gateway.common.sanitize import clean_text
from gateway.domain.messages import Approval, JsonObject, PendingInput, Question, ToolSpec

_MAX_MESSAGE_LENGTH = 2_000
_STRICTNESS: dict[Approval, int] = {"never": 0, "destructive": 1, "always": 2}


def needs_approval(spec: ToolSpec, requested: Approval) -> bool:
    """Return whether a call of this tool needs approval.

    The stricter of the server's policy and the request's policy applies.
    """
    policy = max(spec.approval, requested, key=_STRICTNESS.__getitem__)
    return policy == "always" or (policy == "destructive" and spec.destructive and not spec.read_only)


def build_approval_request(spec: ToolSpec, arguments: JsonObject) -> PendingInput:
    """Build the question whether a call may run.

    An accepting answer may contain other arguments, which must match the tool's schema.
    """
    # With an `$id`, references such as `#/$defs/Address` are resolved within the tool's schema.
    arguments_schema = {"$id": f"urn:agent-gateway:tool:{quote(spec.name)}", **spec.input_schema}
    schema = {"type": "object", "properties": {"arguments": arguments_schema}, "additionalProperties": False}
    message = (
        f"May the tool {spec.title or spec.name} of the server {spec.server} run {_describe_arguments(arguments)}?"
    )
    return PendingInput((Question("approval", "approval", clean_text(message, _MAX_MESSAGE_LENGTH), schema),))


def _describe_arguments(arguments: JsonObject) -> str:
    """Write arguments for a person.

    For example, `with title "Buy milk" and done true`.
    """
    if not arguments:
        return "without arguments"
    *others, last = [f"{name} {msgspec.json.encode(value).decode()}" for name, value in arguments.items()]
    return f"with {', '.join(others)} and {last}" if others else f"with {last}"

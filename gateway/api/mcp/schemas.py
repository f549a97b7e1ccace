"""Conversion of tools, results and questions to the types of MCP."""

from uuid import UUID, uuid4

import mcp.types as t
import msgspec
from mcp import MCPError

from gateway.common.structured_text import select_missing
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import (
    Answer,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolResult,
    ToolSpec,
    text_block,
)
from gateway.ports.tools import (
    IDEMPOTENCY_KEY_META,
    IDEMPOTENT_META,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    make_user_idempotency_key,
)


def to_mcp_tool(spec: ToolSpec, *, is_modern: bool) -> t.Tool:
    """Convert a tool; a server's own definition is unchanged.

    The legacy protocol permits only output schemas of objects, so others are left out there.
    """
    definition = spec.definition or {
        "title": spec.title,
        "description": spec.description,
        "inputSchema": spec.input_schema,
        "outputSchema": spec.output_schema,
    }
    output_schema: JsonObject | None = definition["outputSchema"]
    if output_schema is not None and not is_modern and output_schema.get("type") != "object":
        output_schema = None
    hints = {
        "readOnlyHint": spec.read_only,
        "destructiveHint": spec.destructive,
        "idempotentHint": spec.idempotent,
        "openWorldHint": spec.open_world,
    }
    meta = {name: value for name, value in definition.get("_meta", {}).items() if name != IDEMPOTENT_META}
    if spec.deduplicates:  # another value of a server would be read as a promise
        meta[IDEMPOTENT_META] = True
    own = {
        "name": spec.name,
        "outputSchema": output_schema,
        "annotations": {**definition.get("annotations", {}), **hints},
        "_meta": meta or None,
    }
    return t.Tool.model_validate({**definition, **own})


def to_call_result(result: ToolResult, meta: JsonObject | None = None, *, is_modern: bool = True) -> t.CallToolResult:
    """Convert a tool's result.

    The legacy protocol permits only objects as structured results. Others become text there, if the text lacks them.

    Raises:
        MCPError: the server answered the call with a JSON-RPC error, which is forwarded.
    """
    if (refusal := result.refusal) is not None:
        raise MCPError(refusal["code"], refusal["message"], refusal["data"])
    content, structured = result.content, result.structured
    if not is_modern and structured is not None and not isinstance(structured, dict):
        text = "\n".join(str(block.get("text", "")) for block in content)
        if select_missing(structured, text) is not None:
            content = [*content, text_block(msgspec.json.encode(structured).decode())]
        structured = None
    fields: JsonObject = {"content": content, "structuredContent": structured, "isError": result.outcome != "ok"}
    return t.CallToolResult.model_validate(fields | {"_meta": meta or result.meta})


def to_input_required(pending: PendingInput) -> t.InputRequiredResult:
    """Convert a server's questions.

    The client returns the server's state with the answers.
    """
    requests: dict[str, JsonObject] = {}
    for question in pending.questions:
        params: JsonObject = {"mode": "form", "message": question.message, "requestedSchema": question.schema}
        if question.url is not None:
            elicitation_id = question.elicitation_id or question.key
            params = {"mode": "url", "message": question.message, "url": question.url, "elicitationId": elicitation_id}
        requests[question.key] = question.request or {"method": "elicitation/create", "params": params}
    fields = {"resultType": "input_required", "inputRequests": requests, "requestState": pending.state}
    return t.InputRequiredResult.model_validate(fields)


def parse_answers(params: t.InputResponseRequestParams, state: str | None) -> list[StoredQuestion]:
    """Parse the answers of the host and its user.

    `state` is that of the server that asked.
    """
    answers: list[StoredQuestion] = []
    for key, response in (params.input_responses or {}).items():
        if isinstance(response, t.ElicitResult):
            question, answer = Question(key, "question", ""), Answer(response.action, response.content)
        else:
            content = response.model_dump(mode="json", by_alias=True, exclude_none=True)
            question, answer = Question(key, "host", ""), Answer("accept", content)
        answers.append(StoredQuestion(UUID(int=0), "", question, state, answer))
    return answers


def parse_idempotency_key(params: t.CallToolRequestParams) -> str | None:
    """Parse the key of a host's call; None if it has none.

    Raises:
        InvalidRequest: it is not a string of a permitted length.
    """
    key: object = (params.meta or {}).get(IDEMPOTENCY_KEY_META)
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        length = f"1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters"
        raise InvalidRequest(f"_meta: {IDEMPOTENCY_KEY_META} must be a string of {length}.", param="_meta")
    return key


def make_server_key(params: t.CallToolRequestParams, principal: Principal) -> str:
    """The idempotency key that a server receives for a host's call.

    Keys of different users differ.

    Raises:
        MCPError: the host's key is not valid.
    """
    try:
        key = parse_idempotency_key(params)
    except InvalidRequest as error:
        raise MCPError(t.INVALID_PARAMS, error.message) from None
    return str(uuid4()) if key is None else make_user_idempotency_key(principal.user, key)

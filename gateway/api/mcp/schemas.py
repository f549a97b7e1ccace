"""Conversion of tools, results and questions to the types of MCP."""

from uuid import UUID

import mcp.types as t
from mcp import MCPError

from gateway.domain.messages import Answer, JsonObject, PendingInput, Question, StoredQuestion, ToolResult, ToolSpec


def to_mcp_tool(spec: ToolSpec) -> t.Tool:
    return t.Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=spec.input_schema,
        output_schema=spec.output_schema,
        annotations=t.ToolAnnotations(
            read_only_hint=spec.read_only,
            destructive_hint=spec.destructive,
            idempotent_hint=spec.idempotent,
            open_world_hint=spec.open_world,
        ),
    )


def to_call_result(result: ToolResult, meta: JsonObject | None = None) -> t.CallToolResult:
    """Convert a tool's result.

    Raises:
        MCPError: the server answered the call with a JSON-RPC error, which is forwarded.
    """
    if (refusal := result.refusal) is not None:
        raise MCPError(refusal["code"], refusal["message"], refusal["data"])
    fields = {"content": result.content, "structuredContent": result.structured, "isError": result.outcome != "ok"}
    return t.CallToolResult.model_validate(fields | ({"_meta": meta} if meta else {}))


def to_input_required(pending: PendingInput) -> t.InputRequiredResult:
    """Convert a server's questions.

    The client returns the server's state with the answers.
    """
    requests: dict[str, JsonObject] = {}
    for question in pending.questions:
        params: JsonObject = {"mode": "form", "message": question.message, "requestedSchema": question.schema}
        if question.url is not None:
            params = {"mode": "url", "message": question.message, "url": question.url, "elicitationId": question.key}
        requests[question.key] = {"method": "elicitation/create", "params": params}
    fields = {"resultType": "input_required", "inputRequests": requests, "requestState": pending.state}
    return t.InputRequiredResult.model_validate(fields)


def parse_answers(params: t.CallToolRequestParams) -> list[StoredQuestion]:
    """Parse the answers of the host's user."""
    answers: list[StoredQuestion] = []
    for key, response in (params.input_responses or {}).items():
        if isinstance(response, t.ElicitResult):
            question, answer = Question(key, "question", ""), Answer(response.action, response.content)
            answers.append(StoredQuestion(UUID(int=0), "", question, params.request_state, answer))
    return answers

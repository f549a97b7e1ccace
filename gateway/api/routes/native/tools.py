"""`/api/v1/tools`: list the tools of the MCP servers, and call them directly."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Body, Header
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, ToolboxDep, list_visible_servers
from gateway.api.http.errors import ErrorBody
from gateway.common.mcp_meta import get_ui_resource
from gateway.domain.errors import ToolNotFound
from gateway.domain.messages import JsonObject, Outcome, PendingInput, ToolResult, text_block
from gateway.ports.tools import (
    IDEMPOTENCY_KEY_META,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    ToolCallRequest,
    make_user_idempotency_key,
)

router = APIRouter(prefix="/api/v1", tags=["tools"])


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=MAX_IDEMPOTENCY_KEY_LENGTH,
        description=f"The server receives a key derived from it and from you as `{IDEMPOTENCY_KEY_META}`.",
    ),
]


class ToolAnnotationsView(BaseModel):
    """Hints of the MCP server about a tool."""

    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool


class ToolView(BaseModel):
    """Tool of an MCP server.

    `ui_resource` is the URI of the page of an MCP App that shows its results.
    """

    name: str
    title: str | None
    server: str
    server_state: str
    description: str
    input_schema: JsonObject
    output_schema: JsonObject | None
    annotations: ToolAnnotationsView
    ui_resource: str | None = None


class ServerView(BaseModel):
    """State of an MCP server.

    `reason` explains a state other than `up`. `tools` is the number of its tools.
    """

    name: str
    url: str | None
    transport: str
    state: str
    since: str
    reason: str | None
    tools: int
    protocol_version: str | None


class ToolListView(BaseModel):
    """Tools and servers that the caller may use."""

    tools: list[ToolView]
    servers: list[ServerView]


class ToolCallResult(BaseModel):
    """Result of a tool call."""

    tool: str
    server: str
    outcome: Outcome
    content: list[JsonObject]
    structured: object = None
    duration_ms: float


@router.get("/tools", summary="List the tools")
async def list_tools(principal: PrincipalDep, toolbox: ToolboxDep) -> ToolListView:
    """The tools that you may use.

    The list also has the state of each MCP server.
    """
    await toolbox.connect_user(principal)
    servers = list_visible_servers(toolbox, principal)
    states = {server.name: server.state for server in servers}
    tools = [
        ToolView(
            name=spec.name,
            title=spec.title,
            server=spec.server,
            server_state=states.get(spec.server, "down"),
            description=spec.description,
            input_schema=spec.input_schema,
            output_schema=spec.output_schema,
            annotations=ToolAnnotationsView(
                read_only=spec.read_only,
                destructive=spec.destructive,
                idempotent=spec.idempotent,
                open_world=spec.open_world,
            ),
            ui_resource=get_ui_resource((spec.definition or {}).get("_meta")),
        )
        for spec in toolbox.list_specs(principal)
        if principal.can_use_tool(spec)
    ]
    views = [ServerView.model_validate(server, from_attributes=True) for server in servers]
    return ToolListView(tools=tools, servers=views)


@router.post(
    "/tools/{name}",
    summary="Call a tool",
    responses={404: {"model": ErrorBody, "description": "The tool was not found"}},
)
async def call_tool(
    name: str,
    principal: PrincipalDep,
    toolbox: ToolboxDep,
    arguments: Annotated[JsonObject, Body(description="Arguments that match the tool's `input_schema`.")],
    idempotency_key: IdempotencyKey = None,
) -> ToolCallResult:
    """Call a tool directly, without a model.

    An error of the tool is a result with status 200. The result is whole: the limits of `TOOL_RESULT_MAX_CHARS` are
    for models. To call a tool again without a second effect, repeat the
    `Idempotency-Key`; the tool must deduplicate.
    """
    await toolbox.connect_user(principal)
    spec = toolbox.find_tool(name, principal)
    if spec is None or not principal.can_use_tool(spec):
        raise ToolNotFound(f"There is no tool {name!r}. `GET /api/v1/tools` lists the available tools.")
    started_at = time.perf_counter()
    request = ToolCallRequest(spec, arguments, principal, is_whole=True)
    if idempotency_key is not None:
        key = make_user_idempotency_key(principal.user, idempotency_key)
        request = msgspec.structs.replace(request, idempotency_key=key)
    result = await toolbox.call_tool(request)
    if isinstance(result, PendingInput):
        questions = "; ".join(question.message for question in result.questions)
        note = f"The tool asks: {questions} Direct calls cannot answer questions: pass all arguments, or use a chat."
        result = ToolResult(outcome="error", content=[text_block(note)])
    return ToolCallResult(
        tool=spec.name,
        server=spec.server,
        outcome=result.outcome,
        content=result.content,
        structured=result.structured,
        duration_ms=round((time.perf_counter() - started_at) * 1000, 2),
    )

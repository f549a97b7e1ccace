"""`/api/v1/tools`: what the connected MCP servers offer, and calling one by hand."""

import time
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, ToolboxDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.errors import ToolNotFound
from gateway.domain.messages import JsonObject, Outcome, PendingInput, ToolResult, text_block

router = APIRouter(prefix="/api/v1", tags=["tools"])


class ToolAnnotationsView(BaseModel):
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool


class ToolView(BaseModel):
    name: str
    title: str | None
    server: str
    server_state: str
    description: str
    input_schema: JsonObject
    output_schema: JsonObject | None
    annotations: ToolAnnotationsView


class ServerView(BaseModel):
    name: str
    url: str | None
    transport: str
    state: str
    since: str
    reason: str | None
    tools: int
    protocol_version: str | None


class ToolListView(BaseModel):
    tools: list[ToolView]
    servers: list[ServerView]


class ToolCallResult(BaseModel):
    tool: str
    server: str
    outcome: Outcome
    content: list[JsonObject]
    structured: object = None
    duration_ms: float


@router.get("/tools", summary="The tools on offer")
async def list_tools(principal: PrincipalDep, toolbox: ToolboxDep) -> ToolListView:
    """Every tool of every connected MCP server that you may use, and how each server stands."""
    servers = [server for server in toolbox.servers() if principal.can_use_server(server.name)]
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
        )
        for spec in toolbox.specs()
        if principal.can_use_tool(spec)
    ]
    views = [ServerView.model_validate(server, from_attributes=True) for server in servers]
    return ToolListView(tools=tools, servers=views)


@router.post(
    "/tools/{name}",
    summary="Call a tool by hand",
    responses={404: {"model": ErrorBody, "description": "No connected server has this tool"}},
)
async def call_tool(
    name: str,
    principal: PrincipalDep,
    toolbox: ToolboxDep,
    arguments: Annotated[JsonObject, Body(description="The arguments, as the tool's schema wants them.")],
) -> ToolCallResult:
    """Run one tool as the caller, without a model. What the tool says went wrong is its result, not an HTTP error."""
    spec = toolbox.find(name)
    if spec is None or not principal.can_use_tool(spec):
        raise ToolNotFound(f"There is no tool {name!r}. `GET /api/v1/tools` lists those on offer.")
    started = time.perf_counter()
    result = await toolbox.call(spec, arguments, principal=principal)
    if isinstance(result, PendingInput):
        asked = "; ".join(question.message for question in result.questions)
        note = f"The tool asks: {asked} Questions are answered in a chat; here, call it with all that it needs."
        result = ToolResult(outcome="error", content=[text_block(note)])
    return ToolCallResult(
        tool=spec.name,
        server=spec.server,
        outcome=result.outcome,
        content=result.content,
        structured=result.structured,
        duration_ms=round((time.perf_counter() - started) * 1000, 2),
    )

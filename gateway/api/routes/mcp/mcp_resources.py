"""`/api/v1/mcp/resources` and `/api/v1/mcp/prompts`: resources and prompts of the MCP servers."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gateway.api.deps import PrincipalDep, ToolboxDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.messages import JsonObject
from gateway_runtime.requests.model import RequestModel, limit_entries

_MAX_ARGUMENTS = 100
router = APIRouter(prefix="/api/v1/mcp", tags=["MCP servers"])

_ERRORS: dict[int | str, JsonObject] = {
    404: {"model": ErrorBody, "description": "The resource or prompt was not found on any connected server"},
    502: {"model": ErrorBody, "description": "The MCP server answered with an error, or not at all"},
}


class ResourceList(BaseModel):
    """Resources and resource templates in MCP's format, each with its `server`."""

    resources: list[JsonObject]
    templates: list[JsonObject]


class PromptList(BaseModel):
    """Prompts in MCP's format, each with its `server`.

    Names are unique across servers.
    """

    prompts: list[JsonObject]


class PromptArguments(RequestModel):
    """Arguments of a prompt."""

    arguments: Annotated[dict[str, str], limit_entries(_MAX_ARGUMENTS)] = Field(default_factory=dict)


@router.get("/resources", summary="List the resources of the MCP servers")
async def list_resources(principal: PrincipalDep, toolbox: ToolboxDep) -> ResourceList:
    """Resources and resource templates of the servers that you may use."""
    return ResourceList(
        resources=await toolbox.list_server_items("resources", principal),
        templates=await toolbox.list_server_items("resource_templates", principal),
    )


@router.get("/resources/read", summary="Read a resource", responses=_ERRORS)
async def read_resource(
    principal: PrincipalDep,
    toolbox: ToolboxDep,
    uri: Annotated[str, Query(min_length=1, max_length=4_000, description="URI of the resource.")],
    server: Annotated[
        str | None,
        Query(description="Name of the server. Default: the server that lists the resource or a matching template."),
    ] = None,
) -> JsonObject:
    """The contents of a resource, in MCP's format."""
    return await toolbox.read_resource(uri, principal, server)


@router.get("/prompts", summary="List the prompts of the MCP servers")
async def list_prompts(principal: PrincipalDep, toolbox: ToolboxDep) -> PromptList:
    """Prompts of the servers that you may use."""
    return PromptList(prompts=await toolbox.list_server_items("prompts", principal))


@router.post("/prompts/{name}", summary="Get a prompt", responses=_ERRORS)
async def get_prompt(name: str, body: PromptArguments, principal: PrincipalDep, toolbox: ToolboxDep) -> JsonObject:
    """The messages of a prompt, with its arguments filled in.

    The messages are in MCP's format.
    """
    return await toolbox.get_prompt(name, body.arguments, principal)

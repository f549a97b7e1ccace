"""`/api/v1/mcp/resources` and `/prompts`: what the MCP servers have beside tools."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.deps import PrincipalDep, ToolboxDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.messages import JsonObject

router = APIRouter(prefix="/api/v1/mcp", tags=["MCP servers"])

_ERRORS: dict[int | str, JsonObject] = {
    404: {"model": ErrorBody, "description": "No connected server has it"},
    502: {"model": ErrorBody, "description": "The server did not answer as it should"},
}


class ResourceList(BaseModel):
    """As MCP describes them, each with its `server`."""

    resources: list[JsonObject]
    templates: list[JsonObject]


class PromptList(BaseModel):
    """As MCP describes them, each with its `server`, under names that are unique here."""

    prompts: list[JsonObject]


class PromptArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    arguments: dict[str, str] = Field(default_factory=dict)


@router.get("/resources", summary="The resources of the MCP servers")
async def list_resources(principal: PrincipalDep, toolbox: ToolboxDep) -> ResourceList:
    return ResourceList(
        resources=await toolbox.listed("resources", principal),
        templates=await toolbox.listed("resource_templates", principal),
    )


@router.get("/resources/read", summary="Read a resource", responses=_ERRORS)
async def read_resource(
    principal: PrincipalDep,
    toolbox: ToolboxDep,
    uri: Annotated[str, Query(min_length=1, max_length=4_000)],
    server: Annotated[str | None, Query(description="Default: whichever lists it, or has a template for it.")] = None,
) -> JsonObject:
    """Its contents, as MCP gives them."""
    return await toolbox.read_resource(uri, principal, server)


@router.get("/prompts", summary="The prompts of the MCP servers")
async def list_prompts(principal: PrincipalDep, toolbox: ToolboxDep) -> PromptList:
    return PromptList(prompts=await toolbox.listed("prompts", principal))


@router.post("/prompts/{name}", summary="Fill in a prompt", responses=_ERRORS)
async def get_prompt(name: str, body: PromptArguments, principal: PrincipalDep, toolbox: ToolboxDep) -> JsonObject:
    """Its messages, as MCP gives them."""
    return await toolbox.get_prompt(name, body.arguments, principal)

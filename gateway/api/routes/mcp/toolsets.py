"""`/api/v1/toolsets`: named subsets of the tools."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from gateway.api.deps import PrincipalDep, ToolboxDep, ToolsetsDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.errors import Forbidden, ToolsetNotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.domain.toolsets import TOOLSET_NAME, Toolset, ToolsetDefinition, ToolsetName
from gateway_runtime.requests.model import RequestModel

router = APIRouter(prefix="/api/v1/toolsets", tags=["MCP servers"])

PathName = Annotated[str, Path(pattern=TOOLSET_NAME)]
_ERRORS: dict[int | str, JsonObject] = {
    403: {"model": ErrorBody, "description": "Only admins may change toolsets"},
    404: {"model": ErrorBody, "description": "The toolset was not found"},
    409: {"model": ErrorBody, "description": "The name is already used, or the setting TOOLSETS defines the toolset"},
}


class ToolsetReplace(RequestModel, ToolsetDefinition):
    """Content of a toolset."""


class ToolsetCreate(ToolsetReplace):
    """Toolset to create."""

    name: ToolsetName


class ToolsetView(BaseModel):
    """Toolset, from the setting TOOLSETS or defined over the API."""

    name: str
    source: Literal["setting", "api"]
    definition: ToolsetDefinition


class ShownTool(BaseModel):
    """Tool of a toolset, with its name at the server."""

    name: str
    server: str
    tool: str
    description: str


class ToolsetState(ToolsetView):
    """Toolset with its tools for the caller.

    `missing` are entries that show no tool, for example because their server is down.
    """

    shown: list[ShownTool] = Field(default_factory=list[ShownTool])
    missing: list[str] = []


class ToolsetList(BaseModel):
    """Toolsets, in the order of their names."""

    toolsets: list[ToolsetView]


@router.get("", summary="List the toolsets")
async def list_visible_toolsets(principal: PrincipalDep, toolsets: ToolsetsDep) -> ToolsetList:
    """List the toolsets; a bound key sees its own toolset alone."""
    visible = (toolset for toolset in toolsets.list_all() if principal.toolset in (None, toolset.name))
    return ToolsetList(toolsets=[ToolsetView(**_describe(toolset)) for toolset in visible])


@router.get("/{name}", summary="Show a toolset", responses={404: _ERRORS[404]})
async def show_toolset(
    name: PathName, principal: PrincipalDep, toolsets: ToolsetsDep, toolbox: ToolboxDep
) -> ToolsetState:
    """Show a toolset with its present and missing tools."""
    if principal.toolset not in (None, name):
        raise ToolsetNotFound(f"There is no toolset {name!r}.", param="toolset")
    toolset = toolsets.get_toolset(name)
    viewer = msgspec.structs.replace(principal, toolset=name)
    shown = [
        ShownTool(name=spec.name, server=spec.server, tool=spec.tool, description=spec.description)
        for spec in toolbox.list_specs(viewer)
        if viewer.can_use_tool(spec)
    ]
    return ToolsetState(**_describe(toolset), shown=shown, missing=list(toolbox.list_missing_tools(viewer)))


@router.post("", summary="Create a toolset", status_code=201, responses=_ERRORS)
async def post_toolset(
    body: ToolsetCreate, principal: PrincipalDep, toolsets: ToolsetsDep, toolbox: ToolboxDep
) -> ToolsetState:
    """Create a toolset for every worker.

    It grants nothing: allow and deny lists apply to the original names of its tools. Tools that do not exist yet are
    shown as soon as their server has them.
    """
    _require_unbound(principal)
    await toolsets.create_toolset(body.name, _to_definition(body), by=principal.user)
    return await show_toolset(body.name, principal, toolsets, toolbox)


@router.put("/{name}", summary="Replace a toolset", responses=_ERRORS)
async def put_toolset(
    name: PathName, body: ToolsetReplace, principal: PrincipalDep, toolsets: ToolsetsDep, toolbox: ToolboxDep
) -> ToolsetState:
    """Replace the content of a toolset, also for running turns."""
    _require_unbound(principal)
    await toolsets.replace_toolset(name, _to_definition(body), by=principal.user)
    return await show_toolset(name, principal, toolsets, toolbox)


@router.delete("/{name}", summary="Remove a toolset", status_code=204, responses=_ERRORS)
async def drop_toolset(name: PathName, principal: PrincipalDep, toolsets: ToolsetsDep) -> Response:
    """Remove a toolset.

    Keys that are bound to it see no tools from then on.
    """
    _require_unbound(principal)
    await toolsets.remove_toolset(name, by=principal.user)
    return Response(status_code=204)


def _describe(toolset: Toolset) -> JsonObject:
    return {"name": toolset.name, "source": toolset.source, "definition": toolset.definition}


def _to_definition(body: ToolsetReplace) -> ToolsetDefinition:
    return ToolsetDefinition.model_validate(body.model_dump(include=set(ToolsetDefinition.model_fields)))


def _require_unbound(principal: Principal) -> None:
    if principal.toolset is not None:
        raise Forbidden("Your key is bound to a toolset, so it may not change toolsets.")

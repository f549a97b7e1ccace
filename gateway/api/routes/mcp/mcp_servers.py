"""`/api/v1/mcp/servers`: the MCP servers, and changing them while the gateway runs."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.deps import PrincipalDep, ServerAdminDep, ServersDep, ToolboxDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.errors import Forbidden
from gateway.domain.messages import Approval, JsonObject, Principal

router = APIRouter(prefix="/api/v1/mcp/servers", tags=["MCP servers"])

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
ToolName = Annotated[str, Path(pattern=r"^[^\x00]*$")]
_ERRORS: dict[int | str, JsonObject] = {
    403: {"model": ErrorBody, "description": "Only admins may change servers"},
    404: {"model": ErrorBody, "description": "There is no such server"},
    409: {"model": ErrorBody, "description": "The name is taken, or the file configures the server"},
}


class McpServerView(BaseModel):
    """`state`: connecting, up, degraded, needs_auth, down, disabled. Headers are never shown, only their names."""

    name: str
    source: str
    transport: str
    url: str | None
    state: str
    since: str
    reason: str | None
    tools: int
    protocol_version: str | None
    prefix: str | None
    allow: list[str]
    deny: list[str]
    approval: str
    identity: str
    share: str
    on_change: str
    timeout: float | None
    headers: list[str]


class ChangedTool(BaseModel):
    """A tool whose definition is not the one that was first seen."""

    server: str
    tool: str
    was: JsonObject
    now: JsonObject


class McpServerList(BaseModel):
    servers: list[McpServerView]
    changed_tools: list[ChangedTool]


class ServerCreate(BaseModel):
    """A server to connect to over HTTP. Commands are never taken over the network, and nothing is expanded."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    url: str = Field(max_length=2_000)
    type: Literal["http", "sse"] = "http"
    headers: dict[str, str] = Field(default_factory=dict, max_length=50)
    prefix: str | None = Field(default=None, max_length=64)
    timeout: float | None = Field(default=None, gt=0, le=3_600)
    allow: list[str] = Field(default=["*"], max_length=200)
    deny: list[str] = Field(default=[], max_length=200)
    approval: Approval = "never"
    share: Literal["all", "user"] = "all"
    on_change: Literal["flag", "hold"] = "flag"


class ServerPatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    disabled: bool


@router.get("", summary="The MCP servers")
async def list_servers(
    principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """How each stands, and which of their tools have changed since they were first seen."""
    statuses = {status.name: status for status in toolbox.servers() if principal.can_use_server(status.name)}
    views: list[McpServerView] = []
    for name, status in statuses.items():
        config = admin.config(name)
        fields: JsonObject = {
            "source": admin.source(name), "prefix": config.prefix, "allow": config.allow,
            "deny": config.deny, "approval": config.approval, "identity": config.identity, "share": config.share,
            "on_change": config.on_change, "timeout": config.timeout, "headers": list(config.headers),
        }  # fmt: skip
        told = {name: getattr(status, name) for name in status.__struct_fields__}
        views.append(McpServerView.model_validate(told | fields))
    changed = {key: change for key, change in (await servers.changed()).items() if principal.can_use_server(key[0])}
    return McpServerList(
        servers=views,
        changed_tools=[ChangedTool(server=s, tool=t, was=was, now=now) for (s, t), (was, now) in changed.items()],
    )


@router.post("", summary="Add an MCP server", status_code=201, responses=_ERRORS)
async def add_server(
    body: ServerCreate, principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """Every worker connects to it; its tools are on offer as soon as it is up."""
    _require_admin(principal)
    config = body.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    await admin.add(body.name, config, by=principal.user)
    return await list_servers(principal, admin, servers, toolbox)


@router.patch("/{name}", summary="Disable or enable an MCP server", responses=_ERRORS)
async def switch_server(
    name: Name,
    body: ServerPatch,
    principal: PrincipalDep,
    admin: ServerAdminDep,
    servers: ServersDep,
    toolbox: ToolboxDep,
) -> McpServerList:
    """Calls under way end first. Also for those that the file configures."""
    _require_admin(principal)
    await admin.switch(name, disabled=body.disabled, by=principal.user)
    return await list_servers(principal, admin, servers, toolbox)


@router.delete("/{name}", summary="Remove an MCP server", status_code=204, responses=_ERRORS)
async def remove_server(name: Name, principal: PrincipalDep, admin: ServerAdminDep) -> None:
    """One that was added here; calls under way end first."""
    _require_admin(principal)
    await admin.remove(name, by=principal.user)


@router.post("/{name}/tools/{tool}/approve", summary="Take a changed tool as it is now", responses=_ERRORS)
async def approve_tool(
    name: Name, tool: ToolName, principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """A tool whose definition has changed is offered again, where its server's `on_change` is `hold`."""
    _require_admin(principal)
    await servers.approve(name, tool, by=principal.user)
    toolbox.recheck(name)
    return await list_servers(principal, admin, servers, toolbox)


def _require_admin(principal: Principal) -> None:
    if principal.role != "admin":
        raise Forbidden("Only admins may change MCP servers.")

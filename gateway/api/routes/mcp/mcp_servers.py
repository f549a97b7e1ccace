"""`/api/v1/mcp/servers`: list, add, change and remove MCP servers while the gateway runs."""

from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path
from pydantic import BaseModel

from gateway.api.deps import PrincipalDep, ServerAdminDep, ServersDep, ToolboxDep, list_visible_servers
from gateway.api.http.errors import ErrorBody
from gateway.api.routes.mcp.server_bodies import ServerCreate, ServerPatch, ServerReplace, ServersBody
from gateway.common.sanitize import reveal_text, reveal_value
from gateway.domain.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.ports.servers import OAuthClient, Sampling
from gateway.ports.tools import INSTRUCTIONS

router = APIRouter(prefix="/api/v1/mcp/servers", tags=["MCP servers"])

ServerName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
ToolName = Annotated[str, Path(pattern=r"^[^\x00]*$")]
_ERRORS: dict[int | str, JsonObject] = {
    403: {"model": ErrorBody, "description": "Only admins may change MCP servers"},
    404: {"model": ErrorBody, "description": "The server was not found"},
    409: {
        "model": ErrorBody,
        "description": "The name is already used, or the server is defined in the configuration file",
    },
}


class DefinitionProblemView(BaseModel):
    """Definition that does not fit the protocol.

    It is repaired, or left out if `left_out`. `kind` is tool, resource, resource_template, prompt or server. `name` is
    empty for a list as a whole, for example one that has more items than are offered.
    """

    kind: str
    name: str
    problem: str
    left_out: bool


class OAuthClientView(BaseModel):
    """OAuth client of a server, without its secret."""

    client_id: str
    has_secret: bool
    token_endpoint_auth_method: str | None
    scope: str | None


class McpServerView(BaseModel):
    """State and configuration of an MCP server.

    `state` is connecting, up, degraded, needs_auth, down or disabled. `headers` lists the names of the configured
    headers, not their values. `signed_in` tells whether there is a token of the caller, or of all users if `share` is
    `all`; it is null where users cannot sign in. `definition_problems` are those of the lists that were read last.
    Only admins see `last_output`: the last lines of standard error of a command that is unavailable.
    """

    name: str
    source: str
    transport: str
    url: str | None
    state: str
    since: str
    reason: str | None
    tools: int
    protocol_version: str | None
    last_output: list[str] = []
    prefix: str | None
    allow: list[str]
    deny: list[str]
    approval: str
    identity: str
    share: str
    on_change: str
    idempotency: bool
    as_tools: list[Literal["resources", "prompts"]]
    sampling: Sampling
    roots: list[str] | None
    signed_in: bool | None
    oauth: OAuthClientView | None
    timeout: float | None
    headers: list[str]
    definition_problems: list[DefinitionProblemView]


class ChangedTool(BaseModel):
    """Tool whose definition has changed, or that is new.

    `was` is the approved definition, `now` the current one. `was` is empty for a new tool, which waits for approval.
    Invisible characters are written as escapes such as `\\u200b`.
    """

    server: str
    tool: str
    was: JsonObject
    now: JsonObject


class ChangedInstructions(BaseModel):
    """Instructions of a server that have changed.

    `was` is the approved text, `now` the current one. Invisible characters are written as escapes.
    """

    server: str
    was: str
    now: str


class McpServerList(BaseModel):
    """MCP servers, and tools and instructions that have changed."""

    servers: list[McpServerView]
    changed_tools: list[ChangedTool]
    changed_instructions: list[ChangedInstructions]


@router.get("", summary="List the MCP servers")
async def list_servers(
    principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """The state and configuration of each server.

    The list also has the tools whose definition has changed.
    """
    names = [status.name for status in list_visible_servers(toolbox, principal)]
    signed_in = await toolbox.sign_in.list_signed_in(names, principal)
    statuses = {status.name: status for status in list_visible_servers(toolbox, principal)}
    views: list[McpServerView] = []
    for name, status in statuses.items():
        if (source := admin.get_source(name)) is None:
            continue  # it is being removed
        config = admin.get_config(name)
        fields: JsonObject = {
            "source": source,
            "prefix": config.prefix,
            "allow": config.allow,
            "deny": config.deny,
            "approval": config.approval,
            "identity": config.identity,
            "share": config.share,
            "on_change": config.on_change,
            "idempotency": config.idempotency,
            "as_tools": config.as_tools,
            "sampling": config.sampling,
            "roots": config.roots,
            "signed_in": name in signed_in if config.allows_sign_in else None,
            "oauth": config.oauth and _describe_client(config.oauth),
            "timeout": config.timeout,
            "headers": list(config.headers),
            "last_output": status.last_output if principal.role == "admin" else (),
        }
        problems = [msgspec.structs.asdict(problem) for problem in status.definition_problems]
        fields["definition_problems"] = problems
        views.append(McpServerView.model_validate(msgspec.structs.asdict(status) | fields))
    changed = {
        key: (reveal_value(was), reveal_value(now))
        for key, (was, now) in (await servers.list_changed_definitions()).items()
        if principal.can_use_server(key[0]) and (principal.toolset is None or key[0] in statuses)
    }
    return McpServerList(
        servers=views,
        changed_tools=[
            ChangedTool(server=server, tool=reveal_text(tool), was=was, now=now)
            for (server, tool), (was, now) in changed.items()
            if tool != INSTRUCTIONS
        ],
        changed_instructions=[
            ChangedInstructions(server=server, was=was["instructions"], now=now["instructions"])
            for (server, tool), (was, now) in changed.items()
            if tool == INSTRUCTIONS
        ],
    )


@router.post("", summary="Add MCP servers", status_code=201, responses=_ERRORS)
async def add_server(
    body: ServersBody, principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """Connect every worker to an MCP server.

    A pasted `{"mcpServers": …}` adds all of its servers. A server's tools are available as soon as its state is `up`.
    """
    _require_admin(principal)
    new_servers = [(body, False)] if isinstance(body, ServerCreate) else body.list_servers()
    for server, _ in new_servers:
        if not principal.can_use_server(server.name):
            raise Forbidden(f"Your key does not permit a server of this name: {server.name}.")
        if admin.get_source(server.name) is not None:
            raise Conflict(f"There is an MCP server {server.name!r} already.", param="name")
    for server, is_disabled in new_servers:
        await admin.add_server(server.name, server.to_config(), by=principal.user)
        if is_disabled:
            await admin.set_disabled(server.name, disabled=True, by=principal.user)
    return await list_servers(principal, admin, servers, toolbox)


@router.put("/{name}", summary="Replace the configuration of an MCP server", responses=_ERRORS)
async def replace_server(
    name: ServerName,
    body: ServerReplace,
    principal: PrincipalDep,
    admin: ServerAdminDep,
    servers: ServersDep,
    toolbox: ToolboxDep,
) -> McpServerList:
    """Replace the configuration of a server that was added over the API.

    Fields that the body lacks get their defaults: give headers and secrets again. Every worker connects anew; active
    calls finish first.
    """
    _require_admin(principal)
    _require_permitted(name, principal)
    if body.name not in (None, name):
        raise InvalidRequest("name: a server cannot be renamed", param="name")
    await admin.change_server(name, lambda _: body.to_config(), disabled=body.disabled, by=principal.user)
    return await list_servers(principal, admin, servers, toolbox)


@router.patch("/{name}", summary="Change an MCP server", responses=_ERRORS)
async def change_server(
    name: ServerName,
    body: ServerPatch,
    principal: PrincipalDep,
    admin: ServerAdminDep,
    servers: ServersDep,
    toolbox: ToolboxDep,
) -> McpServerList:
    """Disable, enable or change a server.

    The body is a JSON merge patch: fields that it lacks stay, null removes one. A server from the configuration file
    can be disabled and enabled. Active calls finish first.
    """
    _require_admin(principal)
    _require_permitted(name, principal)
    if not body.model_fields_set:
        raise InvalidRequest("The body changes nothing: give at least one field.")
    if body.model_fields_set == {"disabled"}:
        if body.disabled is None:
            raise InvalidRequest("disabled: must be true or false", param="disabled")
        await admin.set_disabled(name, disabled=body.disabled, by=principal.user)
    else:
        change = partial(body.apply, name)
        await admin.change_server(name, change, disabled=body.disabled, by=principal.user)
    return await list_servers(principal, admin, servers, toolbox)


@router.delete("/{name}", summary="Remove an MCP server", status_code=204, responses=_ERRORS)
async def remove_server(name: ServerName, principal: PrincipalDep, admin: ServerAdminDep) -> None:
    """Remove a server that was added over the API.

    Active calls finish first.
    """
    _require_admin(principal)
    _require_permitted(name, principal)
    await admin.remove_server(name, by=principal.user)


@router.post("/{name}/tools/{tool}/approve", summary="Approve the changed definition of a tool", responses=_ERRORS)
async def approve_tool(
    name: ServerName,
    tool: ToolName,
    principal: PrincipalDep,
    admin: ServerAdminDep,
    servers: ServersDep,
    toolbox: ToolboxDep,
) -> McpServerList:
    """Accept the current definition of a tool.

    With `on_change` `hold`, the tool becomes available.
    """
    _require_admin(principal)
    _require_permitted(name, principal)
    await servers.approve_tool(name, tool, by=principal.user)
    toolbox.recheck_server(name)
    admin.notify_workers()
    return await list_servers(principal, admin, servers, toolbox)


@router.post("/{name}/instructions/approve", summary="Approve the changed instructions of a server", responses=_ERRORS)
async def approve_instructions(
    name: ServerName, principal: PrincipalDep, admin: ServerAdminDep, servers: ServersDep, toolbox: ToolboxDep
) -> McpServerList:
    """Accept the current instructions of a server.

    With `on_change` `hold`, models read them from now on.
    """
    _require_admin(principal)
    _require_permitted(name, principal)
    await servers.approve_tool(name, INSTRUCTIONS, by=principal.user)
    toolbox.recheck_server(name)
    admin.notify_workers()
    return await list_servers(principal, admin, servers, toolbox)


def _describe_client(client: OAuthClient) -> OAuthClientView:
    return OAuthClientView(
        client_id=client.client_id,
        has_secret=client.client_secret is not None,
        token_endpoint_auth_method=client.token_endpoint_auth_method,
        scope=client.scope,
    )


def _require_admin(principal: Principal) -> None:
    if principal.role != "admin":
        raise Forbidden("Only admins may change MCP servers.")
    if principal.toolset is not None:
        raise Forbidden("Your key is bound to a toolset, so it may not change MCP servers.")


def _require_permitted(name: str, principal: Principal) -> None:
    """Report a server outside the key's allow list as not found."""
    if not principal.can_use_server(name):
        raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")

"""The deny list of all callers, and each caller's allow lists."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from gateway.common.concurrency import LruDict
from gateway.common.mcp_meta import get_ui_resource
from gateway.domain.errors import NotFound
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import (
    JsonObject,
    PendingInput,
    Principal,
    ToolResult,
    ToolSpec,
    matches_any_glob,
    text_block,
)
from gateway.domain.resource_globs import denies_uri, permits_uri
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.mcp_client.server_items.requests import find_resource_server
from gateway.ports.tools import ITEM_NAME_FIELDS, HostExchange, ItemKind, ResourceWatch, Toolbox, ToolCallRequest

_MAX_LISTS = 50
READER_TOOLS: dict[ItemKind, tuple[str, ...]] = {
    "resources": ("list_resources", "read_resource"),
    "resource_templates": ("list_resources", "read_resource"),
    "prompts": ("list_prompts", "get_prompt"),
}
"""Names of the built-in tools that read items of each kind."""


class ToolDenyList(ToolboxWrapper):
    """Hides and refuses tools that match a glob of `deny`.

    A glob is compared with a tool's exposed name, its former names, and `server/tool`. It wins over every allow list.
    """

    def __init__(self, toolbox: Toolbox, deny: tuple[str, ...]) -> None:
        super().__init__(toolbox)
        self._deny = deny
        self._allowed: LruDict[str | None, tuple[tuple[ToolSpec, ...], tuple[ToolSpec, ...]]] = LruDict(_MAX_LISTS)
        """All specs of a user, and those that are allowed."""

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        specs = self._toolbox.list_specs(principal)
        if not self._deny:
            return specs
        user = principal and principal.user
        all_specs, allowed_specs = self._allowed.get(user, (None, ()))
        if specs is not all_specs:
            allowed_specs = tuple(spec for spec in specs if not self._is_denied(spec))
            self._allowed[user] = (specs, allowed_specs)
        return allowed_specs

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        spec = self._toolbox.find_tool(name, principal)
        return None if spec is None or self._is_denied(spec) else spec

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if self._is_denied(request.spec):
            return _denied_result(request.spec)
        return await self._toolbox.call_tool(request)

    def _is_denied(self, spec: ToolSpec) -> bool:
        names = (spec.name, *spec.former_names, f"{spec.server}/{spec.tool}")
        return any(fnmatchcase(name, glob) for glob in self._deny for name in names)


class ToolPermissions(ToolboxWrapper):
    """Refuses calls of tools that are outside the caller's allow lists."""

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if not request.principal.can_use_tool(request.spec):
            return _denied_result(request.spec)
        return await self._toolbox.call_tool(request)


class ItemPermissions(ToolboxWrapper):
    """Limits resources, prompts and completions to the caller's allow lists.

    Globs of tools are compared with the URI of a resource, the pattern of a template and the exposed name of a prompt;
    those of `deny` also with `server/…`. A list that permits a server's built-in tool for reading permits its items.
    Other items are reported as not found.
    """

    def __init__(self, toolbox: Toolbox, deny: tuple[str, ...]) -> None:
        super().__init__(toolbox)
        self._deny = deny

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        items = await self._toolbox.list_server_items(kind, principal)
        if self._permits_everything(principal):
            return items
        return [item for item in items if self._may_use_item(kind, item, principal)]

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        server = await self._find_permitted_server(uri, principal, server)
        return await self._toolbox.read_resource(uri, principal, server, exchange)

    async def watch_resource(
        self,
        uri: str,
        principal: Principal,
        on_update: Callable[[str], None],
        server: str | None = None,
        host: HostProfile | None = None,
    ) -> ResourceWatch:
        server = await self._find_permitted_server(uri, principal, server)
        return await self._toolbox.watch_resource(uri, principal, on_update, server, host)

    async def _find_permitted_server(self, uri: str, principal: Principal, server: str | None) -> str | None:
        """The server of a resource that the caller may read; None: any."""
        if self._permits_everything(principal):
            return server
        server = server or await find_resource_server(self.list_server_items, uri, principal)
        if not principal.can_use_server(server):
            raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        if not self._may_use_item("resources", {"server": server, "uri": uri}, principal):
            raise NotFound(f"No connected server has the resource {uri[:200]!r}.", param="uri")
        return server

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        if not self._permits_everything(principal):
            server = await self._find_prompt_server(name, principal, server)
        return await self._toolbox.get_prompt(name, arguments, principal, server, exchange)

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        if not self._permits_everything(principal):
            is_prompt = ref.get("type") == "ref/prompt"
            find_server = self._find_prompt_server if is_prompt else self._find_template_server
            server = await find_server(str(ref.get("name" if is_prompt else "uri")), principal, server)
        return await self._toolbox.complete_argument(ref, argument, principal, server, context)

    def _permits_everything(self, principal: Principal) -> bool:
        return principal.can_use_all_tools and not self._deny

    def _may_use_item(self, kind: ItemKind, item: JsonObject, principal: Principal) -> bool:
        server = item["server"]
        name = item[ITEM_NAME_FIELDS[kind]]
        is_resource = kind == "resources"
        names = (name, f"{server}/{item.get('prompt', name)}")
        if any(fnmatchcase(name, glob) for glob in self._deny for name in names):
            return False
        if is_resource and self._denies_resource(server, name):
            return False
        if not principal.can_use_server(server):
            return False
        is_listed = permits_uri(name, principal.tools) if is_resource else matches_any_glob(name, principal.tools)
        is_permitted = is_listed or self._may_use_reader(kind, server, principal)
        return is_permitted or (is_resource and self._may_show_page(name, server, principal))

    def _denies_resource(self, server: str, uri: str) -> bool:
        """Whether a URI is denied as its server may read it."""
        prefix = f"{server}/"
        own = tuple(glob.removeprefix(prefix) for glob in self._deny if glob.startswith(prefix))
        return denies_uri(uri, self._deny + own)

    def _may_show_page(self, uri: str, server: str, principal: Principal) -> bool:
        """Whether the caller may use a tool whose results the page shows."""
        all_specs = self._toolbox.list_specs(principal)
        specs = (spec for spec in all_specs if spec.server == server and principal.can_use_tool(spec))
        return any(get_ui_resource((spec.definition or {}).get("_meta")) == uri for spec in specs)

    def _may_use_reader(self, kind: ItemKind, server: str, principal: Principal) -> bool:
        readers = READER_TOOLS[kind]
        specs = (spec for spec in self._toolbox.list_specs(principal) if spec.helper and spec.server == server)
        return any(spec.tool in readers and principal.can_use_tool(spec) for spec in specs)

    async def _find_prompt_server(self, name: str, principal: Principal, server: str | None) -> str:
        for prompt in await self.list_server_items("prompts", principal):
            if prompt["name"] == name and server in (None, prompt["server"]):
                return prompt["server"]
        raise NotFound(f"There is no prompt {name[:200]!r}.", param="name")

    async def _find_template_server(self, uri: str, principal: Principal, server: str | None) -> str:
        for template in await self.list_server_items("resource_templates", principal):
            if template["uriTemplate"] == uri and server in (None, template["server"]):
                return template["server"]
        raise NotFound(f"There is no resource template {uri[:200]!r}.", param="ref")


def _denied_result(spec: ToolSpec) -> ToolResult:
    return ToolResult("denied", [text_block(f"The tool {spec.name!r} is not allowed here.")])

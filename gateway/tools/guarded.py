"""The toolbox as a caller may use it: whoever calls, and by whatever route, within their allow lists."""

from collections.abc import Sequence

from gateway.errors import NotFound
from gateway.messages import InputNeeded, JsonObject, KeptInput, Principal, ToolResult, ToolSpec, text_block
from gateway.tools.base import CallObserver, Listed, ServerStatus, SignIn, Toolbox
from gateway.tools.helpers import SIGN_IN, help_model
from gateway.tools.resources import fits


class GuardedToolbox:
    """See `Toolbox`. The last door before the MCP servers: what it refuses, no route has to."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    def specs(self) -> tuple[ToolSpec, ...]:
        return self._toolbox.specs()

    def find(self, name: str) -> ToolSpec | None:
        return self._toolbox.find(name)

    def instructions(self) -> str:
        return self._toolbox.instructions()

    async def call(
        self,
        spec: ToolSpec,
        arguments: JsonObject,
        *,
        principal: Principal,
        observer: CallObserver | None = None,
        answers: Sequence[KeptInput] = (),
    ) -> ToolResult | InputNeeded:
        """See `Toolbox.call`."""
        if not principal.may_use(spec):
            return ToolResult("denied", [text_block(f"The tool {spec.name!r} is not allowed here.")])
        if spec.helper and spec.tool != SIGN_IN:
            return await help_model(self, spec, arguments, principal)
        return await self._toolbox.call(spec, arguments, principal=principal, observer=observer, answers=answers)

    async def listed(self, kind: Listed, principal: Principal) -> list[JsonObject]:
        items = await self._toolbox.listed(kind, principal)
        return [item for item in items if principal.may_reach(item["server"])]

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        if principal.servers is not None:
            server = server or await self._server_of(uri, principal)
            if not principal.may_reach(server):
                raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        return await self._toolbox.read_resource(uri, principal, server)

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        await self._demand_prompt(name, principal)
        return await self._toolbox.get_prompt(name, arguments, principal)

    async def complete(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        if ref.get("type") == "ref/prompt":
            await self._demand_prompt(str(ref.get("name")), principal)
        elif principal.servers is not None:
            templates = await self.listed("resource_templates", principal)
            if all(template["uriTemplate"] != ref.get("uri") for template in templates):
                raise NotFound(f"There is no resource template {str(ref.get('uri'))[:200]!r}.", param="ref")
        return await self._toolbox.complete(ref, argument, principal)

    def servers(self) -> list[ServerStatus]:
        return self._toolbox.servers()

    def changed(self) -> frozenset[tuple[str, str]]:
        return self._toolbox.changed()

    def recheck(self, server: str) -> None:
        self._toolbox.recheck(server)

    @property
    def sign_in(self) -> SignIn:
        return self._toolbox.sign_in

    def forwarded_headers(self) -> frozenset[str]:
        return self._toolbox.forwarded_headers()

    async def _demand_prompt(self, name: str, principal: Principal) -> None:
        if principal.servers is not None:
            prompts = await self.listed("prompts", principal)
            if all(prompt["name"] != name for prompt in prompts):
                raise NotFound(f"There is no prompt {name[:200]!r}.", param="name")

    async def _server_of(self, uri: str, principal: Principal) -> str:
        for item in await self.listed("resources", principal):
            if item["uri"] == uri:
                return item["server"]
        for item in await self.listed("resource_templates", principal):
            if fits(uri, item["uriTemplate"]):
                return item["server"]
        raise NotFound(f"No connected server has the resource {uri[:200]!r}.", param="uri")

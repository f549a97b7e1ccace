"""A toolbox that delegates to another: base of the policy wrappers."""

from collections.abc import Callable, Collection
from inspect import isfunction

from gateway.domain.hosts import HostProfile
from gateway.domain.messages import JsonObject, PendingInput, Principal, ToolResult, ToolSpec
from gateway.ports.tools import HostExchange, ItemKind, ResourceWatch, ServerStatus, SignIn, Toolbox, ToolCallRequest


class ToolboxWrapper(Toolbox):
    """Delegates to `toolbox`. Subclasses override the methods that their duty concerns.

    A method that several wrappers delegate costs one call, not one for each of them.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        for name, method in _DELEGATED.items():
            if getattr(type(self), name) is method:
                setattr(self, name, getattr(toolbox, name))

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        return self._toolbox.list_specs(principal)

    async def connect_user(self, principal: Principal) -> None:
        await self._toolbox.connect_user(principal)

    def explain_absence(self, server: str, principal: Principal) -> str:
        return self._toolbox.explain_absence(server, principal)

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        return self._toolbox.find_tool(name, principal)

    def list_missing_tools(self, principal: Principal) -> tuple[str, ...]:
        return self._toolbox.list_missing_tools(principal)

    def get_instructions(self, servers: Collection[str]) -> str:
        return self._toolbox.get_instructions(servers)

    def list_instructions(self) -> list[tuple[str, str]]:
        return self._toolbox.list_instructions()

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        return await self._toolbox.call_tool(request)

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        return await self._toolbox.list_server_items(kind, principal)

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        return await self._toolbox.read_resource(uri, principal, server, exchange)

    async def watch_resource(
        self,
        uri: str,
        principal: Principal,
        on_update: Callable[[str], None],
        server: str | None = None,
        host: HostProfile | None = None,
    ) -> ResourceWatch:
        return await self._toolbox.watch_resource(uri, principal, on_update, server, host)

    def announces_updates(self, principal: Principal) -> bool:
        return self._toolbox.announces_updates(principal)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        return await self._toolbox.get_prompt(name, arguments, principal, server, exchange)

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        return await self._toolbox.complete_argument(ref, argument, principal, server, context)

    def list_server_statuses(self) -> list[ServerStatus]:
        return self._toolbox.list_server_statuses()

    async def announce_roots_change(self, host_session: str) -> None:
        await self._toolbox.announce_roots_change(host_session)

    def close_host(self, host_session: str) -> None:
        self._toolbox.close_host(host_session)

    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        return self._toolbox.list_changed_tools()

    def recheck_server(self, server: str) -> None:
        self._toolbox.recheck_server(server)

    @property
    def sign_in(self) -> SignIn:
        return self._toolbox.sign_in

    def get_forwarded_headers(self) -> frozenset[str]:
        return self._toolbox.get_forwarded_headers()


_DELEGATED = {name: method for name, method in vars(ToolboxWrapper).items() if isfunction(method) and name[0] != "_"}

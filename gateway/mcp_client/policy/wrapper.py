"""A toolbox that delegates to another: base of the policy wrappers."""

from collections.abc import Sequence

from gateway.domain.messages import JsonObject, PendingInput, Principal, StoredQuestion, ToolResult, ToolSpec
from gateway.ports.tools import CallObserver, Listed, ServerStatus, SignIn, Toolbox


class ToolboxWrapper(Toolbox):
    """Delegates to `toolbox`. Subclasses override the methods that their duty concerns."""

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
        answers: Sequence[StoredQuestion] = (),
    ) -> ToolResult | PendingInput:
        return await self._toolbox.call(spec, arguments, principal=principal, observer=observer, answers=answers)

    async def listed(self, kind: Listed, principal: Principal) -> list[JsonObject]:
        return await self._toolbox.listed(kind, principal)

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        return await self._toolbox.read_resource(uri, principal, server)

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        return await self._toolbox.get_prompt(name, arguments, principal)

    async def complete(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
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

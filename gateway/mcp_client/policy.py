"""The toolbox as a caller may use it, whoever calls and by whatever route.

Within the caller's allow lists, without what is denied to all; what goes in is redacted, what comes out is cleaned.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from gateway.common.json_schema import MOST_DEPTH, too_deep
from gateway.common.redaction import Redactor
from gateway.domain.errors import McpFailed, NotFound
from gateway.domain.messages import (
    Answer,
    InputNeeded,
    JsonObject,
    KeptInput,
    Principal,
    Question,
    ToolResult,
    ToolSpec,
    text_block,
)
from gateway.mcp_client.builtin_tools import SIGN_IN, help_model
from gateway.mcp_client.connection import CallFailed
from gateway.mcp_client.resources import fits
from gateway.mcp_client.sanitize import clean, clean_value
from gateway.ports.tools import CallObserver, Listed, ServerStatus, SignIn, Toolbox

_UNKNOWN = (-32002, -32602)  # how servers of the one and the other era say that they have no such resource


class GuardedToolbox:
    """See `Toolbox`. The last door before the MCP servers: what it refuses, no route has to.

    `deny`: globs over tools, by the names that they have here or as `server/tool`; they win over whatever allows one.
    """

    def __init__(self, toolbox: Toolbox, *, deny: tuple[str, ...] = (), redactor: Redactor | None = None) -> None:
        self._toolbox = toolbox
        self._deny = deny
        self._redactor = redactor or Redactor()
        self._all: tuple[ToolSpec, ...] = ()
        self._left: tuple[ToolSpec, ...] = ()

    def specs(self) -> tuple[ToolSpec, ...]:
        if not self._deny:
            return self._toolbox.specs()
        specs = self._toolbox.specs()
        if specs is not self._all:
            self._all, self._left = specs, tuple(spec for spec in specs if not self._denies(spec))
        return self._left

    def find(self, name: str) -> ToolSpec | None:
        spec = self._toolbox.find(name)
        return None if spec is None or self._denies(spec) else spec

    def _denies(self, spec: ToolSpec) -> bool:
        names = (spec.name, f"{spec.server}/{spec.tool}")
        return any(fnmatchcase(name, glob) for glob in self._deny for name in names)

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
        if self._denies(spec) or not principal.may_use(spec):
            return ToolResult("denied", [text_block(f"The tool {spec.name!r} is not allowed here.")])
        if too_deep(arguments):
            told = f"The arguments are nested more than {MOST_DEPTH} deep: make them flatter."
            return ToolResult("error", [text_block(told)])
        arguments = self._redactor.value(arguments)
        answers = [
            msgspec.structs.replace(kept, answer=kept.answer and _redacted(kept.answer, self._redactor))
            for kept in answers
        ]
        observer = observer and _Cleaned(observer, self._redactor)
        if spec.helper and spec.tool != SIGN_IN:
            result = await help_model(self, spec, arguments, principal)
        else:
            result = await self._toolbox.call(spec, arguments, principal=principal, observer=observer, answers=answers)
        if isinstance(result, InputNeeded):
            return InputNeeded(tuple(_asked(question) for question in result.questions), result.state)
        content, structured = clean_value(result.content), clean_value(result.structured)
        return msgspec.structs.replace(result, content=content, structured=structured)

    async def listed(self, kind: Listed, principal: Principal) -> list[JsonObject]:
        items = await self._toolbox.listed(kind, principal)
        return [item for item in items if principal.may_reach(item["server"])]

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        if principal.servers is not None:
            server = server or await self._server_of(uri, principal)
            if not principal.may_reach(server):
                raise NotFound(f"There is no MCP server {server[:100]!r}.", param="server")
        try:
            return clean_value(await self._toolbox.read_resource(uri, principal, server))
        except McpFailed as error:
            cause = error.__cause__
            if isinstance(cause, CallFailed) and cause.refusal is not None and cause.refusal["code"] in _UNKNOWN:
                raise NotFound(f"No such resource: {uri[:200]!r}.", param="uri") from None
            raise McpFailed(clean(error.message)) from None

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        await self._demand_prompt(name, principal)
        return clean_value(await self._toolbox.get_prompt(name, self._redactor.value(arguments), principal))

    async def complete(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        if ref.get("type") == "ref/prompt":
            await self._demand_prompt(str(ref.get("name")), principal)
        elif principal.servers is not None:
            templates = await self.listed("resource_templates", principal)
            if all(template["uriTemplate"] != ref.get("uri") for template in templates):
                raise NotFound(f"There is no resource template {str(ref.get('uri'))[:200]!r}.", param="ref")
        return await self._toolbox.complete(ref, self._redactor.value(argument), principal)

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


class _Cleaned:
    """An observer that hears no more than can be seen."""

    def __init__(self, observer: CallObserver, redactor: Redactor) -> None:
        self._observer = observer
        self._redactor = redactor

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._observer.progress(progress, total, message and clean(message))

    def log(self, level: str, message: str) -> None:
        self._observer.log(level, clean(message))

    async def ask(self, question: Question) -> Answer:
        return _redacted(await self._observer.ask(_asked(question)), self._redactor)


def _redacted(answer: Answer, redactor: Redactor) -> Answer:
    return msgspec.structs.replace(answer, content=redactor.value(answer.content))


def _asked(question: Question) -> Question:
    return msgspec.structs.replace(question, message=clean(question.message), schema=clean_value(question.schema))

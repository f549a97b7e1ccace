"""What the agent loop and the API ask of the connected MCP servers."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from gateway.messages import Answer, InputNeeded, JsonObject, KeptInput, Principal, Question, ToolResult, ToolSpec

Listed = Literal["resources", "resource_templates", "prompts"]


class ServerStatus(msgspec.Struct, frozen=True):
    """How one MCP server stands. `state`: connecting, up, degraded, needs_auth, down, disabled; `since`: ISO 8601."""

    name: str
    url: str | None
    transport: str
    state: str
    since: str
    reason: str | None = None
    tools: int = 0
    protocol_version: str | None = None


class Definitions(Protocol):
    """Remembers how tools were defined when they were first seen: their descriptions are untrusted input."""

    async def compare(self, server: str, definitions: Mapping[str, JsonObject]) -> set[str]:
        """The tools whose definition is another than it was; new ones are remembered.

        Raises:
            StorageUnavailable: nobody can tell now.
        """
        ...


class CallObserver(Protocol):
    """Hears what a server says while a call runs, and answers what it asks in the middle of it."""

    def progress(self, progress: float, total: float | None, message: str | None) -> None: ...
    def log(self, level: str, message: str) -> None: ...

    async def ask(self, question: Question) -> Answer:
        """A person's answer, however long it takes."""
        ...


class Toolbox(Protocol):
    """The tools of all connected MCP servers under one set of names."""

    def specs(self) -> tuple[ToolSpec, ...]:
        """Every tool on offer now, in a stable order."""
        ...

    def find(self, name: str) -> ToolSpec | None: ...

    def instructions(self) -> str:
        """What the connected servers want a model to know about them; empty if nothing."""
        ...

    async def call(
        self,
        spec: ToolSpec,
        arguments: JsonObject,
        *,
        principal: Principal,
        observer: CallObserver | None = None,
        answers: Sequence[KeptInput] = (),
    ) -> ToolResult | InputNeeded:
        """Run a tool for `principal`. Never raises for what goes wrong with the call: the result says it.

        `answers` are those to what this very call has asked before; it may ask again.
        """
        ...

    async def listed(self, kind: Listed, principal: Principal) -> list[JsonObject]:
        """What all servers have of a kind, as MCP describes it, each with its `server`; prompts under exposed names."""
        ...

    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        """A resource's contents as MCP gives them; without `server`, of whichever has it.

        Raises:
            NotFound: no connected server has it.
            McpFailed: the server did not answer as it should.
        """
        ...

    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        """A prompt's messages as MCP gives them. Raises as `read_resource` does."""
        ...

    async def complete(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        """Completions for an argument of a prompt or resource template. Raises as `read_resource` does."""
        ...

    def servers(self) -> list[ServerStatus]: ...

    def changed(self) -> frozenset[tuple[str, str]]:
        """Server and name of each tool whose definition is not the one first seen."""
        ...

    def recheck(self, server: str) -> None:
        """Compare a server's tools again: one may have been approved."""
        ...

    def forwarded_headers(self) -> frozenset[str]:
        """The headers of clients' requests that some server wants passed on."""
        ...

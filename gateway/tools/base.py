"""What the agent loop and the API ask of the connected MCP servers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.messages import Answer, InputNeeded, JsonObject, KeptInput, Principal, Question, ToolResult, ToolSpec


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

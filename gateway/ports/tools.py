"""What the agent loop and the API ask of the connected MCP servers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

from gateway.domain.messages import (
    Answer,
    AuthorizationRequest,
    Grant,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolResult,
    ToolSpec,
)

ItemKind = Literal["resources", "resource_templates", "prompts"]


class ServerStatus(msgspec.Struct, frozen=True):
    """How one MCP server stands. `state`: connecting, up, degraded, needs_auth, down, disabled; `since`: ISO 8601;
    `url` without what may be secret in it."""

    name: str
    url: str | None
    transport: str
    state: str
    since: str
    reason: str | None = None
    tools: int = 0
    protocol_version: str | None = None


class ToolDefinitionStore(Protocol):
    """Remembers how tools were defined when they were first seen: their descriptions are untrusted input."""

    @abstractmethod
    async def detect_changes(self, server: str, definitions: Mapping[str, JsonObject]) -> set[str]:
        """The tools whose definition is another than it was; new ones are remembered.

        Raises:
            StorageUnavailable: nobody can tell now.
        """
        ...


class GrantTransaction(Protocol):
    """A grant that nobody else changes meanwhile; what `grant` is at the end of the block is kept (None: nothing)."""

    grant: Grant | None


class GrantStore(Protocol):
    """Keeps grants, sealed, and the sign-ins under way. Everything raises `StorageUnavailable`."""

    @abstractmethod
    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        """The grant for a server at this very address."""
        ...

    @abstractmethod
    def begin_transaction(self, server: str, owner: str, url: str) -> AbstractAsyncContextManager[GrantTransaction]: ...

    @abstractmethod
    async def delete_grant(self, server: str, owner: str, url: str, *, by: str) -> None:
        """Drop a grant, if there is one, as `by` wants."""
        ...

    @abstractmethod
    async def save_request(self, ticket: str, login: AuthorizationRequest) -> None: ...

    @abstractmethod
    async def find_request(self, ticket: str) -> AuthorizationRequest | None:
        """The sign-in that a ticket is for, while it is good."""
        ...

    @abstractmethod
    async def expect_callback(self, ticket: str, state: str) -> None:
        """From now on `state` is what the authorization server's answer for this sign-in brings back."""
        ...

    @abstractmethod
    async def save_callback(self, ticket: str, state: str, answer: JsonObject) -> bool:
        """Keep the authorization server's answer, once. False: nobody waits for it."""
        ...

    @abstractmethod
    async def get_callback(self, ticket: str, state: str) -> JsonObject | None:
        """The answer, once it has come.

        Raises:
            NotFound: nothing waits for that `state` any more, because the sign-in was begun again or is over.
        """
        ...

    @abstractmethod
    async def save_outcome(self, ticket: str, outcome: str) -> None:
        """The sign-in is over: "" is success, else what went wrong."""
        ...

    @abstractmethod
    async def get_outcome(self, ticket: str) -> str | None:
        """How it ended; None: it has not."""
        ...


class SignIn(Protocol):
    """What the pages of a sign-in need."""

    @abstractmethod
    def get_client_metadata(self) -> JsonObject:
        """Who the gateway is, for authorization servers that read that at its address (client id metadata)."""
        ...

    @abstractmethod
    async def create_sign_in_url(self, server: str, principal: Principal) -> str:
        """The address of a page that signs `principal` in to a server.

        Raises:
            NotFound: there is no such server.
            Forbidden: only admins may, as its connection is everybody's.
            Conflict: it is not protected by OAuth.
        """
        ...

    @abstractmethod
    async def sign_out(self, server: str, principal: Principal) -> None:
        """Sign out: drop what was granted. Raises as `create_sign_in_url` does."""
        ...

    @abstractmethod
    async def get_request(self, ticket: str) -> AuthorizationRequest:
        """Raises:
        NotFound: the ticket is not good, or not any more.
        """
        ...

    @abstractmethod
    async def begin_sign_in(self, ticket: str) -> str:
        """The authorization server's page to go to.

        Raises:
            NotFound: the ticket is not good, or not any more.
            McpFailed: the server or its authorization server does not do as the protocol says.
        """
        ...

    @abstractmethod
    async def finish_sign_in(self, ticket: str, answer: JsonObject) -> None:
        """Take the authorization server's answer (`state`, `code`, `iss`, `error`) and wait for the grant.

        Raises:
            NotFound: nobody waits for this answer.
            McpFailed: there is no grant.
        """
        ...


class CallObserver(Protocol):
    """Hears what a server says while a call runs, and answers what it asks in the middle of it."""

    @abstractmethod
    def on_progress(self, progress: float, total: float | None, message: str | None) -> None: ...
    @abstractmethod
    def on_log(self, level: str, message: str) -> None: ...

    @abstractmethod
    async def ask_user(self, question: Question) -> Answer:
        """A person's answer, however long it takes."""
        ...


class Toolbox(Protocol):
    """The tools of all connected MCP servers under one set of names."""

    @abstractmethod
    def list_specs(self) -> tuple[ToolSpec, ...]:
        """Every tool on offer now, in a stable order."""
        ...

    @abstractmethod
    def find_tool(self, name: str) -> ToolSpec | None:
        """The tool of this name; also one that is off offer because its call has done what it was for."""
        ...

    @abstractmethod
    def get_instructions(self) -> str:
        """What the connected servers want a model to know about them; empty if nothing."""
        ...

    @abstractmethod
    async def call_tool(
        self,
        spec: ToolSpec,
        arguments: JsonObject,
        *,
        principal: Principal,
        observer: CallObserver | None = None,
        answers: Sequence[StoredQuestion] = (),
    ) -> ToolResult | PendingInput:
        """Run a tool for `principal`. Never raises for what goes wrong with the call: the result says it.

        `answers` are those to what this very call has asked before; it may ask again.
        """
        ...

    @abstractmethod
    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        """What all servers have of a kind, as MCP describes it, each with its `server`; prompts under exposed names."""
        ...

    @abstractmethod
    async def read_resource(self, uri: str, principal: Principal, server: str | None = None) -> JsonObject:
        """A resource's contents as MCP gives them; without `server`, of whichever has it.

        Raises:
            NotFound: no connected server has it.
            McpFailed: the server did not answer as it should.
        """
        ...

    @abstractmethod
    async def get_prompt(self, name: str, arguments: dict[str, str], principal: Principal) -> JsonObject:
        """A prompt's messages as MCP gives them. Raises as `read_resource` does."""
        ...

    @abstractmethod
    async def complete_argument(self, ref: JsonObject, argument: JsonObject, principal: Principal) -> JsonObject:
        """Completions for an argument of a prompt or resource template. Raises as `read_resource` does."""
        ...

    @abstractmethod
    def list_server_statuses(self) -> list[ServerStatus]: ...

    @abstractmethod
    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        """Server and name of each tool whose definition is not the one first seen."""
        ...

    @abstractmethod
    def recheck_server(self, server: str) -> None:
        """Compare a server's tools again: one may have been approved."""
        ...

    @property
    @abstractmethod
    def sign_in(self) -> SignIn: ...

    @abstractmethod
    def get_forwarded_headers(self) -> frozenset[str]:
        """The headers of clients' requests that some server wants passed on."""
        ...

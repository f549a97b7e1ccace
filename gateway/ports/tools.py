"""Tools, resources, prompts and sign-in of the connected MCP servers."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol
from uuid import UUID, uuid4, uuid5

import msgspec

from gateway.domain.grants import Grant
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import (
    Answer,
    AuthorizationRequest,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolResult,
    ToolSpec,
)
from gateway.ports.start_check import StartCheck, allow_start

MAX_OBSERVED_MESSAGES = 500
"""Maximum number of progress and log messages that one call keeps."""
MAX_OBSERVED_MESSAGE_LENGTH = 2_000

ItemKind = Literal["resources", "resource_templates", "prompts"]
ITEM_NAME_FIELDS: dict[ItemKind, str] = {"resources": "uri", "resource_templates": "uriTemplate", "prompts": "name"}
"""Field that names an item, which allow and deny lists match."""


DefinitionKind = Literal["tool", "resource", "resource_template", "prompt", "server"]


class DefinitionProblem(msgspec.Struct, frozen=True):
    """Odd definition of a server, which is repaired or `left_out`.

    `name` is that of the tool or prompt, or the URI of the resource; empty for a list as a whole.
    """

    kind: DefinitionKind
    name: str
    problem: str
    left_out: bool


class ServerStatus(msgspec.Struct, frozen=True):
    """State of an MCP server.

    `since` is ISO 8601; `url` has no secrets. `state`: connecting, up, degraded, needs_auth, down, disabled.
    `last_output`: the last lines of standard error of a command that is unavailable, for admins only.
    """

    name: str
    url: str | None
    transport: str
    state: str
    since: str
    reason: str | None = None
    tools: int = 0
    protocol_version: str | None = None
    last_output: tuple[str, ...] = ()
    definition_problems: tuple[DefinitionProblem, ...] = ()


INSTRUCTIONS = ""
"""Name of a server's instructions among the definitions of its tools."""


class ToolDefinitionStore(Protocol):
    """Stores the first seen definitions of tools and instructions.

    They are untrusted input.
    """

    @abstractmethod
    async def detect_changes(self, server: str, definitions: Mapping[str, JsonObject], *, hold_new: bool) -> set[str]:
        """Return the tools whose definition differs from the approved one.

        Store new tools. With `hold_new`, a new tool of a known server is not approved, so it counts as changed.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        ...


class GrantTransaction(Protocol):
    """A locked grant.

    The end of the block stores the value of `grant`; None deletes it.
    """

    grant: Grant | None


class RefreshClaim(msgspec.Struct, frozen=True):
    """The right of one worker to refresh a stored grant.

    `version` is the stored form of `grant`, which a sign-in or sign-out changes.
    """

    grant: Grant | None
    version: bytes


class GrantStore(Protocol):
    """Stores encrypted grants and the sign-ins in progress.

    Every method may raise StorageUnavailable.
    """

    @abstractmethod
    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        """Return the grant for a server at exactly this address."""
        ...

    @abstractmethod
    def begin_transaction(self, server: str, owner: str, url: str) -> AbstractAsyncContextManager[GrantTransaction]:
        """Change a grant.

        The block must wait for nothing but the database.
        """
        ...

    @abstractmethod
    async def claim_refresh(self, server: str, owner: str, url: str, *, seconds: float) -> RefreshClaim | None:
        """Exclude other workers from refreshing a grant for some seconds.

        None: another worker refreshes it.
        """
        ...

    @abstractmethod
    async def save_refreshed(
        self, server: str, owner: str, url: str, claim: RefreshClaim, grant: Grant | None
    ) -> Grant | None:
        """Store a refreshed grant, end its claim, and return the stored grant.

        A grant that a sign-in or sign-out has changed meanwhile stays as it is.
        """
        ...

    @abstractmethod
    async def save_challenge(self, server: str, owner: str, url: str, challenge: str) -> None:
        """Store the `WWW-Authenticate` header of an answer that asks for further scopes.

        A changed grant forgets it.
        """
        ...

    @abstractmethod
    async def get_challenge(self, server: str, owner: str, url: str) -> str | None: ...

    @abstractmethod
    async def delete_grant(self, server: str, owner: str, url: str, *, by: str) -> None:
        """Delete a grant, if it exists, on behalf of `by`."""
        ...

    @abstractmethod
    async def save_request(self, ticket: str, request: AuthorizationRequest) -> None: ...

    @abstractmethod
    async def find_request(self, ticket: str) -> AuthorizationRequest | None:
        """Return the sign-in of a ticket that is still valid."""
        ...

    @abstractmethod
    async def expect_callback(self, ticket: str, state: str) -> None:
        """Set the `state` that the answer must contain.

        The authorization server answers this sign-in.
        """
        ...

    @abstractmethod
    async def save_callback(self, ticket: str, state: str, answer: JsonObject) -> bool:
        """Store the authorization server's answer once. False: no sign-in waits for it."""
        ...

    @abstractmethod
    async def get_callback(self, ticket: str, state: str) -> JsonObject | None:
        """Return the answer, if it has arrived.

        Raises:
            NotFound: the sign-in was restarted or has ended, so `state` is no longer valid.
        """
        ...

    @abstractmethod
    async def save_outcome(self, ticket: str, outcome: str) -> None:
        """End a sign-in.

        The outcome "" is success, else it is the problem.
        """
        ...

    @abstractmethod
    async def get_outcome(self, ticket: str) -> str | None:
        """Return the outcome of a sign-in; None if it is in progress."""
        ...


class SignIn(Protocol):
    """Signs users in to protected MCP servers."""

    @abstractmethod
    def get_client_metadata(self) -> JsonObject:
        """Return the gateway's OAuth client metadata.

        Authorization servers read it at its address.
        """
        ...

    @abstractmethod
    async def create_sign_in_url(self, server: str, principal: Principal) -> str:
        """Create the address of a sign-in page for a server.

        The page signs `principal` in.

        Raises:
            NotFound: the server does not exist.
            Forbidden: only admins may sign in, because all users share the connection.
            Conflict: the server is not protected by OAuth.
        """
        ...

    @abstractmethod
    async def sign_out(self, server: str, principal: Principal) -> None:
        """Sign out: delete the grant. Raises the errors of `create_sign_in_url`."""
        ...

    @abstractmethod
    async def get_request(self, ticket: str) -> AuthorizationRequest:
        """Raises:
        NotFound: the ticket is unknown or has expired.
        """
        ...

    @abstractmethod
    async def begin_sign_in(self, ticket: str) -> str:
        """Start the sign-in and return the address of the authorization server's page.

        Raises:
            NotFound: the ticket is unknown or has expired.
            McpServerError: the server or its authorization server violates the protocol.
        """
        ...

    @abstractmethod
    async def finish_sign_in(self, ticket: str, answer: JsonObject) -> None:
        """Process the authorization server's answer (`state`, `code`, `iss`, `error`).

        Wait for the grant.

        Raises:
            NotFound: no sign-in waits for this answer.
            McpServerError: the sign-in failed.
        """
        ...


class CallObserver(Protocol):
    """Receives progress, log messages and questions of a server during a call."""

    @abstractmethod
    def on_progress(self, progress: float, total: float | None, message: str | None) -> None: ...
    @abstractmethod
    def on_log(self, level: str, message: str) -> None: ...

    @abstractmethod
    async def ask_user(self, question: Question) -> Answer:
        """Ask a person, and wait for the answer without a time limit."""
        ...


IDEMPOTENCY_KEY_META = "mcp-agent-gateway/idempotency-key"
"""Name in a call's `_meta`.

Each repetition of the call has the same key, and no other call has it.
"""
MAX_IDEMPOTENCY_KEY_LENGTH = 200
IDEMPOTENT_META = "mcp-agent-gateway/idempotent"
"""Name in a tool's `_meta`; true: it takes effect once per key."""


_USER_KEYS = UUID("6b1f0c8e-2d0b-4c55-9d1e-5a1f7f6f0c3a")


def make_idempotency_key(turn_id: UUID, call_id: str, batched: int | None = None) -> str:
    """Derive the key of a turn's call, equal in every worker.

    `batched` is the call's number in a batch.
    """
    return str(uuid5(turn_id, call_id if batched is None else f"{call_id}\0{batched}"))


def make_user_idempotency_key(user: str, key: str) -> str:
    """Derive the key of a direct call from the user's key.

    Keys of different users differ, and `/mcp` and the HTTP API derive the same.
    """
    return str(uuid5(_USER_KEYS, f"{user}\0{key}"))


class ToolCallRequest(msgspec.Struct, frozen=True):
    """A call of a tool for `principal`.

    `answers` are the answers to earlier questions of this call, which may ask again. The server receives
    `idempotency_key`, by default a random one. The result is cut for a model, unless it `is_whole`, for a host. The
    server is told the capabilities of the `host` that the call comes from; without one, those of the gateway.
    `require_lease` runs right before each request to the server.
    """

    spec: ToolSpec
    arguments: JsonObject
    principal: Principal
    observer: CallObserver | None = None
    answers: Sequence[StoredQuestion] = ()
    idempotency_key: str = msgspec.field(default_factory=lambda: str(uuid4()))
    is_whole: bool = False
    host: HostProfile | None = None
    require_lease: StartCheck = allow_start


class HostExchange(msgspec.Struct, frozen=True):
    """A request of an MCP host that is not a call.

    The server may ask the host; `answers` are those to earlier questions of this request.
    """

    host: HostProfile
    answers: Sequence[StoredQuestion] = ()


class InputNeeded(Exception):
    """A server asks for `pending` input before it answers a `HostExchange`."""

    def __init__(self, pending: PendingInput) -> None:
        super().__init__("the server asks for input")
        self.pending = pending


class Toolbox(Protocol):
    """The tools of all connected MCP servers under one set of names."""

    @abstractmethod
    def list_specs(self) -> tuple[ToolSpec, ...]:
        """List the tools on offer, in a stable order."""
        ...

    @abstractmethod
    def find_tool(self, name: str) -> ToolSpec | None:
        """Return the tool of this name.

        Includes sign-in tools that a sign-in has removed from the offer.
        """
        ...

    @abstractmethod
    def get_instructions(self, servers: Collection[str]) -> str:
        """Return these servers' instructions for the model; may be empty."""
        ...

    @abstractmethod
    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        """Run a tool. A failure is a result, not an exception."""
        ...

    @abstractmethod
    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        """List items of all servers in MCP's format, with `server`.

        Prompts have their exposed names.
        """
        ...

    @abstractmethod
    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        """Read a resource in MCP's format.

        Without `server`, from the first server that lists it. Without an `exchange`, questions are declined.

        Raises:
            NotFound: no connected server has the resource.
            McpServerError: the server failed or sent an invalid response.
            InputNeeded: the server asks the host of the `exchange` first.
        """
        ...

    @abstractmethod
    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        """Return a prompt's messages in MCP's format.

        Without `server`, from the first server that lists it. Raises the errors of `read_resource`.
        """
        ...

    @abstractmethod
    async def complete_argument(
        self, ref: JsonObject, argument: JsonObject, principal: Principal, server: str | None = None
    ) -> JsonObject:
        """Complete an argument of a prompt or resource template.

        Raises the errors of `read_resource`.
        """
        ...

    @abstractmethod
    def list_server_statuses(self) -> list[ServerStatus]: ...

    @abstractmethod
    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        """Return server and name of each changed tool.

        The definition of a changed tool differs from the approved one.
        """
        ...

    @abstractmethod
    def recheck_server(self, server: str) -> None:
        """Compare a server's tools with the approved definitions again."""
        ...

    @property
    @abstractmethod
    def sign_in(self) -> SignIn: ...

    @abstractmethod
    def get_forwarded_headers(self) -> frozenset[str]:
        """Return the request headers of clients that any server wants forwarded."""
        ...

"""Tools, resources, prompts and sign-in of the connected MCP servers."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol
from uuid import UUID, uuid4, uuid5

import msgspec

from gateway.domain.errors import NotFound, ToolsetNotFound
from gateway.domain.grants import AuthorizationRequest
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import (
    Answer,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolResult,
    ToolSpec,
)
from gateway.domain.server_tasks import ServerTask
from gateway.ports.start_check import StartCheck, allow_start

MAX_OBSERVED_MESSAGES = 500
"""Maximum number of progress and log messages that one call keeps."""
MAX_OBSERVED_MESSAGE_LENGTH = 2_000

ItemKind = Literal["resources", "resource_templates", "prompts"]
ITEM_NAME_FIELDS: dict[ItemKind, str] = {"resources": "uri", "resource_templates": "uriTemplate", "prompts": "name"}
"""Field that names an item, which allow and deny lists match."""


ChangeKind = Literal["tools", "resources", "prompts"]
"""Lists that hosts are told to read again; templates belong to resources."""
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
    async def list_signed_in(self, servers: Collection[str], principal: Principal) -> set[str]:
        """Return those of the servers for which there is a grant.

        It is the principal's, or the one that all users share.
        """
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
    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        """Receive a log message.

        `data` is any JSON value, `logger` the server's name for its source.
        """
        ...

    @abstractmethod
    async def ask_user(self, question: Question) -> Answer:
        """Ask a person, and wait for the answer without a time limit."""
        ...

    def on_visit_ended(self, elicitation_id: str) -> None:
        """Receive the end of a visit, maybe after the call.

        See `Question.elicitation_id`. By default nothing happens: a person reports the end with the answer.
        """


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
    `require_lease` runs right before each request to the server. `meta` is a host's `_meta` for the server,
    and `log_level` the lowest level of the log messages that the host wants; None: the server chooses. A call that
    `is_in_turn` may have the server's requests for sampling and roots as questions. One that
    `can_wait` may return a task to wait for, and is made again with that `task` when it is settled.
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
    meta: JsonObject = msgspec.field(default_factory=dict[str, Any])
    log_level: str | None = None
    is_in_turn: bool = False
    can_wait: bool = False
    task: ServerTask | None = None


class HostExchange(msgspec.Struct, frozen=True):
    """A request of an MCP host that is not a call.

    The server may ask the host; `answers` are those to earlier questions of this request. `meta` is the host's `_meta`
    for the server.
    """

    host: HostProfile
    answers: Sequence[StoredQuestion] = ()
    meta: JsonObject = msgspec.field(default_factory=dict[str, Any])


class InputNeeded(Exception):
    """A server asks for `pending` input before it answers a `HostExchange`."""

    def __init__(self, pending: PendingInput) -> None:
        super().__init__("the server asks for input")
        self.pending = pending


class ResourceWatch(Protocol):
    """A subscription to the updates of one resource."""

    @abstractmethod
    def close(self) -> None:
        """End it now. The server is told in the background."""
        ...


class Toolbox(Protocol):
    """The tools of all connected MCP servers under one set of names."""

    @abstractmethod
    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        """List the tools on offer, in a stable order.

        Servers with a connection per user offer a user that user's tools only; without a principal, those of all users.
        """
        ...

    async def connect_user(self, principal: Principal) -> None:
        """Ask the servers that take the user's own token for their tools.

        Returns when each has answered, or after a moment. Without such servers this does nothing.
        """

    def explain_absence(self, server: str, principal: Principal) -> str:
        """Return why a user cannot reach a server now.

        An empty text if the user can.
        """
        return ""

    @abstractmethod
    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        """Return the tool of this name that a principal is offered.

        See `list_specs`. Includes sign-in tools that a sign-in has removed from the offer.
        """
        ...

    def list_missing_tools(self, principal: Principal) -> tuple[str, ...]:
        """Return the entries of a principal's toolset without a tool.

        Raises:
            ToolsetNotFound: there is no such toolset.
        """
        if principal.toolset is not None:
            raise ToolsetNotFound(f"There is no toolset {principal.toolset[:100]!r}.", param="toolset")
        return ()

    @abstractmethod
    def get_instructions(self, servers: Collection[str]) -> str:
        """Return these servers' instructions for the model; may be empty."""
        ...

    @abstractmethod
    def list_instructions(self) -> list[tuple[str, str]]:
        """List the servers that have instructions, with the whole text, for hosts."""
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

    async def watch_resource(
        self,
        uri: str,
        principal: Principal,
        on_update: Callable[[str], None],
        server: str | None = None,
        host: HostProfile | None = None,
    ) -> ResourceWatch:
        """Call `on_update` with the URI of each announced update.

        This ends when the watch is closed. The URI is that of the resource, or of a part of it. Updates are paced, and
        equal ones joined; after a lost connection one is announced, because the server may have announced some
        meanwhile. The subscription belongs to the session that serves calls of the `host`.

        Raises:
            NotFound: no connected server has the resource, or its server announces no updates.
            McpServerError: the server refuses.
            RateLimited, Overloaded: too many resources are watched.
        """
        raise NotFound("The server of this resource does not announce updates.", param="uri")

    def announces_updates(self, principal: Principal) -> bool:
        """Return whether any server of a principal announces updates of resources."""
        return False

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
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        """Complete an argument of a prompt or resource template.

        `context` has the arguments that are known already. Raises the errors of `read_resource`.
        """
        ...

    async def announce_roots_change(self, host_session: str) -> None:
        """Tell servers that the roots of a host's legacy session have changed."""

    def close_host(self, host_session: str) -> None:
        """Close what serves a host's legacy session, which has ended."""

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

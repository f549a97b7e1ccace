"""Configuration of MCP servers, and its storage and administration."""

from abc import abstractmethod
from collections.abc import Callable, Hashable
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from gateway.domain.hosts import Root
from gateway.domain.messages import Approval, JsonObject
from gateway.domain.resource_globs import denies_uri, permits_uri

Sampling = Literal["off", "ask", "on"]


Scope = Annotated[str, Field(max_length=1_000, pattern=r"^[\x20-\x21\x23-\x5b\x5d-\x7e]*$")]
GrantType = Literal["authorization_code", "client_credentials", "jwt_bearer", "token_exchange", "identity_assertion"]
_CALLER_GRANTS = ("token_exchange", "identity_assertion")
"""Grants that turn a caller's own token into one for the server."""
_FIELDS_OF_GRANTS = {
    "assertion_file": ("jwt_bearer", "client_credentials"),
    "audience": _CALLER_GRANTS,
    "subject_token_type": _CALLER_GRANTS,
    "subject_issuer": _CALLER_GRANTS,
    "identity_provider": ("identity_assertion",),
}
_REQUIRED_FIELDS = {"assertion_file": "jwt_bearer", "identity_provider": "identity_assertion"}


class IssuerClient(BaseModel):
    """The gateway as a client of the authorization server `issuer`.

    It authenticates with a secret, or with assertions that the `private_key` (PEM) signs; without either it is a public
    client. `token_endpoint`: for issuers without metadata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_id: str = Field(min_length=1, max_length=500)
    client_secret: SecretStr | None = None
    token_endpoint_auth_method: Literal["client_secret_basic", "client_secret_post"] | None = None
    issuer: str | None = Field(default=None, min_length=1, max_length=2_000, pattern=r"^https?://[^\s]+$")
    token_endpoint: str | None = Field(default=None, max_length=2_000, pattern=r"^https?://[^\s]+$")
    private_key: SecretStr | None = None
    signing_algorithm: Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"] = "RS256"

    @model_validator(mode="after")
    def _validate_credentials(self) -> "IssuerClient":
        if self.client_secret is not None and self.private_key is not None:
            raise ValueError("takes a `client_secret` or a `private_key`, not both")
        return self


class IdentityProvider(IssuerClient):
    """The identity provider that gives assertions for the callers' tokens."""

    @model_validator(mode="after")
    def _validate_issuer(self) -> "IdentityProvider":
        if self.issuer is None and self.token_endpoint is None:
            raise ValueError("needs the `issuer` of the callers' tokens")
        return self


class OAuthClient(IssuerClient):
    """The gateway's client for a protected server, and how it gets tokens.

    `scope` is the scope to request. By `grant_type`: "authorization_code": users sign in; the client is for servers
    without dynamic registration. "client_credentials": the gateway gets tokens for itself. "jwt_bearer": the same, for
    the assertion of the workload in `assertion_file`. "token_exchange": the caller's own token is exchanged for one
    with the `audience` (None: for the server's address). "identity_assertion": the `identity_provider` gives an
    assertion for the caller's own token, and `issuer` a token for that. Only tokens of `subject_issuer` (None: of the
    first issuer that the gateway accepts) are sent there. All grants but the first send credentials to the issuer of
    the entry alone.
    """

    scope: Scope | None = None
    grant_type: GrantType = "authorization_code"
    assertion_file: str | None = Field(default=None, min_length=1, max_length=1_000)
    audience: str | None = Field(default=None, min_length=1, max_length=2_000)
    subject_token_type: Literal["access_token", "id_token", "jwt"] | None = None
    subject_issuer: str | None = Field(default=None, min_length=1, max_length=2_000)
    identity_provider: IdentityProvider | None = None

    @model_validator(mode="after")
    def _validate_grant(self) -> "OAuthClient":
        grant, credentials = self.grant_type, (self.client_secret, self.private_key, self.assertion_file)
        needs_issuer = grant == "client_credentials" or self.token_endpoint is None
        if grant != "authorization_code" and needs_issuer and self.issuer is None:
            raise ValueError(f"{grant} needs the `issuer` that the credentials are for")
        if grant == "client_credentials" and sum(value is not None for value in credentials) != 1:
            raise ValueError(f"{grant} needs a `client_secret`, a `private_key` or an `assertion_file`")
        for field, grants in _FIELDS_OF_GRANTS.items():
            if getattr(self, field) is not None and grant not in grants:
                raise ValueError(f"`{field}` is for {' and '.join(grants)}")
        for field, required_by in _REQUIRED_FIELDS.items():
            if getattr(self, field) is None and grant == required_by:
                raise ValueError(f"{grant} needs the field `{field}`")
        return self


class ServerConfig(BaseModel):
    """An entry of the file.

    `fault` is the reason why it cannot be used; its other fields do not count then. Either `url` (with `type` "sse" for
    legacy servers) or `command` with `args` and `env`. `prefix` starts the names of its tools (None: the server's
    name). `timeout`: seconds for one call. `identity` "gateway" sends a short-lived token that names the user, valid
    for `audience` (None: the server's own address); "header:NAME" forwards that header of the client's request. `share`
    "user" opens a connection for each user. `allow` and `deny`: globs over its own names of tools and prompts, and over
    URIs of resources. `approval`: the tools whose calls a person must approve. `on_change` "hold": withhold a tool
    whose definition changes until it is approved. `as_tools`: let the model list and read its resources or prompts.
    `idempotency`: its tools take effect once per idempotency key, so calls whose outcome is unknown are repeated. Users
    sign in by OAuth to a server that answers 401, with the client in `oauth` where clients cannot register themselves,
    unless the entry sets an `Authorization` header. `sampling`: whether the server may use the model of the turn that
    calls it, or must `ask` a person each time. `roots`: URIs of the directories that it is told to work in (None: those
    of the setting MCP_ROOTS). `tasks`: globs over its own names of the tools whose calls take long,
    so that hosts may run them as tasks.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    url: str = ""
    type: Literal["http", "streamable-http", "streamableHttp", "sse", "stdio"] | None = None
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] | None = Field(default=None, repr=False)
    cwd: str | None = Field(default=None, min_length=1)
    proxy: bool = True
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    prefix: str | None = Field(default=None, max_length=64)
    timeout: float | None = Field(default=None, gt=0)
    start_timeout: float | None = Field(default=None, gt=0)
    identity: str = Field(default="none", pattern=r"^(none|gateway|header:[A-Za-z0-9-]{1,64})$")
    audience: str | None = Field(default=None, min_length=1, max_length=2_000)
    protocol: Literal["auto", "legacy", "2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"] = "auto"
    share: Literal["all", "user"] = "all"
    on_change: Literal["flag", "hold"] = "flag"
    as_tools: tuple[Literal["resources", "prompts"], ...] = ()
    idempotency: bool = False
    sampling: Sampling = "off"
    roots: tuple[Root, ...] | None = None
    oauth: OAuthClient | None = None
    oauth_hosts: tuple[str, ...] = ()
    added_at_run_time: bool = False
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    approval: Approval = "never"
    disabled: bool = False
    fault: str | None = None

    @field_validator("url")
    @classmethod
    def _validate_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be the http:// or https:// address of a streamable HTTP server")
        try:
            _ = urlsplit(value).port
        except ValueError as error:
            raise ValueError(f"is not a valid address: {error}") from None
        return value

    @model_validator(mode="after")
    def _validate_exchange(self) -> "ServerConfig":
        if not self.exchanges_tokens:
            return self
        if self.share != "user":
            raise ValueError('a server whose tokens are those of users needs `"share": "user"`')
        if self.transport == "stdio" or self.identity != "none" or self._has_credentials:
            raise ValueError("a server whose tokens are those of users takes no command, `identity` or Authorization")
        return self

    @property
    def _has_credentials(self) -> bool:
        return any(name.lower() == "authorization" for name in self.headers)

    @property
    def transport(self) -> Literal["http", "sse", "stdio"]:
        """The transport that the entry asks for, or that its URL suggests."""
        if self.command:
            return "stdio"
        is_legacy_path = self.type is None and urlsplit(self.url).path.rstrip("/").endswith("/sse")
        return "sse" if self.type == "sse" or is_legacy_path else "http"

    @property
    def allows_sign_in(self) -> bool:
        """Whether users may sign in.

        The server must use HTTP, and the entry have no credentials of its own.
        """
        gets_tokens = self.gets_own_tokens or self.exchanges_tokens
        return self.transport != "stdio" and self.identity == "none" and not gets_tokens and not self._has_credentials

    @property
    def gets_own_tokens(self) -> bool:
        """Whether the gateway gets access tokens for itself."""
        return self.oauth is not None and self.oauth.grant_type in ("client_credentials", "jwt_bearer")

    @property
    def exchanges_tokens(self) -> bool:
        """Whether the callers' own tokens are exchanged for those of the server."""
        return self.oauth is not None and self.oauth.grant_type in _CALLER_GRANTS

    @property
    def token_audience(self) -> str:
        """Audience of the identity tokens for this server.

        No other server accepts them.
        """
        parts = urlsplit(self.url)
        return self.audience or f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def forwarded_header(self) -> str | None:
        """The header of a client's request that is forwarded to this server."""
        return self.identity.removeprefix("header:") if self.identity.startswith("header:") else None

    def permits_tool(self, tool: str) -> bool:
        """Whether the gateway may offer this tool, prompt or resource; `deny` wins."""
        return _matches_any(tool, self.allow) and not _matches_any(tool, self.deny)

    def runs_as_task(self, tool: str) -> bool:
        """Whether hosts may run calls of this tool as tasks."""
        return _matches_any(tool, self.tasks)

    def permits_resource(self, uri: str) -> bool:
        """Whether the gateway may offer a resource, however its URI is written."""
        return permits_uri(uri, self.allow) and not denies_uri(uri, self.deny)

    @property
    def permits_anything(self) -> bool:
        """Whether the entry permits any tool, prompt or resource."""
        return bool(self.allow) and "*" not in self.deny


def _matches_any(tool: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(tool, glob) for glob in globs)


class ServerRecord(msgspec.Struct, frozen=True):
    """A server that was added or switched at run time.

    `config` is None for one that the file configures.
    """

    name: str
    config: JsonObject | None
    disabled: bool

    def to_config(self) -> ServerConfig:
        """Return the configuration of a server that was added at run time."""
        return ServerConfig.model_validate({**(self.config or {}), "name": self.name, "added_at_run_time": True})


class ServerConfigSource(Protocol):
    """The servers that the operator configures."""

    @abstractmethod
    def load(self) -> list[ServerConfig]:
        """Read all of them; may block.

        Raises:
            ConfigError: the file cannot be read, or is not JSON.
        """
        ...

    @abstractmethod
    def get_version(self) -> Hashable | None:
        """A value that changes with the file; None without a file."""
        ...


class ServerRepository(Protocol):
    """Stores the servers that are added or switched at run time.

    Every method may raise StorageUnavailable.
    """

    @abstractmethod
    async def list_servers(self) -> list[ServerRecord]:
        """List the stored servers, in the order in which they were added."""
        ...

    @abstractmethod
    async def save_server(self, name: str, config: JsonObject | None, *, disabled: bool, by: str) -> None:
        """Add a server, or disable or enable one.

        `config` is None for a server of the file.
        """
        ...

    @abstractmethod
    async def change_server(
        self, name: str, change: Callable[[JsonObject], JsonObject], *, disabled: bool | None, by: str
    ) -> None:
        """Change a server, one worker at a time.

        `change` returns the new configuration for the stored one. `disabled`: None leaves that as it is.

        Raises:
            NotFound: there is no such server.
        """
        ...

    @abstractmethod
    async def delete_server(self, name: str, *, by: str) -> None:
        """Delete a server and the definitions of its tools."""
        ...


class ServerAdmin(Protocol):
    """Reads and changes the configured servers at run time."""

    @abstractmethod
    def get_source(self, name: str) -> Literal["file", "api"] | None:
        """Return where a server is configured; None if it does not exist."""
        ...

    @abstractmethod
    def get_config(self, name: str) -> ServerConfig:
        """Raises:
        NotFound: there is no such server.
        """
        ...

    @abstractmethod
    async def add_server(self, name: str, config: JsonObject, *, by: str) -> None:
        """Add a server for every worker.

        Raises:
            Conflict: a server of that name exists.
            InvalidRequest: the configuration is not valid.
        """
        ...

    @abstractmethod
    async def change_server(
        self, name: str, change: Callable[[JsonObject], JsonObject], *, disabled: bool | None = None, by: str
    ) -> None:
        """Change the configuration of a server that was added at run time.

        `change` returns the new configuration for the stored one. `disabled`: None leaves that as it is.

        Raises:
            NotFound: there is no such server.
            Conflict: the file configures it.
            InvalidRequest: the new configuration is not valid.
        """
        ...

    @abstractmethod
    async def set_disabled(self, name: str, *, disabled: bool, by: str) -> None:
        """Disable or enable a server of the file or of the database."""
        ...

    @abstractmethod
    async def remove_server(self, name: str, *, by: str) -> None:
        """Remove a server that was added at run time.

        Raises:
            Conflict: the file configures it.
        """
        ...

    @abstractmethod
    def notify_workers(self) -> None:
        """Let every worker compare the servers with their stored configuration and approvals."""
        ...

    @abstractmethod
    def reload(self) -> None:
        """Read the file and the database now."""
        ...


class ServerPool(Protocol):
    """The connections to MCP servers."""

    @abstractmethod
    def reconcile(self, servers: list[ServerConfig]) -> None:
        """Connect and disconnect until exactly these servers are connected."""
        ...

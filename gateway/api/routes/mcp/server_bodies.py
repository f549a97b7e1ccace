"""Request bodies that add MCP servers.

A body has one server, or is a pasted configuration file.
"""

import re
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)

from gateway.common.validation_errors import describe_problem
from gateway.domain.errors import Conflict, InvalidRequest
from gateway.domain.messages import Approval, JsonObject
from gateway.ports.servers import Root, Sampling
from gateway.wire.request_model import UNION_TAG_PREFIX
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

_VARIABLE = re.compile(r"\$\{[^}]*\}")
_MAX_PASTED_SERVERS = 50
_CREDENTIAL_IDENTITIES = {f"header:{name}" for name in ("authorization", "cookie", "proxy-authorization", "x-api-key")}


class OAuthClientBody(RequestModel):
    """OAuth client that was registered by hand."""

    client_id: str = Field(min_length=1, max_length=500, validation_alias=AliasChoices("client_id", "clientId"))
    client_secret: str | None = Field(
        default=None, max_length=10_000, repr=False, validation_alias=AliasChoices("client_secret", "clientSecret")
    )
    token_endpoint_auth_method: Literal["client_secret_basic", "client_secret_post"] | None = None
    scope: str | None = Field(default=None, max_length=1_000)


class ServerBody(RequestModel):
    """Configuration of an MCP server that is reached over HTTP.

    Commands are not accepted, and environment variables are not expanded. The addresses that the server's OAuth
    metadata name must be public. `identity` forwards no header with the caller's credentials for the gateway.
    `sampling`: whether the server may use the model of the turn that calls it, or must `ask` a person each time.
    `roots`: URIs of the directories that the server is told to work in. Default: those of the setting MCP_ROOTS.
    `tasks`: globs over its own names of the tools that hosts may run as tasks.
    """

    url: str = Field(max_length=2_000)
    type: Literal["http", "sse"] = "http"
    headers: Annotated[dict[str, str], limit_entries(50)] = Field(default_factory=dict, max_length=50, repr=False)
    prefix: str | None = Field(default=None, max_length=64)
    timeout: float | None = Field(default=None, gt=0, le=3_600)
    allow: ItemList[str] = Field(default=["*"], max_length=200)
    deny: ItemList[str] = Field(default=[], max_length=200)
    approval: Approval = "never"
    identity: str = Field(default="none", pattern=r"^(none|gateway|header:[A-Za-z0-9-]{1,64})$")
    share: Literal["all", "user"] = "all"
    on_change: Literal["flag", "hold"] = "flag"
    as_tools: ItemList[Literal["resources", "prompts"]] = Field(default=[], max_length=2)
    idempotency: bool = False
    sampling: Sampling = "off"
    roots: ItemList[Root] | None = Field(default=None, max_length=50)
    tasks: ItemList[str] = Field(default=[], max_length=200)
    oauth: OAuthClientBody | None = None

    @field_validator("identity")
    @classmethod
    def _protect_credentials(cls, value: str) -> str:
        if value.lower() in _CREDENTIAL_IDENTITIES:
            raise ValueError("this header has the caller's credentials for the gateway")
        return value

    def to_config(self) -> JsonObject:
        """Return the entry as it is stored."""
        return self.model_dump(mode="json", exclude={"name", "disabled"}, exclude_none=True)


class ServerCreate(ServerBody):
    """MCP server to connect to over HTTP."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")


class ServerReplace(ServerBody):
    """New configuration of an MCP server, without its secrets of before.

    `disabled`: whether it is disabled; the default changes nothing.
    """

    name: str | None = Field(default=None, max_length=64)
    disabled: bool | None = None


class OAuthClientPatch(RequestModel):
    """Change of an OAuth client; null removes a field."""

    client_id: str | None = None
    client_secret: str | None = Field(default=None, repr=False)
    token_endpoint_auth_method: str | None = None
    scope: str | None = None


class ServerPatch(RequestModel):
    """Change of an MCP server, as a JSON merge patch (RFC 7396).

    Of a server of the configuration file, `disabled` alone can be changed. If `url` leads to another origin, the
    headers and the secret that were stored must be given again or removed.
    """

    disabled: bool | None = None
    url: str | None = None
    type: str | None = None
    headers: Annotated[dict[str, str | None] | None, limit_entries(100)] = Field(default=None, repr=False)
    prefix: str | None = None
    timeout: float | None = None
    allow: ItemList[str] | None = Field(default=None, max_length=200)
    deny: ItemList[str] | None = Field(default=None, max_length=200)
    approval: str | None = None
    identity: str | None = None
    share: str | None = None
    on_change: str | None = None
    as_tools: ItemList[str] | None = Field(default=None, max_length=2)
    idempotency: bool | None = None
    sampling: str | None = None
    roots: ItemList[str] | None = Field(default=None, max_length=50)
    tasks: ItemList[str] | None = Field(default=None, max_length=200)
    oauth: OAuthClientPatch | None = None

    def apply(self, name: str, stored: JsonObject) -> JsonObject:
        """Return the configuration that the stored one becomes.

        Raises:
            Conflict: the stored one cannot be read.
            InvalidRequest: the result is not valid.
        """
        if "fault" in stored:
            raise Conflict(f"The configuration of {name!r} cannot be read: replace it with PUT.")
        changes = self.model_dump(exclude_unset=True, exclude={"disabled"})
        _require_secrets_again(stored, changes)
        try:
            return ServerCreate.model_validate({**_merge(stored, changes), "name": name}).to_config()
        except ValidationError as error:
            first = error.errors()[0]
            path, reason = describe_problem(first, first["loc"])
            raise InvalidRequest(f"{path}: {reason}", param=path) from None


def _merge(stored: JsonObject, changes: JsonObject) -> JsonObject:
    merged = dict(stored)
    for name, value in changes.items():
        if isinstance(value, dict):
            merged[name] = _merge(stored.get(name) or {}, cast("JsonObject", value))
        else:
            merged[name] = value
    return {name: value for name, value in merged.items() if value is not None}


def _require_secrets_again(stored: JsonObject, changes: JsonObject) -> None:
    """Refuse to send stored secrets to another origin.

    Raises:
        InvalidRequest: the patch changes the origin and keeps a secret.
    """
    if "url" not in changes or _get_origin(changes["url"]) == _get_origin(stored["url"]):
        return
    headers, oauth = changes.get("headers", {}), changes.get("oauth", {})
    stored_client: JsonObject = stored.get("oauth") or {}
    stored_secret = stored_client.get("client_secret")
    if headers is not None and not (stored.get("headers") or {}).keys() <= headers.keys():
        message = "headers: the stored ones are not sent to another origin. Give each again, or set it to null"
        raise InvalidRequest(message, param="headers")
    if stored_secret is not None and oauth is not None and "client_secret" not in oauth:
        message = "oauth.client_secret: the stored one is not sent to another origin. Give it again, or set it to null"
        raise InvalidRequest(message, param="oauth.client_secret")


def _get_origin(url: object) -> tuple[str, str]:
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return "", ""
    return parts.scheme.lower(), parts.netloc.lower()


class PastedServers(BaseModel):
    """Content of a host's configuration file.

    Hosts are Claude Desktop, Cursor, VS Code and others. All of its servers are added, or none. Commands are not
    accepted, and environment variables are not expanded.
    """

    model_config = ConfigDict(extra="ignore")

    mcpServers: Annotated[dict[str, JsonObject], limit_entries(_MAX_PASTED_SERVERS)] = Field(  # noqa: N815 - the files' name
        validation_alias=AliasChoices("mcpServers", "servers"), min_length=1, max_length=_MAX_PASTED_SERVERS
    )

    def list_servers(self) -> list[tuple[ServerCreate, bool]]:
        """Return each server, and whether it is disabled.

        Raises:
            InvalidRequest: an entry cannot be used. The error names it.
        """
        return [(_read_entry(name, entry), entry.get("disabled") is True) for name, entry in self.mcpServers.items()]


def _read_entry(name: str, entry: JsonObject) -> ServerCreate:
    place = f"mcpServers.{name[:64]}"
    if "command" in entry:
        raise InvalidRequest(
            f"{place}.command: the API accepts no commands, because they would run on the gateway's machine. Run"
            f" `agent-gateway mcp add` there, or add the entry to mcp.json",
            param=f"{place}.command",
        )
    fields = {field: entry[field] for field in ServerCreate.model_fields if field in entry}
    if (client := _read_oauth_client(fields.pop("oauth", None))) is not None:
        fields["oauth"] = client
    fields.setdefault("url", entry.get("serverUrl", entry.get("httpUrl")))
    if entry.get("type") in ("streamable-http", "streamableHttp"):
        fields["type"] = "http"
    if fields["url"] is None:
        raise InvalidRequest(f"{place}.url: Field required", param=f"{place}.url")
    for field, text in _list_texts(fields):
        if _VARIABLE.search(text):
            path = f"{place}.{field}"
            message = f"{path}: the API does not expand variables such as ${{NAME}}. Write the value"
            raise InvalidRequest(message, param=path)
    try:
        return ServerCreate.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        path, reason = describe_problem(first, [place, *first["loc"]])
        raise InvalidRequest(f"{path}: {reason}", param=path) from None


def _read_oauth_client(entry: object) -> object:
    """Return the client of an entry, without other fields."""
    if not isinstance(entry, dict):
        return entry
    names = {"client_id", "clientId", "client_secret", "clientSecret", "token_endpoint_auth_method", "scope"}
    client = {name: value for name, value in cast("JsonObject", entry).items() if name in names}
    return client if {"client_id", "clientId"} & client.keys() else None


def _list_texts(fields: JsonObject) -> list[tuple[str, str]]:
    """List address, headers' values and client's fields with their paths."""
    texts: list[tuple[str, object]] = [("url", fields["url"])]
    for field in ("headers", "oauth"):
        values = fields.get(field)
        if isinstance(values, dict):
            texts += [(f"{field}.{name}", value) for name, value in cast("JsonObject", values).items()]
    return [(path, text) for path, text in texts if isinstance(text, str)]


def _choose_body(value: Any) -> str:
    names = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return "pasted" if "mcpServers" in names or "servers" in names else "one"


ServersBody = Annotated[
    Annotated[ServerCreate, Tag(f"{UNION_TAG_PREFIX}one")] | Annotated[PastedServers, Tag(f"{UNION_TAG_PREFIX}pasted")],
    Discriminator(lambda value: UNION_TAG_PREFIX + _choose_body(value)),
]

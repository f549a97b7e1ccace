"""Request bodies that add MCP servers.

A body has one server, or is a pasted configuration file.
"""

import re
from typing import Annotated, Any, Literal, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.common.validation_errors import describe_problem
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import Approval, JsonObject
from gateway.wire.request_model import UNION_TAG_PREFIX, ItemList, RequestModel, limit_entries

_VARIABLE = re.compile(r"\$\{[^}]*\}")
_MAX_PASTED_SERVERS = 50


class ServerCreate(RequestModel):
    """MCP server to connect to over HTTP.

    Commands are not accepted, and environment variables are not expanded.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    url: str = Field(max_length=2_000)
    type: Literal["http", "sse"] = "http"
    headers: Annotated[dict[str, str], limit_entries(50)] = Field(default_factory=dict, max_length=50)
    prefix: str | None = Field(default=None, max_length=64)
    timeout: float | None = Field(default=None, gt=0, le=3_600)
    allow: ItemList[str] = Field(default=["*"], max_length=200)
    deny: ItemList[str] = Field(default=[], max_length=200)
    approval: Approval = "never"
    share: Literal["all", "user"] = "all"
    on_change: Literal["flag", "hold"] = "flag"
    idempotency: bool = False

    def to_config(self) -> JsonObject:
        """Return the entry without its name, as it is stored."""
        return self.model_dump(mode="json", exclude={"name"}, exclude_none=True)


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


def _list_texts(fields: JsonObject) -> list[tuple[str, str]]:
    """List the address and the headers' values, each with its path."""
    headers = fields.get("headers")
    values = cast("dict[str, object]", headers).items() if isinstance(headers, dict) else ()
    texts = [("url", fields["url"]), *((f"headers.{name}", value) for name, value in values)]
    return [(path, text) for path, text in texts if isinstance(text, str)]


def _choose_body(value: Any) -> str:
    names = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return "pasted" if "mcpServers" in names or "servers" in names else "one"


ServersBody = Annotated[
    Annotated[ServerCreate, Tag(f"{UNION_TAG_PREFIX}one")] | Annotated[PastedServers, Tag(f"{UNION_TAG_PREFIX}pasted")],
    Discriminator(lambda value: UNION_TAG_PREFIX + _choose_body(value)),
]

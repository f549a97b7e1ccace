"""Request and response bodies of API keys."""

from datetime import UTC, datetime
from typing import Annotated, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from gateway.domain.messages import Area, CodeMode, GatewayTools, UserRole
from gateway.domain.toolsets import ToolsetName
from gateway_runtime.requests.model import ItemList, RequestModel

Glob = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
GlobList = Annotated[ItemList[Glob] | None, Field(max_length=200)]
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@+-]{1,128}$")]
TokenLimit = Annotated[int | None, Field(ge=0, le=10**15)]
CostLimit = Annotated[float | None, Field(ge=0, le=10**9, allow_inf_nan=False)]


def _to_utc(moment: datetime) -> datetime:
    """Convert to UTC; a time without a zone counts as UTC."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("is out of bounds in UTC") from None


class BudgetView(BaseModel):
    """Limits on usage per day and per month (UTC)."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None


class BudgetBody(RequestModel, BudgetView):
    """Limits on usage per day and per month (UTC)."""

    tokens_per_day: TokenLimit = None
    tokens_per_month: TokenLimit = None
    usd_per_day: CostLimit = None
    usd_per_month: CostLimit = None


class KeyLimitsView(BaseModel):
    """Rate limits of a key, in addition to those of its owner.

    `requests` counts all requests in any window of `window_seconds`. At most `streams` turns may run at once, and, as a
    separate count, at most so many streams, waiting requests and MCP requests may be open.
    """

    requests: int | None = None
    window_seconds: int = 60
    streams: int | None = None


class KeyLimitsBody(RequestModel, KeyLimitsView):
    """Rate limits of a key, in addition to those of its owner.

    `requests` counts all requests in any window of `window_seconds`. At most `streams` turns may run at once, and, as a
    separate count, at most so many streams, waiting requests and MCP requests may be open.
    """

    requests: int | None = Field(default=None, ge=1, le=10**6)
    window_seconds: int = Field(default=60, ge=1, le=86_400)
    streams: int | None = Field(default=None, ge=1, le=10**6)


class KeyView(BaseModel):
    """Stored key.

    `prefix` is its beginning. Null as `scopes` or as an allow list permits everything. `made_with` is the credential
    that made it: the prefix of a key, `API_KEY` or `jwt`; null for the command line. It is revoked with that key.
    """

    id: UUID
    prefix: str
    name: str
    owner: str
    role: str
    scopes: list[str] | None
    models: list[str] | None
    servers: list[str] | None
    tools: list[str] | None
    budget: BudgetView | None
    limits: KeyLimitsView | None
    gateway_tools: GatewayTools | None = None
    code: CodeMode | None = None
    toolset: str | None = None
    created_by: str
    made_with: str | None = None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyList(BaseModel):
    """API keys, newest first."""

    keys: list[KeyView]


class CreatedKey(KeyView):
    """Created key.

    Only this response contains `key`, the secret; the gateway stores its hash.
    """

    key: str


class _KeyRightsBody(RequestModel):
    name: str = Field(default="", max_length=200, pattern=r"^[^\x00]*$")
    scopes: ItemList[Area] | None = Field(default=None, max_length=len(get_args(Area)))
    models: GlobList = Field(default=None, description="Globs that match ids of models.")
    servers: GlobList = Field(default=None, description="Globs that match names of MCP servers.")
    tools: GlobList = Field(
        default=None, description="Globs that match names of tools and prompts, and URIs of resources."
    )
    budget: BudgetBody | None = None
    limits: KeyLimitsBody | None = None
    gateway_tools: GatewayTools | None = Field(
        default=None,
        description="Gateway tools of requests that say nothing: `auto` is all, or none beside the client's own tools. "
        "Default: the setting GATEWAY_TOOLS.",
    )
    code: CodeMode | None = Field(
        default=None,
        description="Programs of requests that say nothing, in every format, and of MCP hosts: `auto`, `only` or "
        "`off`. Default: the setting CODE_MODE in native requests, and none in other formats.",
    )
    toolset: ToolsetName | None = Field(
        default=None, description="Toolset that the key is bound to: it sees no other tools, resources and prompts."
    )
    expires_at: Annotated[datetime, AfterValidator(_to_utc)] | None = None


class NewKeyBody(_KeyRightsBody):
    """Key to create.

    Only admins may set `owner`. Omitted fields default to the rights of the creator.
    """

    owner: UserName | None = None
    role: UserRole | None = Field(
        default=None,
        description="Default: user, or the creator's role if lower; admin for the first key of an open gateway.",
    )


class KeyChangeBody(_KeyRightsBody):
    """Changes of a key.

    Omitted fields stay as they are. Null, which `name` cannot be, sets the default of a key that the caller creates.
    """


class RotationBody(RequestModel):
    """Rotation of a key.

    The old key stays valid for `overlap_seconds`, so that its users can change to the new one.
    """

    overlap_seconds: int = Field(default=86_400, ge=0, le=30 * 86_400)

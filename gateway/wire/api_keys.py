"""What a key for the API may be, as the HTTP API and the command line take it, and how it is shown."""

from datetime import UTC, datetime
from typing import Annotated, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from gateway.domain.messages import Area, UserRole

Glob = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
Globs = Annotated[list[Glob] | None, Field(max_length=200)]
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@+-]{1,128}$")]
Tokens = Annotated[int | None, Field(ge=0, le=10**15)]
Dollars = Annotated[float | None, Field(ge=0, le=10**9, allow_inf_nan=False)]


def _in_utc(moment: datetime) -> datetime:
    """Without a zone it is in UTC already."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("is out of bounds in UTC") from None


class BudgetView(BaseModel):
    """What may be used up in a day and in a month (UTC)."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None


class BudgetBody(BudgetView):
    """What may be used up in a day and in a month (UTC)."""

    model_config = ConfigDict(extra="forbid")

    tokens_per_day: Tokens = None
    tokens_per_month: Tokens = None
    usd_per_day: Dollars = None
    usd_per_month: Dollars = None


class KeyLimitsView(BaseModel):
    """How many requests in any window of so many seconds, and how many turns, streams and MCP requests at once, beside
    what holds for the owner."""

    requests: int | None = None
    window_seconds: int = 60
    streams: int | None = None


class KeyLimitsBody(KeyLimitsView):
    """How many requests in any window of so many seconds, and how many turns, streams and MCP requests at once, beside
    what holds for the owner."""

    model_config = ConfigDict(extra="forbid")

    requests: int | None = Field(default=None, ge=1, le=10**6)
    window_seconds: int = Field(default=60, ge=1, le=86_400)
    streams: int | None = Field(default=None, ge=1, le=10**6)


class KeyView(BaseModel):
    """`prefix` is how the key begins. `scopes` and the allow lists: null allows all."""

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
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyList(BaseModel):
    keys: list[KeyView]


class CreatedKey(KeyView):
    """`key` is shown this once: only its hash is kept."""

    key: str


class NewKeyBody(BaseModel):
    """A key of one's own; an admin may make one for another `owner`. What is left out is what the maker may do."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="", max_length=200, pattern=r"^[^\x00]*$")
    owner: UserName | None = None
    role: UserRole | None = Field(default=None, description="Default: user, or the maker's if that is less.")
    scopes: list[Area] | None = Field(default=None, max_length=len(get_args(Area)))
    models: Globs = Field(default=None, description="Globs over the ids of models.")
    servers: Globs = Field(default=None, description="Globs over the names of MCP servers.")
    tools: Globs = Field(default=None, description="Globs over the names of tools.")
    budget: BudgetBody | None = None
    limits: KeyLimitsBody | None = None
    expires_at: Annotated[datetime, AfterValidator(_in_utc)] | None = None

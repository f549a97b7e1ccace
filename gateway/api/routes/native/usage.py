"""`/api/v1/usage`: tokens, times and cost, added up."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, cast, get_args
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from gateway.api.deps import PrincipalDep, UsageReportsDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.domain.messages import JsonObject, Principal
from gateway.store.usage_report import Group

router = APIRouter(prefix="/api/v1/usage", tags=["usage"])

_DEFAULT_DAYS, _MOST_DAYS = 30, 366
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_RESPONSES: dict[int | str, JsonObject] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
    403: {"model": ErrorBody, "description": "Only admins may see what others have used"},
    503: {"model": ErrorBody, "description": "There are too many turns to add up in time"},
}


class UsageSum(BaseModel):
    """Ended turns. Times in seconds. `cached_share`: which part of the prompts the model's server had in its cache.
    `unpriced_turns`: those for whose model no price is known; they add nothing to `cost_usd`. `cached_turns`: those
    that got an earlier turn's answer. `up`, `down`: how their owners rate them."""

    turns: int
    completed: int
    failed: int
    cancelled: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    cached_share: float | None
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int
    queue_time: float
    model_time: float
    generation_time: float
    tokens_per_second: float | None
    cost_usd: float
    unpriced_turns: int
    cached_turns: int
    up: int
    down: int


class UsageRow(UsageSum):
    """A group: of the five fields before the sums, those that were asked for."""

    day: date | None = None
    model: str | None = None
    user: str | None = None
    key: str | None = None
    conversation: UUID | None = None


class UsageTable(BaseModel):
    """Turns that ended from `from` until before `to`. `truncated`: there are more groups; `total` holds them all."""

    since: datetime = Field(serialization_alias="from")
    until: datetime = Field(serialization_alias="to")
    group_by: list[Group]
    rows: list[UsageRow]
    total: UsageSum
    truncated: bool


@router.get(
    "",
    summary="What was used",
    response_model=UsageTable,
    response_model_exclude_unset=True,
    responses=_RESPONSES,
)
async def get_usage(
    principal: PrincipalDep,
    reports: UsageReportsDep,
    since: Annotated[
        str | None, Query(alias="from", max_length=40, description="A day or a time, in UTC where it does not say.")
    ] = None,
    until: Annotated[
        str | None, Query(alias="to", max_length=40, description="A day, which is included, or a time, which is not.")
    ] = None,
    group_by: Annotated[
        str, Query(max_length=100, description=f"One or several of {', '.join(get_args(Group))}, with commas.")
    ] = "day",
    user: Annotated[
        str | None, Query(max_length=256, pattern=r"^[^\x00]*$", description="An admin: this user's alone.")
    ] = None,
    format: Annotated[Literal["json", "csv"] | None, Query()] = None,  # noqa: A002 - the parameter's public name
    accept: Annotated[str, Header()] = "",
) -> UsageTable | Response:
    """Tokens, times and cost of ended turns: your own; an admin sees everyone's. By default of the last 30 days by day.

    With `format=csv`, or `Accept: text/csv`, as CSV.
    """
    groups = _parse_groups(group_by)
    first, behind = _parse_range(since, until)
    rows, total = await reports.aggregate(groups, first, behind, owner=_resolve_owner(principal, user))
    table = UsageTable(
        since=first,
        until=behind,
        group_by=groups,
        rows=[
            UsageRow(**group, **UsageSum.model_validate(sums, from_attributes=True).model_dump())
            for group, sums in rows[: reports.max_groups]
        ],
        total=UsageSum.model_validate(total, from_attributes=True),
        truncated=len(rows) > reports.max_groups,
    )
    if format == "csv" or (format is None and "text/csv" in accept):
        return _to_csv_response(table)
    return table


def _resolve_owner(principal: Principal, user: str | None) -> str | None:
    """Whose turns to add up; None: everyone's."""
    if principal.role == "admin":
        return user
    if user not in (None, principal.user):
        raise Forbidden("Only admins may see what others have used.", param="user")
    return principal.user


def _parse_groups(group_by: str) -> list[Group]:
    names = list(dict.fromkeys(name for part in group_by.split(",") if (name := part.strip())))
    if not names or not set(names) <= set(get_args(Group)):
        raise InvalidRequest(f"group_by: one or several of {', '.join(get_args(Group))}.", param="group_by")
    return cast(list[Group], names)


def _parse_range(since: str | None, until: str | None) -> tuple[datetime, datetime]:
    """The first moment, and the one behind the last."""
    try:
        behind = (
            _parse_moment(until, "to", end=True)
            if until
            else _to_midnight(datetime.now(UTC).date()) + timedelta(days=1)
        )
        first = _parse_moment(since, "from") if since else behind - timedelta(days=_DEFAULT_DAYS)
    except OverflowError:
        raise InvalidRequest("from, to: the range is out of bounds.", param="from") from None
    if not timedelta() < behind - first <= timedelta(days=_MOST_DAYS):
        raise InvalidRequest(f"from, to: a range of at most {_MOST_DAYS} days, forwards.", param="from")
    return first, behind


def _parse_moment(given: str, name: str, *, end: bool = False) -> datetime:
    try:
        if len(given) == len("2026-01-31"):
            return _to_midnight(date.fromisoformat(given)) + timedelta(days=end)
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise InvalidRequest(
            f"{name}: a day such as 2026-01-31 or a time such as 2026-01-31T12:00Z.", param=name
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _to_midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _to_csv_response(table: UsageTable) -> Response:
    """A line a group, below their names. Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    names = [*table.group_by, *UsageSum.model_fields]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows([_escape_cell(getattr(row, name)) for name in names] for row in table.rows)
    name = f"usage-{table.since:%Y-%m-%d}-{table.until:%Y-%m-%d}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(out.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")


def _escape_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

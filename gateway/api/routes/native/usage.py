"""`/api/v1/usage`: sums of tokens, times and cost."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, cast, get_args
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from gateway.api.deps import PrincipalDep, UsageReportsDep
from gateway.api.http.errors import ErrorBody
from gateway.api.http.json_lists import build_list_response, build_response, iterate
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.domain.messages import JsonObject, Principal
from gateway.store.usage_report import GroupKey, UsageStats

router = APIRouter(prefix="/api/v1/usage", tags=["usage"])

_DEFAULT_DAYS, _MAX_DAYS = 30, 366
_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
_RESPONSES: dict[int | str, JsonObject] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
    403: {"model": ErrorBody, "description": "Only admins may see the usage of other users"},
    503: {"model": ErrorBody, "description": "The range has too many turns to sum within the time limit"},
}


class UsageSum(BaseModel):
    """Sums over turns that have ended. Times are in seconds.

    `cached_share` is the fraction of all prompt tokens that were in the cache of the model's server. `unpriced_turns`
    used a model without a known price and add nothing to `cost_usd`. `cached_turns` were answered from the response
    cache. `up` and `down` are numbers of ratings.
    """

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
    """Sums of a group. Only the fields named in `group_by` are present."""

    day: date | None = None
    model: str | None = None
    user: str | None = None
    key: str | None = None
    conversation: UUID | None = None


class UsageTable(BaseModel):
    """Turns that ended at or after `from` and before `to`.

    `truncated`: there are more groups than `rows`. `total` includes all groups.
    """

    since: datetime = Field(serialization_alias="from")
    until: datetime = Field(serialization_alias="to")
    group_by: list[GroupKey]
    rows: list[UsageRow]
    total: UsageSum
    truncated: bool


@router.get(
    "",
    summary="Sum the usage of turns",
    response_model=UsageTable,
    response_model_exclude_unset=True,
    responses=_RESPONSES,
)
async def get_usage(
    principal: PrincipalDep,
    reports: UsageReportsDep,
    since: Annotated[
        str | None, Query(alias="from", max_length=40, description="Date or time. Default time zone: UTC.")
    ] = None,
    until: Annotated[
        str | None, Query(alias="to", max_length=40, description="Date (included) or time (excluded).")
    ] = None,
    group_by: Annotated[
        str,
        Query(max_length=100, description=f"One or more of {', '.join(get_args(GroupKey))}, separated by commas."),
    ] = "day",
    user: Annotated[
        str | None,
        Query(max_length=256, pattern=r"^[^\x00]*$", description="Only the turns of this user. Admins only."),
    ] = None,
    format: Annotated[  # noqa: A002 - the parameter's public name
        Literal["json", "csv"] | None, Query(description="Default: json.")
    ] = None,
    accept: Annotated[str, Header(description="`text/csv` selects CSV if `format` is omitted.")] = "",
) -> Response:
    """Sum tokens, times and cost of turns that have ended.

    The sums cover your turns, or all users' turns for an admin. Default: the last 30 days, by day. With `format=csv` or
    `Accept: text/csv` the response is CSV.
    """
    groups = _parse_groups(group_by)
    start, end = _parse_range(since, until)
    rows, total = await reports.aggregate(groups, start, end, owner=_resolve_owner(principal, user))
    is_csv = format == "csv" or (format is None and "text/csv" in accept)
    if is_csv:
        filename = f"usage-{start:%Y-%m-%d}-{end:%Y-%m-%d}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
        lines = iterate(_write_csv(groups, rows[: reports.max_groups]))
        return await build_response(lines, headers=headers, media_type="text/csv; charset=utf-8")
    head = {"from": start, "to": end, "group_by": groups}
    truncated = len(rows) > reports.max_groups
    tail = b'{"total":%s,"truncated":%s}' % (
        _to_sum(total).model_dump_json().encode(),
        b"true" if truncated else b"false",
    )
    items = iterate(group | _to_sum(sums).model_dump() for group, sums in rows[: reports.max_groups])
    return await build_list_response({"rows": items}, head=msgspec.json.encode(head), tail=lambda: tail)


def _to_sum(stats: UsageStats) -> UsageSum:
    return UsageSum.model_validate(stats, from_attributes=True)


def _resolve_owner(principal: Principal, user: str | None) -> str | None:
    """Return the user whose turns are summed; None: all users."""
    if principal.role == "admin":
        return user
    if user not in (None, principal.user):
        raise Forbidden("Only admins may see the usage of other users.", param="user")
    return principal.user


def _parse_groups(group_by: str) -> list[GroupKey]:
    names = list(dict.fromkeys(name for part in group_by.split(",") if (name := part.strip())))
    if not names or not set(names) <= set(get_args(GroupKey)):
        raise InvalidRequest(f"group_by: must be one or more of {', '.join(get_args(GroupKey))}.", param="group_by")
    return cast(list[GroupKey], names)


def _parse_range(since: str | None, until: str | None) -> tuple[datetime, datetime]:
    """Return the start of the range and its exclusive end, in UTC."""
    try:
        end = (
            _parse_time(until, "to", end=True) if until else _to_midnight(datetime.now(UTC).date()) + timedelta(days=1)
        )
        start = _parse_time(since, "from") if since else end - timedelta(days=_DEFAULT_DAYS)
    except OverflowError:
        raise InvalidRequest("from, to: the range is out of bounds.", param="from") from None
    if not timedelta() < end - start <= timedelta(days=_MAX_DAYS):
        raise InvalidRequest(f"from, to: the range must be positive and at most {_MAX_DAYS} days.", param="from")
    return start, end


def _parse_time(text: str, param: str, *, end: bool = False) -> datetime:
    """Parse a date or time.

    With `end`, a date means the end of that day.
    """
    try:
        if len(text) == len("2026-01-31"):
            return _to_midnight(date.fromisoformat(text)) + timedelta(days=end)
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{param}: must be a date such as 2026-01-31 or a time such as 2026-01-31T12:00Z.", param=param
        ) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _to_midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _write_csv(groups: list[GroupKey], rows: list[tuple[dict[GroupKey, object], UsageStats]]) -> Iterator[bytes]:
    """Write a header line and a line per group."""
    yield _write_csv_line([*groups, *UsageSum.model_fields])
    for group, stats in rows:
        sums = _to_sum(stats)
        values = [*group.values(), *(getattr(sums, column) for column in UsageSum.model_fields)]
        yield _write_csv_line([_escape_formula(value) for value in values])


def _write_csv_line(values: list[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue().encode()


def _escape_formula(value: object) -> object:
    """Prefix spreadsheet formulas with an apostrophe.

    A spreadsheet would run text that it reads as a formula.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_PREFIXES) else value

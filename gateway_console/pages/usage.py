"""`/usage`: usage and cost, errors, times and tools.

Admins see those of all users.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError
from gateway_console.components.charts import draw_chart
from gateway_console.components.controls import draw_empty, draw_fields, format_cost, format_milliseconds
from gateway_console.components.tables import draw_table
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_RANGES = {7: "7 days", 30: "30 days", 90: "90 days", 366: "A year"}
_MAX_MODELS = 8
_MAX_ROWS = 50
_NO_NAME = "none"


class UsagePage:
    """Usage of a range of days."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_admin = api.session.role == "admin"

    async def draw(self) -> None:
        self._range = ui.toggle(_RANGES, value=30, on_change=self._load).props("no-caps unelevated")
        self._content = ui.column().classes("w-full gap-3 q-mt-md").props('aria-live="polite"')
        await self._load()

    async def _load(self) -> None:
        days = int(self._range.value or 30)
        try:
            usage = {name: await self._sum_by(name, days) for name in self._list_groups()}
            budget: JsonObject = await self._api.get("/api/v1/budget", days=days)
            stats = await self._api.get("/api/v1/admin/stats", days=days) if self._is_admin else None
        except ApiError as error:
            self._content.clear()
            with self._content:
                draw_error(error, self._load)
            return
        self._content.clear()
        with self._content:
            _draw_totals(usage["day,model"]["total"], budget)
            _draw_days(usage["day,model"]["rows"])
            for name in ("model", "user", "key"):
                if name in usage:
                    _draw_group(name, usage[name])
            if stats is not None:
                _draw_errors(stats["errors"])
                _draw_tools(stats["tools"])

    def _list_groups(self) -> tuple[str, ...]:
        return ("day,model", "model", "user", "key") if self._is_admin else ("day,model", "model", "key")

    async def _sum_by(self, groups: str, days: int) -> JsonObject:
        since = datetime.now(UTC).date() - timedelta(days=days - 1)
        return await self._api.get("/api/v1/usage", **{"group_by": groups, "from": since})


def _draw_totals(total: JsonObject, budget: JsonObject) -> None:
    own, limits = budget["user"], budget["user"]["budget"]
    with ui.element("div").classes("card"):
        draw_fields(
            {
                "Turns": f"{total['turns']:,} ({total['failed']:,} failed, {total['cancelled']:,} cancelled)",
                "Tokens": f"{total['total_tokens']:,}",
                "Cost": format_cost(total["cost_usd"]),
                "From the prompt cache": f"{(total['cached_share'] or 0) * 100:.0f} %",
                "Ratings": f"{total['up']} good, {total['down']} bad" if total["up"] or total["down"] else None,
                "You, today": f"{own['tokens_today']:,} tokens, {format_cost(own['usd_today'])}",
                "You, this month": f"{own['tokens_this_month']:,} tokens, {format_cost(own['usd_this_month'])}",
                "Your budget": describe_budget(limits),
                "Budget of your key": describe_budget(budget["key"]["budget"]) if budget["key"] else None,
            }
        )


def describe_budget(budget: JsonObject) -> str:
    """Return the limits of a budget as text."""
    parts = [f"{budget[name]:,} tokens a {period}" for name, period in _TOKEN_LIMITS if budget.get(name) is not None]
    parts += [f"${budget[name]:,g} a {period}" for name, period in _COST_LIMITS if budget.get(name) is not None]
    return ", ".join(parts) or "no limit"


_TOKEN_LIMITS = (("tokens_per_day", "day"), ("tokens_per_month", "month"))
_COST_LIMITS = (("usd_per_day", "day"), ("usd_per_month", "month"))


def _draw_days(rows: list[JsonObject]) -> None:
    if not rows:
        draw_empty("No turn has ended in these days.")
        return
    days = sorted({row["day"] for row in rows})
    costs: Counter[str] = Counter()
    for row in rows:
        costs[row["model"]] += row["total_tokens"]
    models = [model for model, _ in costs.most_common(_MAX_MODELS)]
    by_day = {(row["day"], row["model"]): row for row in rows}

    def pick(field: str) -> dict[str, list[float | None]]:
        return {model: [by_day.get((day, model), {}).get(field) for day in days] for model in models}

    draw_chart("Cost in USD by day and model", days, pick("cost_usd"), is_stacked=True)
    draw_chart("Tokens by day and model", days, pick("total_tokens"), is_stacked=True)
    draw_chart("Seconds a turn, by day", days, build_latencies(rows, days), kind="line")


def build_latencies(rows: list[JsonObject], days: list[str]) -> dict[str, list[float | None]]:
    """Return mean seconds of a turn by day, in queue and model."""
    turns: Counter[str] = Counter()
    seconds = {"queue": Counter[str](), "model": Counter[str]()}
    for row in rows:
        turns[row["day"]] += row["turns"]
        seconds["queue"][row["day"]] += row["queue_time"]
        seconds["model"][row["day"]] += row["model_time"]
    return {
        name: [round(sums[day] / turns[day], 3) if turns[day] else None for day in days]
        for name, sums in seconds.items()
    }


def _draw_group(name: str, table: JsonObject) -> None:
    rows = sorted(table["rows"], key=lambda row: -row["cost_usd"])
    _draw_heading(f"By {name}")
    cells = [
        [
            str(row[name] or _NO_NAME),
            f"{row['turns']:,}",
            f"{row['failed']:,}",
            f"{row['total_tokens']:,}",
            format_cost(row["cost_usd"]),
            format_milliseconds(row["model_time"] / row["turns"] * 1_000 if row["turns"] else None),
        ]
        for row in rows[:_MAX_ROWS]
    ]
    draw_table([name.capitalize(), "Turns", "Failed", "Tokens", "Cost", "Time of the model a turn"], cells)
    if len(rows) > _MAX_ROWS or table["truncated"]:
        draw_empty("Those with less cost are not shown.")


def _draw_errors(errors: list[JsonObject]) -> None:
    _draw_heading("Errors")
    if not errors:
        draw_empty("No turn has failed.")
        return
    shown = errors[:20]
    draw_chart("Turns by error", [error["code"] for error in shown], {"turns": [error["turns"] for error in shown]})


def _draw_tools(tools: list[JsonObject]) -> None:
    _draw_heading("Tools")
    if not tools:
        draw_empty("No tool was called.")
        return
    sums = sum_tools(tools)[:_MAX_ROWS]
    names = [row["tool"] for row in sums[:20]]
    draw_chart(
        "Calls by tool",
        names,
        {
            "ok": [row["calls"] - row["errors"] - row["denied"] for row in sums[:20]],
            "error": [row["errors"] for row in sums[:20]],
            "denied": [row["denied"] for row in sums[:20]],
        },
        is_stacked=True,
    )
    rows = [
        [
            row["tool"],
            row["server"],
            f"{row['calls']:,}",
            f"{row['errors']:,}",
            f"{row['denied']:,}",
            format_milliseconds(row["duration_ms"]),
        ]
        for row in sums
    ]
    draw_table(["Tool", "Server", "Calls", "Errors", "Denied", "Mean time"], rows)


def sum_tools(tools: list[JsonObject]) -> list[JsonObject]:
    """Sum the days of each tool, the most called first."""
    sums: dict[tuple[str, str], JsonObject] = {}
    for row in tools:
        empty = {"tool": row["tool"], "server": row["server"], "calls": 0, "errors": 0, "denied": 0, "time": 0.0}
        found = sums.setdefault((row["server"], row["tool"]), empty)
        for name in ("calls", "errors", "denied"):
            found[name] += row[name]
        found["time"] += (row["duration_ms"] or 0.0) * row["calls"]
    for row in sums.values():
        row["duration_ms"] = row["time"] / row["calls"] if row["calls"] else None
    return sorted(sums.values(), key=lambda row: -row["calls"])


def _draw_heading(text: str) -> None:
    ui.label(text).classes("text-lg font-medium").props('role="heading" aria-level="2"')


async def draw_usage(api: Api) -> None:
    with frame(api, "Usage and cost", "/usage"):
        await UsagePage(api).draw()

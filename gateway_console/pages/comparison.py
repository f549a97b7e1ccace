"""`/compare/{left}/{right}`: two turns side by side."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.content import draw_json, shorten
from gateway_console.components.controls import draw_badge, format_cost, format_milliseconds
from gateway_console.components.tables import draw_table
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_FIGURES = {
    "model": "Model",
    "status": "Status",
    "finish_reason": "Finish reason",
    "steps": "Steps",
    "calls": "Calls",
    "prompt_tokens": "Prompt tokens",
    "completion_tokens": "Completion tokens",
    "cost_usd": "Cost",
    "duration_ms": "Time",
    "first_token_ms": "First token",
    "tool_ms": "Time of tools",
}


async def draw_comparison(api: Api, left_id: str, right_id: str) -> None:
    with frame(api, "Comparison", "/conversations"):
        try:
            comparison = await api.get(quote_path("api", "v1", "turns", left_id, "compare", right_id))
        except ApiError as error:
            draw_error(error)
            return
        with ui.row():
            ui.link("First turn", f"/turns/{comparison['left']['turn_id']}").classes("plain-link")
            ui.link("Second turn", f"/turns/{comparison['right']['turn_id']}").classes("plain-link")
            draw_badge("Equal answers" if comparison["same_response"] else "Different answers")
            if comparison["truncated"]:
                draw_badge("Long texts were cut", "warning")
        _draw_figures(comparison)
        for step in comparison["steps"]:
            _draw_step(step)


def _draw_figures(comparison: JsonObject) -> None:
    rows = [
        [title, *(_format(name, comparison[side].get(name)) for side in ("left", "right", "difference"))]
        for name, title in _FIGURES.items()
    ]
    draw_table(["", "First", "Second", "Difference"], rows)


def _format(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "cost_usd":
        return format_cost(value)
    if name.endswith("_ms"):
        return f"-{format_milliseconds(-value)}" if value < 0 else format_milliseconds(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _draw_step(step: JsonObject) -> None:
    with ui.row().classes("items-center q-mt-md"):
        ui.label(f"Step {step['step']}").classes("text-lg font-medium").props('role="heading" aria-level="2"')
        draw_badge("equal texts" if step["same_text"] else "different texts")
        draw_badge("equal calls" if step["same_calls"] else "different calls")
    with ui.element("div").classes("two-columns"):
        for side in ("left", "right"):
            with ui.element("div").classes("card"):
                _draw_side(step[side])


def _draw_side(side: JsonObject | None) -> None:
    if side is None:
        ui.label("No such step").classes("muted")
        return
    if side["text"]:
        ui.label(shorten(side["text"])).classes("streamed")
    for call in side["calls"]:
        with ui.row().classes("items-center"):
            ui.label(call["tool"]).classes("font-medium")
            if call["outcome"]:
                draw_badge(call["outcome"])
            ui.label(call["source"] or "").classes("muted text-sm")
        draw_json(call["arguments"])
        ui.label(shorten(call["result"], 2_000)).classes("plain muted")
    cost = "" if side["cost_usd"] is None else f" · {format_cost(side['cost_usd'])}"
    ui.label(f"{side['prompt_tokens']:,} + {side['completion_tokens']:,} tokens{cost}").classes("muted text-sm")

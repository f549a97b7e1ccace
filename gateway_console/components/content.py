"""Results of tools: text, images, audio, tables, pages of MCP Apps."""

import json
from collections.abc import Sequence
from typing import Any, cast

from nicegui import ui

from gateway_console.components.app_frame import draw_frame
from gateway_console.components.charts import draw_chart

JsonObject = dict[str, Any]
MAX_TEXT_CHARACTERS = 20_000
_MAX_OPEN_CHARACTERS = 1_500
"""Characters of a text that is shown at its full height.

A longer one scrolls.
"""
_MAX_ROWS = 200
_MIN_CHART_ROWS = 2
_MAX_SERIES = 6
_MAX_NUMBER = 1e300
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_AUDIO_TYPES = ("audio/wav", "audio/mpeg", "audio/ogg", "audio/webm", "audio/mp4")


def shorten(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit} more characters"


def draw_json(value: object) -> None:
    """Show a value as indented JSON text."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    ui.label(shorten(text)).classes("plain")


def draw_result(content: Sequence[JsonObject], structured: object) -> None:
    """Show a tool's result.

    A list of records in `structured` becomes a table.
    """
    rows = find_rows(structured)
    for block in content:
        if not rows or not _is_text_of(block, structured):
            draw_block(block)
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))[:20]
        columns = [{"name": name, "label": name, "field": name, "align": "left"} for name in names]
        cells = [{name: _format_cell(row.get(name)) for name in names} for row in rows[:_MAX_ROWS]]
        ui.table(columns=columns, rows=cells, pagination=10).classes("w-full").props("flat dense bordered")
        _draw_numbers(rows[:_MAX_ROWS])


def _is_text_of(block: JsonObject, structured: object) -> bool:
    """Return whether a block repeats the structured result."""
    try:
        return block.get("type") == "text" and json.loads(str(block.get("text"))) == structured
    except ValueError:
        return False


def draw_block(block: JsonObject) -> None:
    mime_type, data = str(block.get("mimeType") or ""), block.get("data")
    match block.get("type"):
        case "text":
            _draw_text(str(block.get("text", "")))
        case "image" if mime_type in _IMAGE_TYPES and isinstance(data, str):
            ui.image(f"data:{mime_type};base64,{data}").style("max-width:28rem").props('alt="Image of the tool"')
        case "audio" if mime_type in _AUDIO_TYPES and isinstance(data, str):
            ui.audio(f"data:{mime_type};base64,{data}")
        case "resource" if isinstance(block.get("resource"), dict):
            _draw_resource(cast(JsonObject, block["resource"]))
        case _:
            draw_json({name: value for name, value in block.items() if name != "data"})


def _draw_text(text: str) -> None:
    label = ui.label(shorten(text)).classes("plain")
    if len(text) > _MAX_OPEN_CHARACTERS:
        label.classes("long-text").props('tabindex=0 role="region" aria-label="Text of the result"')


def _draw_resource(resource: JsonObject) -> None:
    """Show an embedded resource.

    HTML of an MCP App runs in a frame without an origin.
    """
    mime_type, text = str(resource.get("mimeType") or ""), resource.get("text")
    ui.label(str(resource.get("uri", ""))).classes("muted plain")
    if not isinstance(text, str):
        return
    if mime_type.startswith("text/html") and str(resource.get("uri", "")).startswith("ui://"):
        draw_frame(text)
    else:
        ui.label(shorten(text)).classes("plain")


def find_rows(structured: object) -> list[JsonObject]:
    """Return the records of a structured result.

    They are a list of objects, or the only such list of an object.
    """
    if isinstance(structured, dict):
        values = cast(JsonObject, structured).values()
        lists = [cast(list[Any], value) for value in values if isinstance(value, list)]
        return _only_records(lists[0]) if len(lists) == 1 else []
    return _only_records(cast(list[Any], structured)) if isinstance(structured, list) else []


def _draw_numbers(rows: list[JsonObject]) -> None:
    """Draw a chart of records that have a name and numbers."""
    if (found := find_series(rows)) is not None:
        names, series = found
        draw_chart("", names, series)


def find_series(rows: list[JsonObject]) -> tuple[list[str], dict[str, list[float]]] | None:
    """Return names and numbers of records; None if they are no series.

    The first field with a text in each record has the names; fields with a number in each record are the series.
    """
    if len(rows) < _MIN_CHART_ROWS:
        return None
    fields = [name for name in rows[0] if all(name in row for row in rows)]
    texts = [name for name in fields if all(isinstance(row[name], str) for row in rows)]
    numbers = [name for name in fields if name != "id" and all(_is_number(row[name]) for row in rows)]
    if not texts or not numbers:
        return None
    names = [str(row[texts[0]])[:60] for row in rows]
    return names, {name[:60]: [row[name] for row in rows] for name in numbers[:_MAX_SERIES]}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _only_records(items: list[Any]) -> list[JsonObject]:
    return cast(list[JsonObject], items) if items and all(isinstance(item, dict) for item in items) else []


def _format_cell(value: object) -> str:
    if isinstance(value, str | int | float | bool) or value is None:
        return "" if value is None else str(value)[:500]
    return json.dumps(value, ensure_ascii=False)[:500]

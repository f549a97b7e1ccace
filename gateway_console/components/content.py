"""Results of tools: text, images, audio, tables, pages of MCP Apps."""

import json
from collections.abc import Sequence
from typing import Any, cast

from nicegui import ui

JsonObject = dict[str, Any]
MAX_TEXT_CHARACTERS = 20_000
_MAX_ROWS = 200
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
    for block in content:
        draw_block(block)
    rows = find_rows(structured)
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))[:20]
        columns = [{"name": name, "label": name, "field": name, "align": "left"} for name in names]
        cells = [{name: _format_cell(row.get(name)) for name in names} for row in rows[:_MAX_ROWS]]
        ui.table(columns=columns, rows=cells, pagination=10).classes("w-full").props("flat dense bordered")


def draw_block(block: JsonObject) -> None:
    mime_type, data = str(block.get("mimeType") or ""), block.get("data")
    match block.get("type"):
        case "text":
            ui.label(shorten(str(block.get("text", "")))).classes("plain")
        case "image" if mime_type in _IMAGE_TYPES and isinstance(data, str):
            ui.image(f"data:{mime_type};base64,{data}").style("max-width:28rem").props('alt="Image of the tool"')
        case "audio" if mime_type in _AUDIO_TYPES and isinstance(data, str):
            ui.audio(f"data:{mime_type};base64,{data}")
        case "resource" if isinstance(block.get("resource"), dict):
            _draw_resource(cast(JsonObject, block["resource"]))
        case _:
            draw_json({name: value for name, value in block.items() if name != "data"})


def _draw_resource(resource: JsonObject) -> None:
    """Show an embedded resource.

    HTML of an MCP App runs in a frame without an origin.
    """
    mime_type, text = str(resource.get("mimeType") or ""), resource.get("text")
    ui.label(str(resource.get("uri", ""))).classes("muted plain")
    if not isinstance(text, str):
        return
    if mime_type.startswith("text/html") and str(resource.get("uri", "")).startswith("ui://"):
        frame = (
            ui.element("iframe").classes("w-full").style("height:24rem;border:1px solid var(--line);border-radius:8px")
        )
        frame.props.update({"srcdoc": text, "sandbox": "allow-scripts", "title": "MCP App"})
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


def _only_records(items: list[Any]) -> list[JsonObject]:
    return cast(list[JsonObject], items) if items and all(isinstance(item, dict) for item in items) else []


def _format_cell(value: object) -> str:
    if isinstance(value, str | int | float | bool) or value is None:
        return "" if value is None else str(value)[:500]
    return json.dumps(value, ensure_ascii=False)[:500]

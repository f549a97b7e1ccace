"""Buttons, dialogs and texts that all pages share."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from html import escape
from typing import Any

from nicegui import ui

from gateway_console.api import ApiError
from gateway_console.layout import notify_error


@contextmanager
def report_errors() -> Generator[None]:
    """Show an error of the gateway as a notification."""
    try:
        yield
    except ApiError as error:
        notify_error(error)


def draw_icon_button(icon: str, name: str, on_click: Callable[..., Any]) -> ui.button:
    button = ui.button(icon=icon, on_click=on_click).props("flat dense round size=sm").tooltip(name)
    button.props["aria-label"] = name  # `props()` would parse a name of others
    return button


def draw_badge(text: str, tone: str = "plain") -> ui.label:
    """Draw a short state; `tone` is plain, good, warning or bad."""
    return ui.label(text).classes(f"state state-{tone}")


def draw_fields(fields: dict[str, object]) -> None:
    """Draw names and values as a description list."""
    with ui.element("dl").classes("fields"):
        for name, value in fields.items():
            if value not in (None, "", [], {}):
                with ui.element("dt"):
                    ui.label(name)
                with ui.element("dd"):
                    ui.label(", ".join(map(str, value)) if isinstance(value, list) else str(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def draw_empty(text: str) -> None:
    ui.label(text).classes("muted q-py-md")


@contextmanager
def open_dialog(title: str, *, is_open: bool = True) -> Generator[ui.dialog]:
    """Draw a dialog, whose content the block draws.

    Screen readers say its title.
    """
    with ui.dialog(value=is_open) as dialog, ui.card().classes("dialog"):
        dialog.props["aria-label"] = title  # `props()` would parse a name of others
        yield dialog


async def confirm(question: str, action: str) -> bool:
    """Ask a person; return whether the answer was the action."""
    with open_dialog(question, is_open=False) as dialog:
        ui.label(question).style("white-space:pre-wrap;overflow-wrap:anywhere")
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            ui.button(action, on_click=lambda: dialog.submit(True)).props("no-caps color=negative")
    return bool(await _await_and_delete(dialog))


async def ask_text(title: str, value: str, action: str, *, multi_line: bool = False) -> str | None:
    """Ask a person for a text; return None if it was left."""
    with open_dialog(action, is_open=False) as dialog:
        field = ui.textarea(title, value=value) if multi_line else ui.input(title, value=value)
        field.props("outlined autofocus").classes("w-full")
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=lambda: dialog.submit(None)).props("flat no-caps")
            ui.button(action, on_click=lambda: dialog.submit(field.value)).props("no-caps")
    text = str(await _await_and_delete(dialog) or "").strip()
    return text or None


async def _await_and_delete(dialog: ui.dialog) -> Any:
    try:
        return await dialog
    finally:
        dialog.delete()


def mark_snippet(snippet: str) -> str:
    """Return a search snippet as HTML; only its marks are elements."""
    return escape(snippet).replace("&lt;mark&gt;", "<mark>").replace("&lt;/mark&gt;", "</mark>")


def format_time(value: object) -> str:
    """Format a time of the API in UTC, to the second."""
    try:
        return f"{datetime.fromisoformat(str(value)):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return ""


def format_cost(value: float | None) -> str:
    if value is None:
        return "unknown"
    sign, size = "-" if value < 0 else "", abs(value)
    return f"{sign}${size:,.5f}" if size < 1 else f"{sign}${size:,.2f}"


def format_milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} ms" if value < 1_000 else f"{value / 1_000:,.1f} s"

"""Dialogs with a form, which stay open while the gateway refuses it."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from gateway_console.api import ApiError
from gateway_console.components.controls import open_dialog
from gateway_console.components.schema_form import FormError, SchemaForm

JsonObject = dict[str, Any]


def ask_form(
    title: str,
    schema: JsonObject,
    values: JsonObject,
    action: str,
    save: Callable[[JsonObject], Awaitable[None]],
    note: str = "",
) -> None:
    """Ask for the values of a schema, and save them."""
    with open_dialog(title) as dialog:
        _draw_title(title, note)
        form = SchemaForm(schema, values)

        async def submit() -> None:
            await save(form.read())

        draw_dialog_actions(dialog, action, submit)


def ask_changes(
    title: str,
    schema: JsonObject,
    values: JsonObject,
    change: Callable[[JsonObject], Awaitable[None]],
    note: str = "",
    action: str = "Save",
) -> None:
    """Ask for other values of a schema, and save those that differ."""
    with open_dialog(title) as dialog:
        _draw_title(title, note)
        form = SchemaForm(schema, values)

        async def submit() -> None:
            if changes := form.read_changes():
                await change(changes)

        draw_dialog_actions(dialog, action, submit)


def _draw_title(title: str, note: str) -> None:
    ui.label(title).classes("text-lg").style("overflow-wrap:anywhere")
    if note:
        ui.label(note).classes("muted").style("overflow-wrap:anywhere")


def draw_dialog_actions(dialog: ui.dialog, action: str, save: Callable[[], Awaitable[None]]) -> None:
    """Draw the buttons of a dialog.

    An error of `save` is shown in it.
    """
    problem = ui.label().classes("text-negative").props('role="alert"').style("overflow-wrap:anywhere")

    async def submit() -> None:
        problem.set_text("")
        try:
            await save()
        except (ApiError, FormError) as error:
            problem.set_text(str(error))
            return
        dialog.close()

    with ui.row().classes("w-full justify-end"):
        ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
        ui.button(action, on_click=submit).props("no-caps")
    dialog.on("hide", dialog.delete)

"""Questions and approvals that a turn waits for."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from gateway_console.components.schema_form import FormError, SchemaForm

JsonObject = dict[str, Any]
_BUTTONS = {"approval": "Approve", "question": "Answer"}


def draw_question(
    event: JsonObject, arguments: object, answer: Callable[[str, str, JsonObject | None], Awaitable[None]]
) -> ui.element:
    """Draw a question about a call with these arguments.

    Return the element, which the caller deletes after the answer.
    """
    with ui.element("div").classes("card question").style("border-color:#2456c9;border-width:2px") as card:
        ui.label(str(event["message"])).classes("font-medium").style("white-space:pre-wrap;overflow-wrap:anywhere")
        url = str(event.get("url") or "")
        if url.startswith(("http://", "https://")):
            ui.label(url).classes("muted plain")
            ui.link("Open the page", url, new_tab=True).props('rel="noopener noreferrer"')
        read = _draw_form(event, arguments)
        problem = ui.label().props('role="alert"').classes("text-negative")

        async def send(action: str) -> None:
            content: JsonObject | None = None
            problem.set_text("")
            if action == "accept":
                try:
                    content = read()
                except FormError as error:
                    problem.set_text(str(error))
                    return
            await answer(event["input_id"], action, content)

        async def accept() -> None:
            await send("accept")

        async def decline() -> None:
            await send("decline")

        with ui.row():
            ui.button(_BUTTONS.get(event["kind"], "Continue"), on_click=accept).props("no-caps")
            ui.button("Decline", on_click=decline).props("outline no-caps")
    return card


def _draw_form(event: JsonObject, arguments: object) -> Callable[[], JsonObject | None]:
    """Draw the form of an answer; return the function that reads it."""
    schema: JsonObject = event.get("schema") or {}
    if event["kind"] == "question":
        return SchemaForm(schema).read
    properties: JsonObject = schema.get("properties") or {}
    if event["kind"] != "approval" or not isinstance(arguments, dict) or not properties.get("arguments"):
        return lambda: None
    with ui.expansion("Change the arguments", icon="edit").classes("w-full").props("dense"):
        form = SchemaForm(properties["arguments"], arguments)  # pyright: ignore[reportUnknownArgumentType]

    def read_arguments() -> JsonObject | None:
        changed = form.read_if_changed()
        return None if changed is None else {"arguments": changed}

    return read_arguments

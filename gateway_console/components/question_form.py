"""Questions and approvals that a turn waits for."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from gateway_console.components.schema_form import FormError, SchemaForm

JsonObject = dict[str, Any]


def draw_question(event: JsonObject, answer: Callable[[str, str, JsonObject | None], Awaitable[None]]) -> ui.element:
    """Draw a question with its form.

    Return the element, which the caller deletes after the answer.
    """
    schema: JsonObject = event.get("schema") or {}
    with ui.element("div").classes("card question").style("border-color:#2456c9;border-width:2px") as card:
        ui.label(str(event["message"])).classes("font-medium").style("white-space:pre-wrap;overflow-wrap:anywhere")
        url = str(event.get("url") or "")
        if url.startswith(("http://", "https://")):
            ui.label(url).classes("muted plain")
            ui.link("Open the page", url, new_tab=True).props('rel="noopener noreferrer"')
        form = SchemaForm(schema) if event["kind"] == "question" else None
        problem = ui.label().props('role="alert"').classes("text-negative")

        async def send(action: str) -> None:
            content: JsonObject | None = None
            if action == "accept" and form is not None:
                try:
                    content = form.read()
                except FormError as error:
                    problem.set_text(str(error))
                    return
            await answer(event["input_id"], action, content)

        async def accept() -> None:
            await send("accept")

        async def decline() -> None:
            await send("decline")

        with ui.row():
            name = {"approval": "Approve", "question": "Answer"}.get(event["kind"], "Continue")
            ui.button(name, on_click=accept).props("no-caps")
            ui.button("Decline", on_click=decline).props("outline no-caps")
    return card

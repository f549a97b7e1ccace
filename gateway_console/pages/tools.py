"""`/tools`: all tools; `/tools/{name}`: one with a form to try it."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.content import draw_json, draw_result
from gateway_console.components.controls import draw_badge, draw_empty, draw_fields, format_milliseconds, report_errors
from gateway_console.components.schema_form import FormError, SchemaForm
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_MAX_SHOWN = 200
_HINTS = {
    "read_only": "read-only",
    "destructive": "destructive",
    "idempotent": "idempotent",
    "open_world": "open world",
}


async def draw_tools(api: Api) -> None:
    """Draw the list of tools, which a word narrows."""
    with frame(api, "Tools", "/tools"):
        try:
            tools: list[JsonObject] = (await api.get("/api/v1/tools"))["tools"]
        except ApiError as error:
            draw_error(error)
            return
        query = ui.input("Filter by name, server or description").props("outlined dense clearable").classes("w-full")
        items = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')

        def show() -> None:
            items.clear()
            with items:
                _draw_list(tools, str(query.value or "").lower())

        query.on_value_change(show)
        show()


def _draw_list(tools: list[JsonObject], word: str) -> None:
    found = [
        tool
        for tool in tools
        if any(word in str(tool[field] or "").lower() for field in ("name", "title", "server", "description"))
    ]
    if not found:
        draw_empty("There is no such tool.")
    for tool in found[:_MAX_SHOWN]:
        with ui.element("div").classes("card"):
            with ui.row().classes("items-center w-full gap-2"):
                ui.link(tool["name"], quote_path("tools", tool["name"])).classes("title-link")
                ui.label(tool["server"]).classes("muted")
                ui.space()
                _draw_hints(tool)
            ui.label(tool["description"].partition("\n")[0][:300]).classes("text-sm streamed")
    if len(found) > _MAX_SHOWN:
        draw_empty(f"{len(found) - _MAX_SHOWN:,} more. Narrow the list with a word.")


def _draw_hints(tool: JsonObject) -> None:
    if tool["server_state"] != "up":
        draw_badge(f"server {tool['server_state']}", "warning")
    for name, title in _HINTS.items():
        if tool["annotations"][name]:
            draw_badge(title, "warning" if name == "destructive" else "plain")


async def draw_tool(api: Api, name: str) -> None:
    """Draw a tool with a form of its arguments."""
    with frame(api, name, "/tools"):
        try:
            tools: list[JsonObject] = (await api.get("/api/v1/tools"))["tools"]
        except ApiError as error:
            draw_error(error)
            return
        tool = next((each for each in tools if each["name"] == name), None)
        if tool is None:
            draw_error(ApiError(404, "There is no such tool, or you may not use it."))
            return
        with ui.row().classes("items-center gap-2"):
            draw_fields({"Server": tool["server"], "Title": tool["title"]})
            _draw_hints(tool)
        ui.label(tool["description"]).classes("streamed q-my-sm")
        with ui.expansion("Schemas").classes("w-full").props("dense"):
            draw_json({"input": tool["input_schema"], "output": tool["output_schema"]})
        TrialForm(api, tool).draw()


class TrialForm:
    """A form that calls a tool once."""

    def __init__(self, api: Api, tool: JsonObject) -> None:
        self._api = api
        self._tool = tool

    def draw(self) -> None:
        with ui.element("section").classes("card q-mt-sm").props('aria-label="Try the tool"'):
            self._form = SchemaForm(self._tool["input_schema"])
            self._problem = ui.label().classes("text-negative").props('role="alert"')
            self._button = ui.button("Call the tool", icon="play_arrow", on_click=self._call).props("no-caps")
            if self._api.session.role == "viewer":
                self._button.disable()
                ui.label("Your role may call no tools.").classes("muted")
        self._result = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')

    async def _call(self) -> None:
        self._problem.set_text("")
        try:
            arguments = self._form.read()
        except FormError as error:
            self._problem.set_text(str(error))
            return
        self._button.disable()
        self._result.clear()
        try:
            with report_errors():
                self._draw_result(await self._api.post(quote_path("api", "v1", "tools", self._tool["name"]), arguments))
        finally:
            self._button.enable()

    def _draw_result(self, result: JsonObject) -> None:
        with self._result, ui.element("section").classes("card").props('aria-label="Result"'):
            with ui.row().classes("items-center gap-2"):
                draw_badge(result["outcome"], "good" if result["outcome"] == "ok" else "bad")
                ui.label(format_milliseconds(result["duration_ms"])).classes("muted")
            draw_result(result["content"], result["structured"])
            if result["structured"] is not None:
                with ui.expansion("Structured result").classes("w-full").props("dense"):
                    draw_json(result["structured"])

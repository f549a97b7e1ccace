"""`/definitions`: make, edit, test, publish and delete tools; import an OpenAPI document."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import (
    confirm,
    draw_badge,
    draw_empty,
    draw_fields,
    format_time,
    report_errors,
)
from gateway_console.components.dialogs import ask_changes, ask_form
from gateway_console.components.diff import draw_diff
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_PATH = ("api", "v1", "tools", "definitions")
_TONES = {"published": "good", "draft": "plain", "changed": "warning"}
_STATES = {"changed": "changed since it was published"}
_OBJECT = {"type": "object", "additionalProperties": True}
_FIELDS: JsonObject = {
    "title": {"type": "string", "title": "Title"},
    "description": {"type": "string", "title": "Description", "description": "Tells the model what the tool does."},
    "method": {"enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], "default": "GET", "title": "Method"},
    "url": {
        "type": "string",
        "title": "URL",
        "description": "A template such as https://api.example.com/users/{id}{?fields}",
    },
    "input_schema": {**_OBJECT, "title": "Schema of the arguments"},
    "query": {"type": "array", "title": "Query"},
    "headers": {**_OBJECT, "title": "Headers", "description": 'Such as {"Authorization": "Bearer {secret.token}"}'},
    "body": {"title": "Body", "description": "A template, in which {name} is an argument."},
    "form": {"type": "array", "title": "Form, instead of a body"},
    "result": {**_OBJECT, "title": "Part of the answer that is shown"},
    "annotations": {**_OBJECT, "title": "Hints"},
    "timeout_seconds": {"type": "number", "minimum": 0.1, "maximum": 120, "title": "Timeout in seconds"},
    "secrets": {**_OBJECT, "title": "Secrets to set", "description": "Names and values. They are never shown again."},
}
_REQUIRED = ["description", "url"]
_IMPORT: JsonObject = {
    "type": "object",
    "properties": {
        "document": {"type": "string", "title": "Document (JSON or YAML)"},
        "url": {"type": "string", "title": "Or its URL", "format": "uri"},
        "operations": {"type": "array", "title": "Only these operations", "description": "Globs over ids or paths."},
        "prefix": {"type": "string", "title": "Prefix of the names"},
        "secrets": {**_OBJECT, "title": "Secrets"},
        "publish": {"type": "boolean", "title": "Publish at once", "default": False},
    },
}


class DefinitionsPage:
    """The definitions, and what an import would change."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def draw(self) -> None:
        with ui.row():
            ui.button("New tool", icon="add", on_click=self._ask_new).props("no-caps")
            ui.button("Import OpenAPI", icon="upload", on_click=self._ask_import).props("outline no-caps")
        self._report = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')
        self._items = ui.column().classes("w-full gap-2 q-mt-md")
        await self._load()

    async def _load(self) -> None:
        self._items.clear()
        with self._items:
            try:
                definitions: list[JsonObject] = (await self._api.get(quote_path(*_PATH)))["definitions"]
            except ApiError as error:
                draw_error(error, self._load)
                return
            if not definitions:
                draw_empty("No tool is defined. Make one, or import an OpenAPI document.")
            for definition in definitions[:500]:
                self._draw_definition(definition)

    def _draw_definition(self, definition: JsonObject) -> None:
        name = definition["name"]
        with ui.element("section").classes("card definition"):
            with ui.row().classes("items-center w-full gap-2"):
                ui.label(name).classes("font-medium")
                draw_badge(str(_STATES.get(definition["state"], definition["state"])), _TONES[definition["state"]])
                ui.space()
                if definition["state"] != "published":
                    _draw_action("Publish", name, lambda: self._publish(definition))
                _draw_action("Test", name, lambda: self._test(name))
                _draw_action("Edit", name, lambda: self._edit(name))
                _draw_action("Delete", name, lambda: self._delete(name))
            ui.label(str(definition["description"] or "")).classes("text-sm streamed")
            draw_fields(
                {
                    "Request": f"{definition['method']} {definition['url']}",
                    "Secrets": [
                        key if state["is_set"] else f"{key} (not set)" for key, state in definition["secrets"].items()
                    ],
                    "Fault": definition["fault"],
                    "Changed": f"{format_time(definition['updated_at'])} UTC by {definition['updated_by']}",
                }
            )

    async def _ask_new(self) -> None:
        async def create(values: JsonObject) -> None:
            await self._api.post(quote_path(*_PATH), values)
            await self._load()

        properties = {"name": {"type": "string", "title": "Name"}, **_FIELDS}
        schema = {"type": "object", "required": ["name", *_REQUIRED], "properties": properties}
        ask_form("New tool", schema, {"input_schema": {"type": "object", "properties": {}}}, "Save the draft", create)

    async def _edit(self, name: str) -> None:
        with report_errors():
            stored: JsonObject = await self._api.get(quote_path(*_PATH, name))
            values: JsonObject = {field: stored["definition"].get(field) for field in _FIELDS if field != "secrets"}

            async def save(changes: JsonObject) -> None:
                await self._api.patch(quote_path(*_PATH, name), {**changes, "revision": stored["revision"]})
                await self._load()

            schema = {"type": "object", "required": _REQUIRED, "properties": _FIELDS}
            ask_changes(f"Edit {name}", schema, values, save, action="Save the draft")

    async def _test(self, name: str) -> None:
        with report_errors():
            stored: JsonObject = await self._api.get(quote_path(*_PATH, name))

            async def run(arguments: JsonObject) -> None:
                result = await self._api.post(quote_path(*_PATH, name, "test"), {"arguments": arguments})
                with self._report, ui.element("section").classes("card").props('aria-label="Result of the test"'):
                    draw_badge("error" if result["is_error"] else "ok", "bad" if result["is_error"] else "good")
                    ui.label(result["text"]).classes("plain")

            self._report.clear()
            ask_form(f"Test {name}", stored["definition"]["input_schema"], {}, "Send the request", run)

    async def _publish(self, definition: JsonObject) -> None:
        with report_errors():
            path = quote_path(*_PATH, definition["name"], "publish")
            await self._api.post(path, {"revision": definition["revision"]})
            await self._load()

    async def _delete(self, name: str) -> None:
        if await confirm(f"Delete the tool {name}, its draft and what is published?", "Delete"):
            with report_errors():
                await self._api.delete(quote_path(*_PATH, name))
                await self._load()

    async def _ask_import(self) -> None:
        async def show(values: JsonObject) -> None:
            report = await self._api.post(quote_path(*_PATH, "import"), values)
            self._report.clear()
            with self._report:
                self._draw_report(report, values)

        ask_form("Import an OpenAPI 3 document", _IMPORT, {}, "Show what would change", show)

    def _draw_report(self, report: JsonObject, body: JsonObject) -> None:
        with ui.element("section").classes("card").props('aria-label="Import"'):
            title = "Imported" if report["applied"] else "This would change"
            ui.label(f"{title}: {report['document']}").classes("font-medium")
            for name, description in report["secrets"].items():
                ui.label(f"Secret {name}: {description}").classes("text-sm")
            for operation in report["operations"][:500]:
                _draw_operation(operation)
            if not report["applied"]:

                async def apply() -> None:
                    with report_errors():
                        applied = await self._api.post(quote_path(*_PATH, "import"), {**body, "apply": True})
                        self._report.clear()
                        with self._report:
                            self._draw_report(applied, body)
                        await self._load()

                ui.button("Import", on_click=apply).props("no-caps").classes("q-mt-sm")


def _draw_operation(operation: JsonObject) -> None:
    with ui.row().classes("items-center gap-2"):
        draw_badge(
            operation["action"], {"add": "good", "skip": "warning", "lost": "bad"}.get(operation["action"], "plain")
        )
        ui.label(operation["operation"]).classes("plain")
        ui.label(operation["name"] or "").classes("font-medium")
    for text in (operation["reason"], *operation["notes"]):
        if text:
            ui.label(text).classes("muted text-sm q-ml-md")
    for field, (was, now) in operation["changes"].items():
        ui.label(field).classes("text-sm q-ml-md")
        draw_diff(was, now)


def _draw_action(action: str, name: str, on_click: Any) -> None:
    button = ui.button(action, on_click=on_click).props("outline no-caps dense").classes("q-px-sm")
    button.props["aria-label"] = f"{action} {name}"


async def draw_definitions(api: Api) -> None:
    with frame(api, "Defined tools", "/definitions"):
        await DefinitionsPage(api).draw()

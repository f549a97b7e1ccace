"""`/resources`: resources and prompts of the MCP servers."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.content import draw_block
from gateway_console.components.controls import draw_empty
from gateway_console.components.schema_form import FormError, SchemaForm
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_MAX_SHOWN = 200


async def draw_resources(api: Api) -> None:
    with frame(api, "Resources and prompts", "/resources"):
        try:
            resources: JsonObject = await api.get("/api/v1/mcp/resources")
            prompts: list[JsonObject] = (await api.get("/api/v1/mcp/prompts"))["prompts"]
        except ApiError as error:
            draw_error(error)
            return
        _draw_heading("Resources")
        for resource in _limit(resources["resources"], "There are no resources."):
            _draw_resource(api, resource)
        _draw_heading("Templates")
        for template in _limit(resources["templates"], "There are no resource templates."):
            _draw_template(api, template)
        _draw_heading("Prompts")
        for prompt in _limit(prompts, "There are no prompts."):
            _draw_prompt(api, prompt)


def _draw_heading(text: str) -> None:
    ui.label(text).classes("text-lg font-medium q-mt-md q-mb-xs").props('role="heading" aria-level="2"')


def _limit(items: list[JsonObject], empty: str) -> list[JsonObject]:
    if not items:
        draw_empty(empty)
    if len(items) > _MAX_SHOWN:
        draw_empty(f"The first {_MAX_SHOWN} of {len(items):,}:")
    return items[:_MAX_SHOWN]


def _open_card(item: JsonObject, name: str) -> ui.element:
    with ui.element("div").classes("card q-mb-sm") as card:
        with ui.row().classes("items-center gap-2"):
            ui.label(name).classes("font-medium").style("overflow-wrap:anywhere")
            ui.label(str(item.get("server") or "")).classes("muted")
            ui.label(str(item.get("mimeType") or "")).classes("muted")
        ui.label(str(item.get("description") or "")).classes("text-sm streamed")
    return card


def _draw_resource(api: Api, resource: JsonObject) -> None:
    uri = str(resource.get("uri") or "")
    with _open_card(resource, str(resource.get("title") or resource.get("name") or uri)):
        ui.label(uri).classes("plain muted")
        _draw_request("Read", lambda: _read(api, uri, resource.get("server")))


def _draw_template(api: Api, template: JsonObject) -> None:
    pattern = str(template.get("uriTemplate") or "")
    with _open_card(template, str(template.get("title") or template.get("name") or pattern)):
        uri = ui.input("URI", value=pattern).props("outlined dense").classes("w-full")
        _draw_request("Read", lambda: _read(api, str(uri.value or ""), template.get("server")))


def _draw_prompt(api: Api, prompt: JsonObject) -> None:
    name = str(prompt.get("name") or "")
    arguments = [cast(JsonObject, each) for each in prompt.get("arguments") or () if isinstance(each, dict)]
    schema = {
        "type": "object",
        "required": [str(each.get("name")) for each in arguments if each.get("required")],
        "properties": {str(each.get("name")): {**each, "type": "string"} for each in arguments},
    }
    with _open_card(prompt, str(prompt.get("title") or name)):
        form = SchemaForm(schema)

        async def fill_in() -> list[JsonObject]:
            path = quote_path("api", "v1", "mcp", "prompts", name)
            messages = (await api.post(path, {"arguments": form.read()}))["messages"]
            return [cast(JsonObject, message.get("content") or {}) for message in messages]

        _draw_request("Fill in", fill_in)


async def _read(api: Api, uri: str, server: object) -> list[JsonObject]:
    contents = (await api.get("/api/v1/mcp/resources/read", uri=uri, server=server))["contents"]
    return [_to_block(cast(JsonObject, content)) for content in contents]


def _to_block(content: JsonObject) -> JsonObject:
    """Return a resource's content as the block that draws it."""
    mime_type = str(content.get("mimeType") or "")
    kind = mime_type.partition("/")[0]
    if isinstance(content.get("blob"), str) and kind in ("image", "audio"):
        return {"type": kind, "mimeType": mime_type, "data": content["blob"]}
    return {"type": "resource", "resource": content}


def _draw_request(name: str, request: Callable[[], Awaitable[list[JsonObject]]]) -> None:
    with ui.column().classes("w-full gap-1"):
        button = ui.button(name).props("outline no-caps dense").classes("q-px-sm")
        problem = ui.label().classes("text-negative").props('role="alert"')
        result = ui.column().classes("w-full gap-1").props('aria-live="polite"')

    async def run() -> None:
        problem.set_text("")
        result.clear()
        try:
            blocks = await request()
        except (ApiError, FormError) as error:
            problem.set_text(str(error))
            return
        with result:
            for block in blocks:
                draw_block(block)

    button.on_click(run)

"""Pages of MCP Apps that show the results of tools."""

from typing import Any, cast

from nicegui import ui

from gateway_console.api import Api, ApiError
from gateway_console.components.app_frame import draw_frame

JsonObject = dict[str, Any]


class AppPages:
    """Pages of tools, which a person opens."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._uris: dict[tuple[str, str], str] | None = None

    def draw(self, call: JsonObject, result: JsonObject) -> None:
        """Draw the button of a call's page, if its tool has one."""
        place = ui.column().classes("w-full")
        ui.timer(0, lambda: self._offer(place, call, result), once=True)

    async def _offer(self, place: ui.column, call: JsonObject, result: JsonObject) -> None:
        uri = (await self._load_uris()).get((str(call.get("server")), str(call["tool"])))
        if uri is not None:
            with place:
                button = ui.button("Open the app", icon="web_asset").props("outline no-caps dense")
                button.on_click(lambda: self._open(place, uri, call, result))

    async def _load_uris(self) -> dict[tuple[str, str], str]:
        if self._uris is None:
            try:
                tools: list[JsonObject] = (await self._api.get("/api/v1/tools"))["tools"]
            except ApiError:  # the card shows the result without the page
                tools = []
            self._uris = {(tool["server"], tool["name"]): tool["ui_resource"] for tool in tools if tool["ui_resource"]}
        return self._uris

    async def _open(self, place: ui.column, uri: str, call: JsonObject, result: JsonObject) -> None:
        place.clear()
        with place:
            try:
                read = await self._api.get("/api/v1/mcp/resources/read", uri=uri, server=call.get("server"))
            except ApiError as error:
                ui.label(str(error)).classes("text-negative").props('role="alert"')
                return
            pages = [cast(JsonObject, content).get("text") for content in read["contents"]]
            outcome: JsonObject = {"content": result.get("content") or []}
            if isinstance(result.get("structured"), dict):
                outcome["structuredContent"] = result["structured"]
            for page in pages[:1]:
                draw_frame(str(page or ""), call["arguments"], outcome)

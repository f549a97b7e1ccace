"""`/servers`: MCP servers, their states, changed definitions, and changes of both."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import (
    confirm,
    draw_badge,
    draw_fields,
    format_time,
    open_dialog,
    report_errors,
)
from gateway_console.components.diff import draw_diff
from gateway_console.components.server_dialogs import ask_servers, ask_settings
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_POLL_SECONDS = 3.0
_TONES = {"up": "good", "degraded": "warning", "connecting": "plain", "disabled": "plain", "needs_auth": "warning"}
_STATES = {"needs_auth": "needs a sign-in"}


class ServersPage:
    """The servers, drawn again when something has changed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_admin = api.session.role == "admin"
        self._shown: JsonObject | None = None

    async def draw(self) -> None:
        if self._is_admin:
            ui.button("Add servers", icon="add", on_click=self._add).props("no-caps")
        self._items = ui.column().classes("w-full gap-3 q-mt-md").props('aria-live="polite"')
        await self._load()
        ui.timer(_POLL_SECONDS, self._load, immediate=False)

    async def _load(self) -> None:
        try:
            self._show(await self._api.get("/api/v1/mcp/servers"))
        except ApiError as error:
            self._shown = None
            self._items.clear()
            with self._items:
                draw_error(error, self._load)

    def _show(self, listed: JsonObject) -> None:
        if listed == self._shown:
            return
        self._shown = listed
        self._items.clear()
        with self._items:
            for change in listed["changed_instructions"]:
                self._draw_change(change["server"], None, change["was"], change["now"])
            for change in listed["changed_tools"]:
                self._draw_change(change["server"], change["tool"], change["was"], change["now"])
            for server in listed["servers"]:
                self._draw_server(server)

    def _draw_change(self, server: str, tool: str | None, was: object, now: object) -> None:
        with ui.element("section").classes("card").style("border-color:#b37400"):
            with ui.row().classes("items-center w-full"):
                subject = "The instructions" if tool is None else f"The tool {tool}" if was else f"The new tool {tool}"
                verb = "have changed" if tool is None else "has changed" if was else "waits for approval"
                ui.label(f"{subject} of {server} {verb}.").classes("font-medium")
                ui.space()
                if self._is_admin:

                    async def approve() -> None:
                        parts = ("instructions",) if tool is None else ("tools", tool)
                        await self._change("POST", *parts, "approve", server=server)

                    ui.button("Approve", on_click=approve).props("no-caps")
            draw_diff(was or "", now)

    def _draw_server(self, server: JsonObject) -> None:
        with ui.element("section").classes("card server"):
            with ui.row().classes("items-center w-full gap-2"):
                ui.label(server["name"]).classes("text-lg font-medium").props('role="heading" aria-level="2"')
                draw_badge(str(_STATES.get(server["state"], server["state"])), _TONES.get(server["state"], "bad"))
                ui.label(f"{server['tools']} {'tool' if server['tools'] == 1 else 'tools'}").classes("muted")
                ui.space()
                self._draw_actions(server)
            if server["reason"]:
                ui.label(server["reason"]).classes("streamed")
            draw_fields(
                {
                    "URL": server["url"],
                    "Since": f"{format_time(server['since'])} UTC",
                    "Protocol": server["protocol_version"],
                    "Approval": server["approval"] if server["approval"] != "never" else None,
                    "On change": "new definitions wait for approval" if server["on_change"] == "hold" else None,
                    "Used by": "each user with an own connection" if server["share"] == "user" else None,
                    "Added": "in the configuration file" if server["source"] == "file" else "over the API",
                }
            )
            if server["definition_problems"]:
                with ui.expansion(f"{len(server['definition_problems'])} problems of its definitions").classes(
                    "w-full"
                ):
                    for problem in server["definition_problems"][:100]:
                        ui.label(f"{problem['kind']} {problem['name']}: {problem['problem']}").classes("text-sm")
            if server["last_output"]:
                with ui.expansion("Last output").classes("w-full"):
                    ui.label("\n".join(server["last_output"])).classes("plain")

    def _draw_actions(self, server: JsonObject) -> None:
        name = server["name"]
        may_sign_in = self._api.session.role == "admin" or (
            server["share"] == "user" and self._api.session.role == "user"
        )
        if may_sign_in and server["state"] == "needs_auth":
            _draw_action("Sign in", name, lambda: self._sign_in(name))
        if may_sign_in and server["signed_in"]:
            _draw_action("Sign out", name, lambda: self._change("DELETE", "sign-in", server=name))
        if not self._is_admin:
            return
        is_disabled = server["state"] == "disabled"

        async def switch() -> None:
            await self._change("PATCH", server=name, body={"disabled": not is_disabled})

        _draw_action("Enable" if is_disabled else "Disable", name, switch)
        if server["source"] != "file":
            _draw_action("Edit", name, lambda: self._edit(server))
            _draw_action("Remove", name, lambda: self._remove(name))

    async def _sign_in(self, name: str) -> None:
        with report_errors():
            url = str((await self._api.post(quote_path("api", "v1", "mcp", "servers", name, "sign-in")))["url"])
            if not url.startswith(("http://", "https://")):
                return
            with open_dialog("Sign in") as dialog:
                ui.label(f"Sign in to {name} in a new tab. This page shows when it is done.")
                ui.link("Open the sign-in", url, new_tab=True).classes("plain-link").props('rel="noopener noreferrer"')
                ui.button("Close", on_click=dialog.close).props("flat no-caps")
                dialog.on("hide", dialog.delete)

    async def _add(self) -> None:
        async def add(body: object) -> None:
            await self._api.post("/api/v1/mcp/servers", body)
            await self._load()

        ask_servers(add)

    async def _edit(self, server: JsonObject) -> None:
        async def save(changes: JsonObject) -> None:
            await self._api.patch(quote_path("api", "v1", "mcp", "servers", server["name"]), changes)
            await self._load()

        ask_settings(server, save)

    async def _remove(self, name: str) -> None:
        if await confirm(f"Remove the MCP server {name}?", "Remove"):
            await self._change("DELETE", server=name)

    async def _change(self, method: str, *parts: str, server: str, body: object = None) -> None:
        with report_errors():
            path = quote_path("api", "v1", "mcp", "servers", server, *parts)
            await self._api.send_json(method, path, body)
            await self._load()


def _draw_action(name: str, server: str, on_click: Any) -> None:
    button = ui.button(name, on_click=on_click).props("outline no-caps dense").classes("q-px-sm")
    button.props["aria-label"] = f"{name} {server}"


async def draw_servers(api: Api) -> None:
    with frame(api, "MCP servers", "/servers"):
        await ServersPage(api).draw()

"""`/keys`: make, limit, rotate and revoke API keys."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import (
    confirm,
    draw_badge,
    draw_empty,
    draw_fields,
    format_time,
    open_dialog,
    report_errors,
)
from gateway_console.components.dialogs import ask_changes, ask_form
from gateway_console.layout import draw_error, frame
from gateway_console.pages.usage import describe_budget

JsonObject = dict[str, Any]
_MAX_SHOWN = 200
_AREAS = ("chat", "history", "tools", "servers", "keys", "admin")
_GLOBS = {"type": "array", "description": "A list of names, or of patterns such as mine_*."}
_TOKENS = {"type": "integer", "minimum": 0}
_COST = {"type": "number", "minimum": 0}


_NAME: JsonObject = {"type": "string", "title": "Name"}
_LIMITS: JsonObject = {
    "expires_at": {"type": "string", "format": "date", "title": "Expires on"},
    "scopes": {"type": "array", "items": {"enum": list(_AREAS)}, "title": "Only these areas"},
    "models": {**_GLOBS, "title": "Only these models"},
    "servers": {**_GLOBS, "title": "Only these MCP servers"},
    "tools": {**_GLOBS, "title": "Only these tools"},
    "budget": {
        "type": "object",
        "title": "Budget",
        "properties": {
            "tokens_per_day": {**_TOKENS, "title": "Tokens a day"},
            "tokens_per_month": {**_TOKENS, "title": "Tokens a month"},
            "usd_per_day": {**_COST, "title": "USD a day"},
            "usd_per_month": {**_COST, "title": "USD a month"},
        },
    },
    "limits": {
        "type": "object",
        "title": "Rate limits",
        "properties": {
            "requests": {"type": "integer", "minimum": 1, "title": "Requests in a window"},
            "window_seconds": {"type": "integer", "minimum": 1, "title": "Seconds of the window"},
            "streams": {"type": "integer", "minimum": 1, "title": "Turns at once"},
        },
    },
}


def build_key_schema(role: str) -> JsonObject:
    """Return the schema of a new key that a role may make."""
    roles = {"admin": ["viewer", "user", "admin"], "user": ["viewer", "user"]}.get(role, ["viewer"])
    owner = {"type": "string", "title": "Owner", "description": "The user whose key it is. Default: you."}
    rights: JsonObject = {"owner": owner} if role == "admin" else {}
    return {
        "type": "object",
        "properties": {"name": _NAME, **rights, "role": {"enum": roles, "title": "Role"}, **_LIMITS},
    }


def list_key_values(key: JsonObject) -> JsonObject:
    """Return the values of a key for the form that changes it."""
    return {name: key[name] for name in ("name", *_LIMITS)} | {"expires_at": (key["expires_at"] or "")[:10]}


def build_key_changes(changes: JsonObject) -> JsonObject:
    """Return the body that changes a key.

    A window without a number of requests is no limit.
    """
    body: JsonObject = dict(changes)
    if "name" in body:
        body["name"] = body["name"] or ""
    if (limits := body.get("limits")) is not None and not {"requests", "streams"} & limits.keys():
        body["limits"] = None
    return body


class KeysPage:
    """The keys of a user, or of all users."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._may_change = api.session.role != "viewer"

    async def draw(self) -> None:
        if self._may_change:
            ui.button("New key", icon="add", on_click=self._ask_new).props("no-caps")
        self._items = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')
        await self._load()

    async def _load(self) -> None:
        self._items.clear()
        with self._items:
            try:
                keys: list[JsonObject] = (await self._api.get("/api/v1/keys"))["keys"]
            except ApiError as error:
                draw_error(error, self._load)
                return
            if not keys:
                draw_empty("There are no keys. The first one makes the gateway ask everyone for a key.")
            for key in sorted(keys, key=lambda each: each["revoked_at"] is not None)[:_MAX_SHOWN]:
                self._draw_key(key)

    def _draw_key(self, key: JsonObject) -> None:
        with ui.element("section").classes("card key"):
            with ui.row().classes("items-center w-full gap-2"):
                ui.label(key["name"] or "no name").classes("font-medium").style("overflow-wrap:anywhere")
                ui.label(f"{key['prefix']}…").classes("plain muted")
                draw_badge(key["role"])
                if key["revoked_at"] is not None:
                    draw_badge("revoked", "bad")
                ui.space()
                if self._may_change and key["revoked_at"] is None:
                    _draw_action("Edit", key, lambda: self._ask_changes(key))
                    _draw_action("Rotate", key, lambda: self._rotate(key))
                    _draw_action("Revoke", key, lambda: self._revoke(key))
            limits: JsonObject = key["limits"] or {}
            draw_fields(
                {
                    "Owner": key["owner"],
                    "Created": f"{format_time(key['created_at'])} UTC by {key['created_by']}",
                    "Last used": format_time(key["last_used_at"]),
                    "Expires": format_time(key["expires_at"]),
                    "Areas": key["scopes"],
                    "Models": key["models"],
                    "MCP servers": key["servers"],
                    "Tools": key["tools"],
                    "Budget": describe_budget(key["budget"]) if key["budget"] else None,
                    "Requests": limits.get("requests") and f"{limits['requests']} in {limits['window_seconds']} s",
                    "Turns at once": limits.get("streams"),
                }
            )

    async def _ask_new(self) -> None:
        async def create(values: JsonObject) -> None:
            self._show_secret(await self._api.post("/api/v1/keys", values))

        ask_form("New key", build_key_schema(self._api.session.role), {}, "Create", create)

    async def _ask_changes(self, key: JsonObject) -> None:
        async def change(changes: JsonObject) -> None:
            await self._api.patch(quote_path("api", "v1", "keys", key["id"]), build_key_changes(changes))
            await self._load()

        schema = {"type": "object", "properties": {"name": _NAME, **_LIMITS}}
        note = "Fields that you empty have no limit. Keys that were made with this key keep theirs."
        ask_changes(f"Edit {key['name'] or key['prefix']}", schema, list_key_values(key), change, note)

    async def _rotate(self, key: JsonObject) -> None:
        schema = {
            "type": "object",
            "properties": {
                "overlap_seconds": {"type": "integer", "minimum": 0, "title": "Seconds that the old key stays valid"}
            },
        }

        async def rotate(values: JsonObject) -> None:
            self._show_secret(await self._api.post(quote_path("api", "v1", "keys", key["id"], "rotate"), values))

        ask_form(f"Rotate {key['prefix']}…", schema, {"overlap_seconds": 86_400}, "Rotate", rotate)

    async def _revoke(self, key: JsonObject) -> None:
        question = f"Revoke the key {key['name'] or key['prefix']} of {key['owner']}, and all keys made with it?"
        if await confirm(question, "Revoke"):
            with report_errors():
                await self._api.delete(quote_path("api", "v1", "keys", key["id"]))
                await self._load()

    def _show_secret(self, created: JsonObject) -> None:
        """Show a new secret once; the gateway stores its hash alone."""
        with self._items, open_dialog("New key") as dialog:
            dialog.props("persistent")
            ui.label("This is the only time that the key is shown.")
            ui.label(created["key"]).classes("plain secret")

            async def close() -> None:
                dialog.close()
                await self._load()

            with ui.row().classes("w-full justify-end"):
                ui.button("I have stored it", on_click=close).props("no-caps")


def _draw_action(name: str, key: JsonObject, on_click: Any) -> None:
    button = ui.button(name, on_click=on_click).props("outline no-caps dense").classes("q-px-sm")
    button.props["aria-label"] = f"{name} {key['name'] or key['prefix']}"


async def draw_keys(api: Api) -> None:
    with frame(api, "API keys", "/keys"):
        await KeysPage(api).draw()

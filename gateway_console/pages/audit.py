"""`/audit`: the audit log with filters."""

import json
from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError
from gateway_console.components.content import shorten
from gateway_console.components.controls import draw_empty, format_time
from gateway_console.components.tables import draw_table
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_PAGE_SIZE = 100
_VERBS = {
    "key": ("create", "change", "rotate", "revoke", "recover"),
    "login": ("refused", "granted", "failed", "forgotten"),
    "server": ("put", "remove"),
    "tool": ("approve",),
    "instructions": ("approve",),
    "input": ("accept", "decline", "cancel"),
    "conversation": ("delete",),
    "turn": ("delete", "cancel", "watch"),
    "user": ("erase", "export"),
    "secrets": ("reencrypt",),
    "definition": ("create", "change", "test", "publish", "delete", "import"),
}
_ACTIONS = [f"{subject}.{verb}" for subject, verbs in _VERBS.items() for verb in verbs]


class AuditPage:
    """Entries of the audit log, newest first."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._next: str | None = None

    async def draw(self) -> None:
        with ui.row().classes("items-center w-full"):
            self._action = ui.select(_ACTIONS, label="Action", clearable=True, with_input=True)
            self._action.props("outlined dense").style("min-width:14rem").on_value_change(self.refresh)
            self._actor = ui.input("Actor").props("outlined dense clearable").on("keydown.enter", self.refresh)
            ui.button("Filter", icon="filter_list", on_click=self.refresh).props("no-caps")
        self._items = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')
        self._more = ui.button("More", on_click=self._load_more).props("flat no-caps")
        await self.refresh()

    async def refresh(self) -> None:
        self._items.clear()
        self._next = None
        await self._load_more()

    async def _load_more(self) -> None:
        filters = {"action": self._action.value, "actor": str(self._actor.value or "").strip()}
        with self._items:
            try:
                page = await self._api.get("/api/v1/audit", limit=_PAGE_SIZE, before=self._next, **filters)
            except ApiError as error:
                self._more.set_visibility(False)
                draw_error(error, self.refresh)
                return
            if not page["items"]:
                draw_empty("There are no such entries.")
            else:
                draw_table(
                    ["Time (UTC)", "Actor", "Action", "Subject", "Detail"], list(map(_list_cells, page["items"]))
                )
        self._next = page["next"]
        self._more.set_visibility(self._next is not None)


def _list_cells(entry: JsonObject) -> list[str]:
    detail = json.dumps(entry["detail"], ensure_ascii=False) if entry["detail"] else ""
    return [format_time(entry["at"]), entry["actor"], entry["action"], entry["subject"], shorten(detail, 500)]


async def draw_audit(api: Api) -> None:
    with frame(api, "Audit log", "/audit"):
        await AuditPage(api).draw()

"""`/conversations`: list, search, rename, export and delete conversations."""

from typing import Any

from nicegui import ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import (
    ask_text,
    confirm,
    draw_empty,
    draw_icon_button,
    format_time,
    mark_snippet,
    report_errors,
)
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_PAGE_SIZE = 30


class ConversationsPage:
    """The list of conversations, or what a search found."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._may_change = api.session.role != "viewer"

    async def draw(self) -> None:
        with ui.row().classes("w-full items-center no-wrap"):
            self._query = ui.input("Search prompts and answers").props("outlined dense clearable type=search")
            self._query.classes("grow").on("keydown.enter", self.refresh).on("clear", self.refresh)
            ui.button("Search", icon="search", on_click=self.refresh).props("no-caps")
        self._items = ui.column().classes("w-full gap-2 q-mt-md").props('aria-live="polite"')
        self._more = ui.button("More").props("flat no-caps")
        self._more.on_click(self._load_more)
        await self.refresh()

    async def refresh(self) -> None:
        """Draw the first page of the list or search."""
        self._items.clear()
        self._next: str | None = None
        await self._load_more()

    async def _load_more(self) -> None:
        query = str(self._query.value or "").strip()
        try:
            page = await (self._search(query) if query else self._list())
        except ApiError as error:
            self._more.set_visibility(False)
            with self._items:
                draw_error(error, self.refresh)
            return
        self._next = page["next"]
        self._more.set_visibility(self._next is not None)

    async def _list(self) -> JsonObject:
        page = await self._api.get("/api/v1/conversations", limit=_PAGE_SIZE, before=self._next)
        with self._items:
            if not page["conversations"] and self._next is None:
                draw_empty("There are no conversations. Begin one in the chat.")
            for conversation in page["conversations"]:
                self._draw_conversation(conversation)
        return page

    def _draw_conversation(self, conversation: JsonObject) -> None:
        identifier = str(conversation["id"])
        with ui.element("div").classes("card row items-center no-wrap") as card:
            with ui.column().classes("gap-0 grow").style("min-width:0"):
                title = ui.link(conversation["title"] or "Untitled", f"/chat/{identifier}").classes("title-link")
                ui.label(f"{format_time(conversation['updated_at'])} UTC").classes("muted text-sm")
            if self._may_change:
                draw_icon_button("edit", "Rename", lambda: self._rename(identifier, title))
            draw_icon_button("download", "Export", lambda: self._export(identifier))
            if self._may_change:
                draw_icon_button("delete", "Delete", lambda: self._delete(identifier, title.text, card))

    async def _search(self, query: str) -> JsonObject:
        page = await self._api.get("/api/v1/search", query=query, limit=_PAGE_SIZE, before=self._next)
        with self._items:
            if not page["items"] and self._next is None:
                draw_empty("No turn has these words.")
            for hit in page["items"]:
                with ui.element("div").classes("card"):
                    ui.html(mark_snippet(hit["snippet"]), sanitize=True).classes("snippet")
                    with ui.row().classes("items-center text-sm"):
                        ui.label(f"{format_time(hit['created_at'])} UTC").classes("muted")
                        if hit["conversation_id"] is not None:
                            target = f"/chat/{hit['conversation_id']}?turn={hit['id']}"
                            ui.link("Conversation", target).classes("plain-link")
                        ui.link("Timeline", f"/turns/{hit['id']}").classes("plain-link")
        return page

    async def _rename(self, identifier: str, title: ui.link) -> None:
        text = await ask_text("Title", title.text, "Rename")
        if text is None:
            return
        with report_errors():
            renamed = await self._api.patch(quote_path("api", "v1", "conversations", identifier), {"title": text})
            title.set_text(renamed["title"])

    async def _export(self, identifier: str) -> None:
        with report_errors():
            text = await self._api.get_text(quote_path("api", "v1", "conversations", identifier, "export"))
            ui.download.content(text, f"conversation-{identifier}.json", "application/json")

    async def _delete(self, identifier: str, title: str, card: ui.element) -> None:
        if not await confirm(f"Delete “{title}” with all of its turns? This cannot be undone.", "Delete"):
            return
        with report_errors():
            await self._api.delete(quote_path("api", "v1", "conversations", identifier))
            card.delete()


async def draw_conversations(api: Api) -> None:
    with frame(api, "Conversations", "/conversations"):
        await ConversationsPage(api).draw()

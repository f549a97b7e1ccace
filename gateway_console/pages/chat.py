"""The chat: `/` begins a conversation, `/chat/{id}` continues one."""

import asyncio
import base64
from typing import Any

from nicegui import background_tasks, events, ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.app_pages import AppPages
from gateway_console.components.controls import ask_text, draw_icon_button, report_errors
from gateway_console.components.turn_follower import TurnFollower
from gateway_console.components.turn_view import TurnView, list_stored_events
from gateway_console.components.welcome import draw_welcome
from gateway_console.layout import draw_error, frame, notify_error

JsonObject = dict[str, Any]
_FLUSH_SECONDS = 0.15
# A window that is at its end stays there while the answer grows.
_FOLLOW_END = """
let isAtEnd = true, lastY = scrollY;
const root = document.documentElement;
addEventListener('scroll', () => {
  const isFollowing = isAtEnd && scrollY >= lastY;  // an answer may grow before the event of a scroll to its end
  isAtEnd = isFollowing || innerHeight + scrollY >= root.scrollHeight - 60;
  lastY = scrollY;
}, {passive: true});
new ResizeObserver(() => { if (isAtEnd) scrollTo(0, root.scrollHeight); }).observe(document.body);
"""
_MAX_SHOWN_TURNS = 50
_MAX_IMAGE_BYTES = 4 * 1024 * 1024
_MAX_IMAGES = 4
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_IMAGE_PREFIXES = tuple(f"data:{kind};base64," for kind in _IMAGE_TYPES)
_EXPIRED = 410


class ChatPage:
    """A conversation in a browser window."""

    def __init__(self, api: Api, conversation_id: str | None, last_turn: str | None) -> None:
        self._api = api
        self._last_turn = last_turn
        self._conversation_id = conversation_id
        self._follower: TurnFollower | None = None
        self._view: TurnView | None = None
        self._task: asyncio.Task[None] | None = None
        self._parent_of_last: str | None = None
        self._last_prompt = ""
        self._edited_parent: str | None = None
        self._is_branching = False
        self._images: list[str] = []
        self._last_images: list[str] = []
        self._pages = AppPages(api)
        self._welcome: ui.element | None = None
        self._client = ui.context.client

    async def draw(self) -> None:
        """Draw the stored turns, then follow the one that still runs."""
        self._turns = ui.column().classes("w-full gap-3")
        self._draw_input(await self._load_models())
        self._client.on_delete(self._cancel_task)  # pyright: ignore[reportUnknownMemberType]
        ui.timer(_FLUSH_SECONDS, self._flush)
        self._client.run_javascript(_FOLLOW_END)
        if self._conversation_id is not None:
            await self._load_conversation(self._conversation_id)
        elif self._api.session.role != "viewer":
            self._welcome = draw_welcome(self._api, self._turns, self._try_example)

    async def _load_models(self) -> JsonObject:
        try:
            return await self._api.get("/api/v1/models")
        except ApiError as error:
            draw_error(error)
            return {"default": None, "models": []}

    async def _load_conversation(self, conversation_id: str) -> None:
        try:
            detail = await self._api.get(quote_path("api", "v1", "conversations", conversation_id))
            branch = find_branch(detail, self._last_turn)
            if branch and self._last_turn == branch[-1]["id"] != detail["head_id"]:
                self._is_branching, self._edited_parent = True, self._last_turn  # the next request continues it
            for turn in branch[-_MAX_SHOWN_TURNS:]:
                if turn["status"] in ("running", "waiting"):
                    self._begin_turn(turn["prompt"], turn["parent_id"], find_images(turn))
                    self._run(self._follow(turn["id"]))
                else:
                    self._begin_turn(turn["prompt"], turn["parent_id"], find_images(turn))
                    await self._draw_stored(turn["id"])
                    self._end_turn()
        except ApiError as error:
            draw_error(error)

    async def _draw_stored(self, turn_id: str) -> None:
        """Draw the events of a turn that has ended.

        Where they are no longer stored, its row has the main ones.
        """
        assert self._view is not None
        self._view.turn_id = turn_id
        path = quote_path("api", "v1", "turns", turn_id)
        try:
            async with self._api.open_stream("GET", f"{path}/events?after=0") as (_, events):
                async for event in events:
                    self._view.apply(event.data)
        except ApiError as error:
            if error.status != _EXPIRED:
                raise
        if not self._view.is_finished:
            for event in list_stored_events(await self._api.get(path)):
                self._view.apply(event)

    def _draw_input(self, models: JsonObject) -> None:
        may_chat = self._api.session.role != "viewer"
        with ui.element("div").classes("card").style("position:sticky;bottom:.5rem"):
            self._input = ui.textarea(placeholder="Message").props('autogrow borderless rows=1 aria-label="Message"')
            self._input.classes("w-full").on("keydown.enter.exact.prevent", self._send)
            self._image_row = ui.row()
            with ui.row().classes("items-center w-full"):
                with ui.expansion("Options").props("dense").classes("grow"), ui.row().classes("items-center"):
                    self._draw_options(models)
                self._stop_button = ui.button("Stop", icon="stop", on_click=self._stop).props("outline no-caps")
                self._stop_button.set_visibility(False)
                self._send_button = ui.button("Send", icon="send", on_click=self._send).props("no-caps")
            if not may_chat:
                self._send_button.disable()
                ui.label("Your role may read, and start no turns.").classes("muted")

    def _draw_options(self, models: JsonObject) -> None:
        names = [model["id"] for model in models["models"]]
        self._model = ui.select(names, label="Model", value=models["default"] if models["default"] in names else None)
        self._model.props("outlined dense").style("min-width:14rem")
        self._approval = ui.select(["never", "destructive", "always"], label="Approval", value=None, clearable=True)
        self._approval.props("outlined dense").style("min-width:8rem")
        self._temperature = ui.number("Temperature", min=0, max=2, step=0.1).props("outlined dense").style("width:8rem")
        self._system = ui.input("System prompt").props("outlined dense").style("min-width:14rem")
        # The button stands for Quasar's uploader, whose parts have no names for screen readers.
        upload = ui.upload(multiple=True, auto_upload=True, max_file_size=_MAX_IMAGE_BYTES, on_upload=self._add_image)
        upload.props('accept="image/*"').classes("hidden")
        pick = ui.button("Add images", icon="image").props("outline no-caps")
        pick.on("click", js_handler=f"() => runMethod({upload.id}, 'pickFiles', [])")

    async def _add_image(self, upload: events.UploadEventArguments) -> None:
        content = await upload.file.read()
        if upload.file.content_type not in _IMAGE_TYPES or len(self._images) >= _MAX_IMAGES:
            ui.notify(f"At most {_MAX_IMAGES} PNG, JPEG, GIF or WebP images.", type="warning")
            return
        self._images.append(f"data:{upload.file.content_type};base64,{base64.b64encode(content).decode()}")
        with self._image_row:
            ui.image(self._images[-1]).style("width:4rem").props('alt="Image to send"')

    async def _send(self) -> None:
        prompt = str(self._input.value or "").strip()
        if not prompt or self._is_running() or not self._send_button.enabled:
            return
        self._input.set_value("")
        parent = self._edited_parent if self._is_branching else None
        self._start(prompt, parent=parent, is_branch=self._is_branching)

    async def _try_example(self, prompt: str) -> None:
        self._input.set_value(prompt)
        await self._send()

    def _start(self, prompt: str, *, parent: str | None, is_branch: bool) -> None:
        self._is_branching = False
        images, body = self._images, self._build_body(prompt)
        if is_branch and parent is not None:
            body["parent_turn_id"] = parent
        elif is_branch:  # the first turn has no parent, so its branch is a conversation of its own
            body["conversation_id"] = "new"
        self._begin_turn(prompt, parent, images)
        self._run(self._start_turn(body))

    def _build_body(self, prompt: str) -> JsonObject:
        content: object = prompt
        if self._images:
            images = [{"type": "image_url", "image_url": {"url": url}} for url in self._images]
            content = [{"type": "text", "text": prompt}, *images]
            self._images = []
            self._image_row.clear()
        body: JsonObject = {
            "messages": [{"role": "user", "content": content}],
            "conversation_id": self._conversation_id or "new",
            "on_disconnect": "continue",
        }
        options = {
            "model": self._model.value,
            "approval": self._approval.value,
            "temperature": self._temperature.value,
            "system": self._system.value,
        }
        return body | {name: value for name, value in options.items() if value not in (None, "")}

    def _begin_turn(self, prompt: str, parent: str | None, images: list[str]) -> None:
        self._last_prompt, self._parent_of_last, self._last_images = prompt, parent, images
        if self._welcome is not None:
            self._welcome.delete()
            self._welcome = None
        with self._turns:
            with ui.element("div").classes("prompt"):
                ui.label(prompt)
                for image in images:
                    ui.image(image).style("max-width:16rem").props('alt="Image of the prompt"')
            self._view = TurnView(self._answer, self._pages)
        self._scroll_to_end()
        self._follower = TurnFollower(self._api, self._view)

    async def _start_turn(self, body: JsonObject) -> None:
        assert self._follower is not None
        await self._follower.start("/api/v1/chat/stream", body, self._on_started)

    async def _follow(self, turn_id: str) -> None:
        assert self._follower is not None
        await self._follower.follow(turn_id)

    def _on_started(self) -> None:
        """Let a reload of the page continue with this conversation."""
        assert self._view is not None
        if self._view.conversation_id is not None and (self._conversation_id, self._last_turn) != (
            self._view.conversation_id,
            None,
        ):
            self._conversation_id, self._last_turn = self._view.conversation_id, None
            ui.navigate.history.replace(f"/chat/{self._conversation_id}")

    def _run(self, work: Any) -> None:
        async def run() -> None:
            with self._client:
                self._stop_button.set_visibility(True)
                self._send_button.disable()
                try:
                    await work
                except ApiError as error:
                    if self._view is not None:
                        self._view.show_error(str(error))
                finally:
                    self._stop_button.set_visibility(False)
                    if self._api.session.role != "viewer":
                        self._send_button.enable()
                await self._load_parent()
                self._end_turn()

        self._task = background_tasks.create(run(), name="console turn")  # pyright: ignore[reportUnknownMemberType]

    async def _load_parent(self) -> None:
        """Load the parent of the last turn, which the gateway has chosen."""
        if self._view is not None and self._view.turn_id is not None:
            with report_errors():
                turn = await self._api.get(quote_path("api", "v1", "turns", self._view.turn_id))
                self._parent_of_last = turn["parent_id"]

    def _end_turn(self) -> None:
        """Offer what can be done with a turn that has ended."""
        view, prompt, parent, images = self._view, self._last_prompt, self._parent_of_last, self._last_images
        if view is None or view.turn_id is None:
            return
        view.flush()
        turn_id = view.turn_id
        with self._turns, ui.row().classes("gap-1"):
            if self._api.session.role != "viewer":
                draw_icon_button("refresh", "Retry", lambda: self._retry(prompt, parent, images))
                draw_icon_button("edit", "Edit and branch", lambda: self._edit(prompt, parent))
                draw_icon_button("thumb_up", "Good answer", lambda: self._rate(turn_id, "up"))
                draw_icon_button("thumb_down", "Bad answer", lambda: self._rate(turn_id, "down"))
            ui.link("Timeline", f"/turns/{turn_id}").classes("plain-link text-sm")
        self._scroll_to_end()

    def _scroll_to_end(self) -> None:
        self._client.run_javascript("setTimeout(() => window.scrollTo(0, document.body.scrollHeight), 50)")

    def _retry(self, prompt: str, parent: str | None, images: list[str]) -> None:
        if not self._is_running():
            self._images = images
            self._start(prompt, parent=parent, is_branch=True)

    def _edit(self, prompt: str, parent: str | None) -> None:
        self._is_branching, self._edited_parent = True, parent
        self._input.set_value(prompt)
        self._input.run_method("focus")

    async def _rate(self, turn_id: str, rating: str) -> None:
        try:
            path = quote_path("api", "v1", "turns", turn_id, "feedback")
            await self._api.post(path, {"rating": rating})
            ui.notify("Thank you.", type="positive")
            title = "What was good? (optional)" if rating == "up" else "What was wrong? (optional)"
            if comment := await ask_text(title, "", "Send", multi_line=True):
                await self._api.post(path, {"rating": rating, "comment": comment})
        except ApiError as error:
            notify_error(error)

    async def _answer(self, input_id: str, action: str, content: JsonObject | None) -> None:
        if self._view is None or self._view.turn_id is None or self._follower is None:
            return
        body: JsonObject = {"input_id": input_id, "action": action}
        if content is not None:
            body["content"] = content
        try:
            await self._api.post(quote_path("api", "v1", "turns", self._view.turn_id, "input"), body)
        except ApiError as error:
            notify_error(error)
        self._follower.answered.set()

    async def _stop(self) -> None:
        if self._view is None or self._view.turn_id is None:
            return
        try:
            await self._api.post(quote_path("api", "v1", "turns", self._view.turn_id, "cancel"))
        except ApiError as error:
            notify_error(error)

    def _flush(self) -> None:
        if self._view is not None:
            self._view.flush()

    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _cancel_task(self) -> None:
        """Stop reading when the page is gone. The turn itself goes on."""
        if self._task is not None:
            self._task.cancel()


def find_images(turn: JsonObject) -> list[str]:
    """Return the images of a stored prompt.

    Those at other addresses are not loaded.
    """
    parts = [
        part
        for message in turn["messages"]
        if message["role"] == "user" and isinstance(message["content"], list)
        for part in message["content"]
    ]
    urls = [str(part["image_url"]["url"]) for part in parts if part.get("type") == "image_url"]
    return [url for url in urls if url.startswith(_IMAGE_PREFIXES)][:_MAX_IMAGES]


def find_branch(detail: JsonObject, last_turn: str | None = None) -> list[JsonObject]:
    """Return the turns of a branch, oldest first.

    It ends with `last_turn`, or else with the turn that the next request follows. A turn that still runs is newer than
    that one, so it ends the branch instead.
    """
    turns: dict[str, JsonObject] = {turn["id"]: turn for turn in detail["turns"]}
    running = [turn for turn in detail["turns"] if turn["status"] in ("running", "waiting")]
    current = turns.get(last_turn) if last_turn else None
    if current is None:
        current = running[-1] if running else turns.get(str(detail.get("head_id")))
    branch: list[JsonObject] = []
    while current is not None and len(branch) < len(turns):
        branch.append(current)
        current = turns.get(str(current["parent_id"]))
    return branch[::-1]


async def draw_chat(api: Api, conversation_id: str | None, last_turn: str | None = None) -> None:
    with frame(api, "Chat", "/"):
        await ChatPage(api, conversation_id, last_turn).draw()

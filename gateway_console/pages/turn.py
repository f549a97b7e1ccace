"""`/turns/{id}`: a turn as a timeline, with fork, replay and compare."""

import asyncio
from typing import Any

from nicegui import background_tasks, ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import (
    draw_fields,
    format_cost,
    format_milliseconds,
    format_time,
    open_dialog,
    report_errors,
)
from gateway_console.components.timeline import TurnTimeline, build_time_bars, draw_entry, draw_time_bars
from gateway_console.components.turn_follower import TurnFollower
from gateway_console.components.turn_view import list_stored_events
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_REDRAW_SECONDS = 0.5


class TurnPage:
    """A turn: figures, times, entries, and what can be done with it."""

    def __init__(self, api: Api, turn_id: str) -> None:
        self._api = api
        self._path = quote_path("api", "v1", "turns", turn_id)
        self._turn_id = turn_id
        self._client = ui.context.client
        self._timeline = TurnTimeline()
        self._task: asyncio.Task[None] | None = None

    async def draw(self) -> None:
        try:
            self._turn: JsonObject = await self._api.get(self._path)
            self._models: JsonObject = await self._api.get("/api/v1/models")
        except ApiError as error:
            draw_error(error)
            return
        self._head = ui.column().classes("w-full gap-2")
        self._draw_head()
        self._list = ui.element("ol").classes("timeline q-mt-md")
        self._client.on_delete(self._cancel_task)  # pyright: ignore[reportUnknownMemberType]
        ui.timer(_REDRAW_SECONDS, self._redraw)
        self._task = background_tasks.create(self._follow(), name="console timeline")  # pyright: ignore[reportUnknownMemberType]

    def _draw_head(self) -> None:
        turn = self._turn
        with self._head:
            ui.label(turn["prompt"]).classes("prompt").style("align-self:flex-start")
            with ui.element("div").classes("card"):
                draw_fields(
                    {
                        "Status": turn["status"],
                        "Model": turn["model_name"],
                        "Started": f"{format_time(turn['created_at'])} UTC",
                        "Took": format_milliseconds(turn["duration_ms"]),
                        "First token": format_milliseconds(turn["first_token_ms"]),
                        "Tokens": f"{turn['usage']['total_tokens']:,}" if turn["usage"] else "",
                        "Cost": format_cost(turn["cost_usd"]) if turn["usage"] else "",
                        "Steps": turn["steps"],
                    }
                )
            self._draw_links()
            if bars := build_time_bars(turn):
                draw_time_bars(bars)

    def _draw_links(self) -> None:
        turn = self._turn
        with ui.row().classes("items-center"):
            if turn["conversation_id"] is not None:
                target = f"/chat/{turn['conversation_id']}?turn={turn['id']}"
                ui.link("Open in the chat", target).classes("plain-link")
            if turn["origin_id"] is not None:
                ui.link("The turn it comes from", f"/turns/{turn['origin_id']}").classes("plain-link")
                ui.link("Compare with it", f"/compare/{turn['origin_id']}/{turn['id']}").classes("plain-link")
            if self._api.session.role != "viewer" and turn["store"]:
                ui.button("Fork", icon="call_split", on_click=self._open_fork).props("outline no-caps dense")
                ui.button("Replay", icon="replay", on_click=self._open_replay).props("outline no-caps dense")
            ui.button("Compare", icon="compare_arrows", on_click=self._open_compare).props("outline no-caps dense")

    async def _follow(self) -> None:
        with self._client:
            try:
                await TurnFollower(self._api, self._timeline).follow(self._turn_id)
            except ApiError as error:
                if error.status != 410:
                    self._timeline.show_error(str(error))
                for event in list_stored_events(self._turn):  # without its events, the row has the main ones
                    self._timeline.apply(event)
            if self._turn["completed_at"] is None:
                with report_errors():
                    self._turn = await self._api.get(self._path)
                    self._head.clear()
                    self._draw_head()
            self._redraw()

    def _redraw(self) -> None:
        if not self._timeline.is_changed:
            return
        self._timeline.is_changed = False
        self._list.clear()
        with self._list:
            for entry in self._timeline.entries:
                draw_entry(entry)

    def _open_fork(self) -> None:
        steps = list(range(int(self._timeline.last_step) + 1))
        with open_dialog("Fork") as dialog:
            ui.label("Start a turn that takes over the first steps of this one. They cost nothing.")
            after = (
                ui.select(steps, label="Steps to take over", value=steps[max(0, len(steps) - 2)])
                .props("outlined")
                .classes("w-full")
            )
            message = ui.textarea("Message after them").props("outlined autogrow").classes("w-full")
            model = self._draw_model_choice()

            async def start() -> None:
                body = {"after_step": after.value, "message": message.value, "model": model.value}
                await self._start_branch("fork", body)

            self._draw_actions(dialog, "Fork", start)

    def _open_replay(self) -> None:
        choices = {"stop": "stops", "run_read_only": "runs if it is read-only", "run": "runs"}
        with open_dialog("Replay") as dialog:
            ui.label("Ask again; recorded results answer the calls that are equal.")
            model = self._draw_model_choice()
            message = ui.textarea("Other prompt").props("outlined autogrow").classes("w-full")
            system = ui.textarea("Other system prompt").props("outlined autogrow").classes("w-full")
            new_call = ui.select(choices, label="A call that was not made", value="stop")
            new_call.props("outlined").classes("w-full")

            async def start() -> None:
                body = {"model": model.value, "message": message.value, "system": system.value}
                await self._start_branch("replay", body | {"on_new_call": new_call.value})

            self._draw_actions(dialog, "Replay", start)

    def _draw_model_choice(self) -> ui.select:
        names = [model["id"] for model in self._models["models"]]
        return ui.select(names, label="Other model", clearable=True).props("outlined").classes("w-full")

    def _draw_actions(self, dialog: ui.dialog, name: str, on_click: Any) -> None:
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
            ui.button(name, on_click=on_click).props("no-caps")
        dialog.on("hide", dialog.delete)

    async def _start_branch(self, kind: str, fields: JsonObject) -> None:
        body = {name: value for name, value in fields.items() if value not in (None, "")}
        body |= {"stream": True, "on_disconnect": "continue"}
        with report_errors():
            async with self._api.open_stream("POST", f"{self._path}/{kind}", body) as (turn_id, _):
                pass  # it goes on without this connection
            ui.navigate.to(f"/turns/{turn_id}")

    async def _open_compare(self) -> None:
        with report_errors():
            options = await self._list_comparable()
            with open_dialog("Compare") as dialog:
                if not options:
                    ui.label("The conversation has no other turn. Fork or replay this one first.")
                other = ui.select(options, label="Other turn").props("outlined").classes("w-full")
                other.set_visibility(bool(options))

                def compare() -> None:
                    if other.value:
                        ui.navigate.to(f"/compare/{self._turn_id}/{other.value}")

                self._draw_actions(dialog, "Compare", compare)

    async def _list_comparable(self) -> dict[str, str]:
        if self._turn["conversation_id"] is None:
            return {}
        path = quote_path("api", "v1", "conversations", str(self._turn["conversation_id"]))
        turns = [turn for turn in (await self._api.get(path))["turns"] if turn["id"] != self._turn_id]
        return {
            turn["id"]: f"{format_time(turn['created_at'])} · {turn['model_name']} · {turn['prompt'][:60]}"
            for turn in turns[-200:][::-1]
        }

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def draw_turn(api: Api, turn_id: str) -> None:
    with frame(api, "Turn", "/conversations"):
        await TurnPage(api, turn_id).draw()

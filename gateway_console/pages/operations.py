"""`/operations`: live turns, workers and models; `/watch/{id}`: one turn."""

import asyncio
from functools import partial
from typing import Any, cast

from nicegui import background_tasks, ui

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.controls import confirm, draw_badge, draw_empty, format_time, report_errors
from gateway_console.components.tables import draw_table
from gateway_console.components.timeline import TurnTimeline, draw_entry
from gateway_console.components.turn_follower import TurnFollower
from gateway_console.layout import draw_error, frame

JsonObject = dict[str, Any]
_POLL_SECONDS = 5.0
_REDRAW_SECONDS = 0.5
_TURNS = ("api", "v1", "admin", "turns")
_WAITS = {"approval": "approval of", "question": "an answer for", "authorization": "a sign-in for", "url": "a page of"}


class OperationsPage:
    """Live turns, workers and models, drawn again after a change."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._shown: tuple[object, ...] | None = None

    async def draw(self) -> None:
        self._content = ui.column().classes("w-full gap-3").props('aria-live="polite"')
        await self._load()
        ui.timer(_POLL_SECONDS, self._load, immediate=False)

    async def _load(self) -> None:
        try:
            turns = await self._api.get("/api/v1/admin/turns/active", limit=200)
            state = await self._api.get("/api/v1/admin/workers")
            models = await self._api.get("/api/v1/models")
            failed = await self._api.get("/api/v1/admin/turns", limit=20)
        except ApiError as error:
            self._shown = None
            self._content.clear()
            with self._content:
                draw_error(error, self._load)
            return
        workers = [{**worker, "seen_at": None} for worker in state["workers"]]  # it changes with each heartbeat
        if (shown := (turns, workers, state["models"], models, failed)) == self._shown:
            return
        self._shown = shown
        self._content.clear()
        with self._content:
            self._draw_turns(turns)
            _draw_workers(state["workers"])
            _draw_models(models["models"], {each["model"]: each for each in state["models"]})
            self._draw_failed(failed["items"])

    def _draw_turns(self, page: JsonObject) -> None:
        _draw_heading("Live turns")
        if not page["items"]:
            draw_empty("No turn runs or waits.")
            return
        rows = [
            [
                turn["owner"],
                turn["model"],
                partial(draw_badge, turn["status"], "warning" if turn["status"] == "waiting" else "plain"),
                "\n".join(describe_wait(question) for question in turn["questions"]),
                str(turn["steps"]),
                format_time(turn["created_at"]),
                partial(self._draw_actions, turn),
            ]
            for turn in page["items"]
        ]
        draw_table(["User", "Model", "Status", "Waits for", "Steps", "Started (UTC)", ""], rows)
        if page["next"] is not None:
            draw_empty("Older ones are not shown.")

    def _draw_actions(self, turn: JsonObject) -> None:
        with ui.row().classes("no-wrap items-center"):
            ui.link("Watch", f"/watch/{turn['id']}").classes("plain-link")
            ui.button("Cancel", on_click=lambda: self._cancel(turn)).props("outline no-caps dense").classes("q-px-sm")

    async def _cancel(self, turn: JsonObject) -> None:
        if await confirm(f"Cancel this turn of {turn['owner']}? The audit log records it.", "Cancel the turn"):
            with report_errors():
                await self._api.post(quote_path(*_TURNS, turn["id"], "cancel"))
                await self._load()

    def _draw_failed(self, turns: list[JsonObject]) -> None:
        _draw_heading("Turns that failed last")
        if not turns:
            draw_empty("No turn has failed.")
            return
        rows = [[format_time(turn["at"]), turn["owner"], turn["model"], turn["error"]] for turn in turns]
        draw_table(["Time (UTC)", "User", "Model", "Error"], rows)


def describe_wait(question: JsonObject) -> str:
    """Describe what a turn waits for, without its text."""
    subject = " of ".join(part for part in (question["tool"], question["server"]) if part) or "the turn"
    return f"{_WAITS.get(question['kind'], question['kind'])} {subject} until {format_time(question['expires_at'])}"


def _draw_workers(workers: list[JsonObject]) -> None:
    _draw_heading("Workers")
    rows = [
        [
            f"{worker['host']}, process {worker['pid']}",
            partial(draw_badge, *(("has a lease", "good") if worker["has_lease"] else ("no lease", "bad"))),
            str(worker["running_turns"]),
            format_time(worker["started_at"]),
            format_time(worker["seen_at"]),
        ]
        for worker in workers
    ]
    draw_table(["Worker", "State", "Running turns", "Started (UTC)", "Last seen"], rows)


def _draw_models(models: list[JsonObject], states: dict[str, JsonObject]) -> None:
    _draw_heading("Models")
    rows = [
        [
            model["id"],
            partial(_draw_model_state, states.get(model["id"])),
            model["status"],
            f"{model['context_window']:,}",
            "" if model["price_in"] is None else f"${model['price_in']:g} / ${model['price_out']:g}",
        ]
        for model in models
    ]
    draw_table(["Model", "State", "Status", "Window", "USD a million tokens, in / out"], rows)


def _draw_model_state(state: JsonObject | None) -> None:
    if state is None:
        draw_badge("not called yet")
    elif state["is_open"]:
        draw_badge(f"not called for {state['retry_after_seconds']:.0f} s after {state['failures']} failures", "bad")
    elif state["failures"]:
        draw_badge(f"{state['failures']} failures", "warning")
    else:
        draw_badge("answers", "good")


def _draw_heading(text: str) -> None:
    ui.label(text).classes("text-lg font-medium").props('role="heading" aria-level="2"')


async def draw_operations(api: Api) -> None:
    with frame(api, "Operations", "/operations"):
        await OperationsPage(api).draw()


async def draw_watched_turn(api: Api, turn_id: str) -> None:
    """Draw a turn of any user as it goes on.

    The audit log records it.
    """
    with frame(api, "Live turn", "/operations"):
        timeline, client = TurnTimeline(), ui.context.client
        ui.label("The audit log records that you watch this turn.").classes("muted")
        entries = ui.element("ol").classes("timeline q-mt-md")

        def redraw() -> None:
            if timeline.is_changed:
                timeline.is_changed = False
                entries.clear()
                with entries:
                    for entry in timeline.entries:
                        draw_entry(entry)

        async def follow() -> None:
            with client:
                try:
                    await TurnFollower(api, timeline, _TURNS).follow(turn_id)
                except ApiError as error:
                    timeline.show_error(str(error))
                    timeline.is_changed = True

        task = cast(asyncio.Task[None], background_tasks.create(follow(), name="console watch"))  # pyright: ignore[reportUnknownMemberType]
        client.on_delete(task.cancel)  # pyright: ignore[reportUnknownMemberType]
        ui.timer(_REDRAW_SECONDS, redraw)

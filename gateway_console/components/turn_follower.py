"""Follows a turn over lost connections, until it ends."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway_console.api import Api, ApiError, quote_path
from gateway_console.components.turn_view import TERMINAL_EVENTS

JsonObject = dict[str, Any]
_MAX_LOST_CONNECTIONS = 60
_BACKOFF_SECONDS = 1.0
_ANSWER_POLL_SECONDS = 5.0
_TEMPORARY_STATUSES = (0, 429, 502, 503, 504)
"""Statuses after which the stream is requested again.

0: the gateway did not answer.
"""


class TurnEventSink(Protocol):
    """A receiver of a turn's events."""

    turn_id: str | None
    is_finished: bool

    def apply(self, event: JsonObject) -> None: ...

    def flush(self) -> None: ...


class TurnFollower:
    """Reads a turn's events into a view."""

    def __init__(self, api: Api, view: TurnEventSink, path: tuple[str, ...] = ("api", "v1", "turns")) -> None:
        self._path = path
        self._api = api
        self._view = view
        self._last = 0
        self._lost_connections = 0
        self.answered = asyncio.Event()

    async def start(self, path: str, body: JsonObject, on_started: Callable[[], None]) -> None:
        """Start a turn and follow it to its end.

        Raises:
            ApiError: the gateway refused the turn.
        """
        try:
            async with self._api.open_stream("POST", path, body) as (turn_id, events):
                self._view.turn_id = turn_id
                async for event in events:
                    self._apply(event.number, event.data)
                    if event.data.get("type") == "turn.started":
                        on_started()
        except ApiError as error:
            if error.status or self._view.turn_id is None:
                raise
        if not self._view.is_finished and self._view.turn_id is not None:
            await self.follow(self._view.turn_id)

    async def follow(self, turn_id: str) -> None:
        """Follow a turn from the last event that was shown.

        Raises:
            ApiError: the gateway refuses for good, or could not serve the stream for long.
        """
        self._view.turn_id = turn_id
        while not self._view.is_finished:
            path = f"{quote_path(*self._path, turn_id, 'events')}?after={self._last}"
            try:
                async with self._api.open_stream("GET", path) as (_, events):
                    async for event in events:
                        self._lost_connections = 0
                        self._apply(event.number, event.data)
                        if event.number is None and event.data.get("reason") == "input_required":
                            await self._wait_for_answer()
            except ApiError as error:
                self._lost_connections += 1
                if error.status not in _TEMPORARY_STATUSES or self._lost_connections >= _MAX_LOST_CONNECTIONS:
                    raise
            if not self._view.is_finished:
                await asyncio.sleep(_BACKOFF_SECONDS)

    async def _wait_for_answer(self) -> None:
        """Wait for an answer.

        The wait is limited, because another client may answer.
        """
        self.answered.clear()
        try:
            async with asyncio.timeout(_ANSWER_POLL_SECONDS):
                await self.answered.wait()
        except TimeoutError:
            return

    def _apply(self, number: int | None, event: JsonObject) -> None:
        if number is not None:
            if number <= self._last:
                return
            self._last = number
        self._view.apply(event)
        if event.get("type") in TERMINAL_EVENTS:
            self._view.flush()

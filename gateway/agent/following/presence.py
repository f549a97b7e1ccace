"""Cancels turns whose clients have left, after a grace period.

A page that is reloaded follows its turn again, maybe at another worker; a client that stops its turn only closes the
connection. So a turn is cancelled when a stream of it has ended early, and none has begun within the grace period.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self
from uuid import UUID

from gateway.agent.following.turn_handle import TurnHandle, TurnListener
from gateway.agent.subscriptions import TurnSubscriptions
from gateway.agent.turn import ActiveTurn
from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import GatewayError
from gateway.ports.store import Bus

log = get_logger(__name__)


class ClientPresence:
    """The streams of this worker whose turns end with them.

    `cancel_turn` cancels a turn on any worker.
    """

    def __init__(self, bus: Bus, cancel_turn: Callable[[TurnHandle], Awaitable[None]]) -> None:
        self._bus = bus
        self._cancel_turn = cancel_turn
        self._streams: Counter[UUID] = Counter()
        self._departures: dict[UUID, asyncio.Task[None]] = {}
        self._tasks = TaskSet("client presence")
        self._is_stopping = False
        bus.subscribe(BusKind.CLIENT_CAME, self.on_client_came)
        bus.subscribe(BusKind.CLIENT_LEFT, self.on_client_left)

    def add_stream(self, turn: TurnHandle) -> None:
        """Count a stream; other workers learn that the client is back."""
        self._streams[turn.id] += 1
        self._keep_turn(turn.id)
        self._bus.publish(BusMessage(BusKind.CLIENT_CAME, turn.id))

    def remove_stream(self, turn: TurnHandle, *, grace_seconds: float, has_ended: bool) -> None:
        """Remove a stream; cancel an unfinished turn after the grace period."""
        self._streams[turn.id] -= 1
        if self._streams[turn.id] > 0:
            return
        del self._streams[turn.id]
        if not has_ended and not self._is_stopping:
            self._bus.publish(BusMessage(BusKind.CLIENT_LEFT, turn.id))
            self._departures[turn.id] = self._tasks.spawn(self._cancel_later(turn, grace_seconds))

    def on_client_came(self, message: BusMessage) -> None:
        self._keep_turn(message.turn_id)

    def on_client_left(self, message: BusMessage) -> None:
        """Tell the other worker of a stream that follows the turn here."""
        if message.turn_id in self._streams:
            self._bus.publish(BusMessage(BusKind.CLIENT_CAME, message.turn_id))

    async def stop(self) -> None:
        """Forget the clients that have left: their turns are handed over."""
        self._is_stopping = True
        await self._tasks.stop()

    def _keep_turn(self, turn_id: UUID) -> None:
        if (departure := self._departures.pop(turn_id, None)) is not None:
            departure.cancel()

    async def _cancel_later(self, turn: TurnHandle, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._departures.pop(turn.id, None)
        try:
            await self._cancel_turn(turn)
        except GatewayError as error:
            log.warning("abandoned_turn_not_cancelled", turn_id=str(turn.id), code=error.code)


class ClientListener(TurnListener):
    """Listener of a client whose departure cancels the turn.

    It closes when the turn waits for a person. `grace_seconds` None: the turn continues without its client.
    """

    def __init__(
        self,
        turn: TurnHandle,
        active: ActiveTurn | None,
        subscriptions: TurnSubscriptions,
        presence: ClientPresence,
        *,
        grace_seconds: float | None,
    ) -> None:
        super().__init__(turn, active, subscriptions, until_input=True, is_streamed=True)
        self._presence = presence
        self._grace_seconds = grace_seconds

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._grace_seconds is not None:
            self._presence.add_stream(self._turn)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        has_ended = self.is_over or self.close_reason is not None
        await super().__aexit__(kind, error, trace)
        if self._grace_seconds is not None:
            self._presence.remove_stream(self._turn, grace_seconds=self._grace_seconds, has_ended=has_ended)

"""Handles of turns, and listeners to their events."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Literal, Self
from uuid import UUID

from gateway.agent.following.end_fields import list_end_fields
from gateway.agent.subscriptions import TurnSubscription, TurnSubscriptions
from gateway.agent.tasks.waits import TASK_WAIT
from gateway.agent.turn import ActiveTurn
from gateway.domain.errors import GatewayError
from gateway.domain.events import Event, JournalEntry
from gateway.domain.messages import JsonObject
from gateway.ports.listener import EventListener
from gateway.ports.store import StoredTurn

RETRY_GRACE_SECONDS = 2.5
"""Time for the first retries of an SDK.

The SDKs wait about 0.5, 1 and 2 seconds before these.
"""
_ACTIVE_STATUSES = ("running", "waiting")


class TurnHandle(ABC):
    """Handle of a turn, wherever it runs, and after its end."""

    __slots__ = ("echo", "id", "id_text", "is_stored")

    def __init__(self, turn_id: UUID, turn_id_text: str, *, is_stored: bool, echo: JsonObject | None) -> None:
        self.id = turn_id
        self.id_text = turn_id_text
        self.is_stored = is_stored
        """Whether the turn's messages and events are stored.

        Any worker can read and continue a stored turn.
        """
        self.echo: JsonObject = echo or {}
        """Data of the request that its wire format repeats in the response."""

    @property
    @abstractmethod
    def has_ended(self) -> bool: ...

    @property
    @abstractmethod
    def cache_status(self) -> Literal["hit", "miss"] | None:
        """Whether the answer came from the response cache.

        None: unknown, or the request did not use the cache.
        """

    @property
    def failure(self) -> GatewayError | None:
        """The error of a failed turn that this call started."""
        return None

    @property
    def first_event(self) -> Event | None:
        """The turn's first event, if this call started it."""
        return None

    def begin_request(self) -> None:  # noqa: B027 - a turn that is only followed has no line
        """Let the log line of the caller's request take the turn's end.

        No effect if another request has started the turn, or takes its end.
        """

    def end_request(self) -> dict[str, object]:
        """Return the fields for the log line of the caller's request.

        Empty if the line of another request has the turn's end, or if the turn goes on: then it has a line of its own.
        """
        return {}


class StartedTurn(TurnHandle):
    """Turn that this call started.

    When its last listener leaves, it may be cancelled. If the client `retries`, that is `RETRY_GRACE_SECONDS` later.
    """

    __slots__ = ("_logs_end", "active", "retries")

    def __init__(self, active: ActiveTurn, *, retries: bool = False) -> None:
        super().__init__(active.id, active.id_text, is_stored=active.is_stored, echo=active.record.request.echo)
        self.active = active
        self.retries = retries
        self._logs_end = False

    @property
    def has_ended(self) -> bool:
        return self.active.log.has_ended

    @property
    def cache_status(self) -> Literal["hit", "miss"] | None:
        if self.active.record.request.cache_ttl is None:
            return None
        return "hit" if self.active.is_cached else "miss"

    @property
    def failure(self) -> GatewayError | None:
        return self.active.failure

    @property
    def first_event(self) -> Event | None:
        return self.active.log.entries[0].event

    def begin_request(self) -> None:
        self._logs_end = not self.active.is_logged_by_request
        self.active.is_logged_by_request = True

    def end_request(self) -> dict[str, object]:
        outcome = self.active.outcome
        if self._logs_end and self.active.log.has_ended and outcome is not None:
            return list_end_fields(self.id_text, self.active.record.model, outcome)
        if self._logs_end:
            self.active.is_logged_by_request = False
        return {}


class FollowedTurn(TurnHandle):
    """Turn that an earlier call started. Listeners do not affect it."""

    __slots__ = (
        "_cache_status",
        "_has_ended",
        "cancel_requested",
        "completed_at",
        "finish_reason",
        "is_direct",
        "status",
    )

    def __init__(self, stored: StoredTurn) -> None:
        super().__init__(stored.id, str(stored.id), is_stored=stored.store, echo=stored.options.get("echo"))
        # Not the turn itself, whose messages would stay in memory as long as a follower.
        self.status, self.finish_reason = stored.status, stored.finish_reason
        self.cancel_requested, self.completed_at = stored.cancel_requested, stored.completed_at
        self.is_direct = stored.options.get("direct_call") is not None
        """Whether the turn consists of a direct call."""
        self._has_ended = stored.status not in _ACTIVE_STATUSES
        self._cache_status: Literal["hit", "miss"] | None = None
        if "cache_ttl" in stored.options and stored.status == "completed":
            self._cache_status = "hit" if stored.cached else "miss"

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    @property
    def cache_status(self) -> Literal["hit", "miss"] | None:
        return self._cache_status


class TurnListener(EventListener):
    """Async context manager, and iterator over batches of a turn's entries.

    Each entry comes once. An SDK retries no response that has begun, so no retry of an accepted stream (`is_streamed`)
    is awaited.
    """

    def __init__(
        self,
        turn: TurnHandle,
        active: ActiveTurn | None,
        subscriptions: TurnSubscriptions,
        *,
        after: int = 0,
        until_input: bool = False,
        is_streamed: bool = False,
    ) -> None:
        self._turn = turn
        self._is_streamed = is_streamed
        self._active = active
        self._subscriptions = subscriptions
        self._subscription: TurnSubscription | None = None
        self._after = after
        self._batches: AsyncIterator[list[JournalEntry]] | None = None
        self._until_input = until_input

    async def __aenter__(self) -> Self:
        """Subscribe to the turn.

        Raises:
            TurnNotStored: the turn is not stored, and does not run in this worker.
        """
        if self._active is not None:
            self._active.add_listener()
            self._log = self._active.log
            self.is_local = True
            return self
        self._follow_journal()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            self._subscription.unsubscribe()
        if self._active is not None:
            may_retry = isinstance(self._turn, StartedTurn) and self._turn.retries
            if may_retry and not (self._is_streamed and self._active.first_token_ms is not None):
                asyncio.get_running_loop().call_later(RETRY_GRACE_SECONDS, self._active.remove_listener)
            else:
                self._active.remove_listener()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[JournalEntry]:
        while True:
            if self._batches is None:
                self._batches = self._log.follow(self._after)
            try:
                batch = await anext(self._batches)
            except StopAsyncIteration:
                if self._log.close_reason != TASK_WAIT or self._log.has_ended:
                    raise
                self._follow_journal()
                self._batches = None
            else:
                self._after = batch[-1].seq
                return batch

    def _follow_journal(self) -> None:
        """Follow the turn wherever it runs.

        The log of a turn that this call started would have closed at a question, so its successor does, too.
        """
        if self._subscription is not None:
            self._subscription.unsubscribe()
        turn, until_input = self._turn, self._until_input or self._active is not None
        subscription = self._subscriptions.subscribe(turn.id, is_stored=turn.is_stored, until_input=until_input)
        self._subscription, self._log, self.is_local = subscription, subscription.log, subscription.is_local

    @property
    def close_reason(self) -> str | None:
        """Reason why the events stopped early; None after the last event."""
        return self._log.close_reason

    @property
    def is_over(self) -> bool:
        """Whether the turn has ended.

        Its last event may not have arrived yet.
        """
        return self._turn.has_ended or self._log.has_ended

    @property
    def turn_has_ended(self) -> bool:
        """Whether the turn's last event has arrived."""
        return self._log.has_ended

    @property
    def failure(self) -> GatewayError | None:
        """The error of a failed turn that this call started."""
        return self._turn.failure

    async def wait_until_accepted(self, seconds: float) -> None:
        """Wait for the model's first output or the turn's end.

        The wait takes at most `seconds`.

        Raises:
            GatewayError: the turn failed before the model's first output.
        """
        if self._active is not None:
            await self._active.wait_until_accepted(seconds)

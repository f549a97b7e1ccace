"""The queue of requests that wait for a conversation, over all workers.

They run in the order of their arrival. A request that finds its conversation busy gets a ticket from the database, and
starts its turn when no earlier ticket is left. A ticket counts only while its worker has a lease, so a dead worker
blocks nobody.
"""

import asyncio
from types import TracebackType
from typing import Self
from uuid import UUID

from gateway.agent.subscriptions import INPUT_REQUIRED, TurnSubscriptions
from gateway.common.concurrency import Backoff, Deadline, TaskSet, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import ConversationBusy, StorageUnavailable
from gateway.domain.messages import Principal, TurnRequest
from gateway.ports.store import Bus, ConversationRepository, ConversationState

log = get_logger(__name__)

POLL_SECONDS = 2.0
_MIN_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 2.0


class ConversationQueue:
    """Requests of this worker that open or await their conversations.

    A request waits at most `busy_seconds`.
    """

    def __init__(
        self,
        worker_id: UUID,
        conversations: ConversationRepository,
        subscriptions: TurnSubscriptions,
        bus: Bus,
        busy_seconds: float,
    ) -> None:
        self._worker_id = worker_id
        self._conversations = conversations
        self._subscriptions = subscriptions
        self._bus = bus
        self._busy_seconds = busy_seconds
        self._places: set[ConversationPlace] = set()
        self._tasks = TaskSet("conversation queue")
        self.is_stopping = False

    def make_place(self, request: TurnRequest, principal: Principal, *, may_wait: bool) -> "ConversationPlace":
        """Return the request's place, an async context manager.

        Without `may_wait` the request gets no ticket.
        """
        deadline = Deadline.after(self._busy_seconds if may_wait else 0.0)
        return ConversationPlace(self, request, principal, deadline)

    def on_ticket_released(self, message: BusMessage) -> None:
        """Wake the request directly behind a released ticket."""
        for place in self._places:
            place.on_ticket_released(message.ticket)

    async def stop(self) -> None:
        """Wake every request, and release the tickets.

        The requests then find that this worker stops. Tickets expire if the database does not answer soon.
        """
        self.is_stopping = True
        for place in self._places:
            place.wake()
        await self._tasks.stop(_MAX_BACKOFF_SECONDS)

    # --- what the places call

    def add(self, place: "ConversationPlace") -> None:
        self._places.add(place)

    def remove(self, place: "ConversationPlace") -> None:
        self._places.discard(place)

    async def open_conversation(
        self, request: TurnRequest, principal: Principal, ticket: int | None, wait_seconds: float
    ) -> ConversationState:
        return await self._conversations.open_conversation(
            request, principal, worker_id=self._worker_id, ticket=ticket, wait_seconds=wait_seconds
        )

    async def wait_for_end(self, turn_id: UUID) -> None:
        """Wait until the turn ends or waits for a person.

        A turn that can no longer be followed may still be busy, so this then returns after a pause.
        """
        with self._subscriptions.subscribe(turn_id, until_input=True) as subscription:
            await subscription.wait_until_closed()
            is_followed = subscription.log.has_ended or subscription.log.close_reason == INPUT_REQUIRED
        if not is_followed:
            await asyncio.sleep(POLL_SECONDS)

    def release_ticket(self, ticket: int, expiry: Deadline) -> None:
        """Delete a ticket in the background; notify the request behind it."""
        self._tasks.spawn(self._release_ticket(ticket, expiry))

    async def _release_ticket(self, ticket: int, expiry: Deadline) -> None:
        backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while True:
            try:
                await self._conversations.release_ticket(ticket)
                break
            except StorageUnavailable:
                log.warning("ticket_release_failed", ticket=ticket)
                if expiry.is_over:
                    break
                await asyncio.sleep(backoff.next_delay())
        self._bus.publish(BusMessage(BusKind.TICKET_RELEASED, BusMessage.NO_TURN, ticket))


class ConversationPlace:
    """The place of a request in the queue of its conversation.

    The end of its block releases its ticket.
    """

    def __init__(
        self, queue: ConversationQueue, request: TurnRequest, principal: Principal, deadline: Deadline
    ) -> None:
        self._queue = queue
        self._request = request
        self._principal = principal
        self._deadline = deadline
        self._state: ConversationState | None = None
        self._ticket: int | None = None
        self._has_moved_up = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._queue.add(self)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._queue.remove(self)
        if self._ticket is not None:
            self._queue.release_ticket(self._ticket, self._deadline)

    async def open_conversation(self) -> ConversationState:
        """Return the request's conversation, once it is free.

        Its id is None if the request has no conversation.

        Raises:
            NotFound: the principal has no such conversation or parent turn.
            ConversationBusy: another turn runs, or another request is ahead of this one.
            StorageUnavailable: the database cannot be reached.
        """
        self._state = None
        self._has_moved_up.clear()  # before the read, or a ticket that is released after it would be missed
        seconds = self._deadline.remaining()
        state = await self._queue.open_conversation(self._request, self._principal, self._ticket, seconds)
        if state.ticket is not None:
            self._ticket = state.ticket
        if state.busy_status == "waiting":
            raise ConversationBusy("Another turn of this conversation waits for an answer.")
        self._state = state
        if not state.is_free:
            raise ConversationBusy
        return state

    async def wait(self, busy: ConversationBusy) -> None:
        """Wait until another attempt may succeed.

        `busy` is the error of the last attempt.

        Raises:
            ConversationBusy: the request may not wait, or not any longer.
        """
        state = self._state
        if state is None or self._deadline.is_over:
            raise busy
        if self._queue.is_stopping:
            return  # the next attempt fails
        try:
            async with self._deadline.limit():
                if state.ahead is not None:
                    await wait_or_poll(self._has_moved_up, POLL_SECONDS)
                elif state.busy_turn_id is not None:
                    await self._queue.wait_for_end(state.busy_turn_id)
        except TimeoutError:
            raise busy from None

    def on_ticket_released(self, ticket: int | None) -> None:
        if self._state is None or self._state.ahead == ticket:
            self._has_moved_up.set()

    def wake(self) -> None:
        self._has_moved_up.set()

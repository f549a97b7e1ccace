"""Storage of turns, conversations, questions, budgets and messages. `gateway.store` implements it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.cached_answer import CachedAnswer
from gateway.domain.errors import ErrorInfo
from gateway.domain.events import JournalEntry
from gateway.domain.history import History
from gateway.domain.messages import (
    Answer,
    JsonObject,
    Message,
    PendingInput,
    Principal,
    StoredQuestion,
    TurnClaim,
    TurnRecord,
    TurnRequest,
)
from gateway.domain.spending import BudgetReservation, RequestHold, UsageTotals
from gateway.domain.turn_progress import TurnProgress


class StoredTurn(Protocol):
    """A stored turn. `store`: messages and events are stored, not only statistics."""

    @property
    def id(self) -> UUID: ...

    @property
    def owner(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def store(self) -> bool: ...

    @property
    def cached(self) -> bool: ...

    @property
    def options(self) -> JsonObject: ...

    @property
    def messages(self) -> list[JsonObject]: ...

    @property
    def sent_messages(self) -> int: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def cancel_requested(self) -> bool: ...

    @property
    def completed_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class ConversationState:
    """State of a conversation, as one request finds it.

    `id` is None if the request has no conversation; `external_id` is the client's own id. `busy_turn_id` is the
    unfinished turn, and `busy_status` its status. `ahead` is the ticket directly ahead of the request, and `ticket` a
    ticket that the request just got.
    """

    id: UUID | None
    external_id: str | None = None
    busy_turn_id: UUID | None = None
    busy_status: str | None = None
    ahead: int | None = None
    ticket: int | None = None

    @property
    def is_free(self) -> bool:
        return self.busy_turn_id is None and self.ahead is None

    @property
    def name(self) -> str | None:
        """The id that clients see: their own, or the gateway's."""
        return self.external_id or (str(self.id) if self.id else None)


class ConversationRepository(Protocol):
    """Conversations, their turns, and the requests that wait for them."""

    @abstractmethod
    async def open_conversation(
        self, request: TurnRequest, principal: Principal, *, worker_id: UUID, ticket: int | None, wait_seconds: float
    ) -> ConversationState:
        """Return the state of the request's conversation.

        It is created for "new", and for an id of the client's own without a conversation yet.

        If the conversation is not free, and the request has no `ticket` yet, it gets one for `wait_seconds`, unless
        these are 0.

        Raises:
            NotFound: the principal has no such conversation or parent turn.
            ConversationBusy: the parent turn has not ended.
            StorageUnavailable: the database cannot be reached.
        """
        ...

    @abstractmethod
    async def release_ticket(self, ticket: int) -> None:
        """Delete a ticket, and some tickets that have expired.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        ...

    @abstractmethod
    async def load_history(self, turn_id: UUID) -> History:
        """Load the turns before a turn that has begun."""
        ...

    @abstractmethod
    async def load_next_history(self, turn: TurnRecord) -> History:
        """Load the turns that a turn would follow if it began now."""
        ...

    @abstractmethod
    async def get_parent_id(self, turn_id: UUID) -> UUID | None:
        """Return the turn that a turn follows."""
        ...

    @abstractmethod
    async def load_added_messages(self, turn_ids: list[UUID], principal: Principal) -> dict[UUID, tuple[Message, ...]]:
        """Load the messages that completed turns of the caller added.

        The messages of their requests are not included.
        """
        ...


class ResponseCache(Protocol):
    """Answers that may be reused for their owner.

    Every method may raise StorageUnavailable.
    """

    @abstractmethod
    async def find_answer(self, owner: str, key: bytes, ttl: float) -> CachedAnswer | None:
        """Return the owner's recent answer to an equal request.

        The answer is at most `ttl` seconds old.
        """
        ...

    @abstractmethod
    async def save_answer(self, owner: str, key: bytes, turn_id: UUID, ttl: float) -> None:
        """Allow reuse of the turn's answer for `ttl` seconds.

        Reuse begins once the turn has completed.
        """
        ...


class TurnRepository(Protocol):
    """Stored turns. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def get_turn(self, turn_id: UUID, principal: Principal) -> StoredTurn:
        """Raises:
        NotFound: the principal has no such turn.
        """
        ...

    @abstractmethod
    async def load_request(self, turn_id: UUID, principal: Principal) -> TurnRequest:
        """Load the request of a turn.

        Its model, conversation and parent are those of the turn.

        Raises:
            NotFound: the principal has no such turn.
            TurnNotStored: only the turn's usage is stored.
            TurnUnreadable: the row has a value that this release does not know.
        """
        ...

    @abstractmethod
    async def find_by_idempotency_key(self, principal: Principal, idempotency_key: str) -> StoredTurn | None:
        """Return the turn that an idempotency key of the user has started.

        Raises:
            Conflict: the caller may not read this turn.
        """
        ...

    @abstractmethod
    async def find_by_request_hash(self, principal: Principal, request_hash: str) -> StoredTurn | None:
        """Return the last turn of an equal request, if it forbids another.

        It runs, or it ended less than two minutes ago and completed or called tools.
        """
        ...

    @abstractmethod
    async def request_cancel(self, turn_id: UUID) -> None:
        """Store the cancellation, so a worker that takes over honours it."""
        ...

    @abstractmethod
    async def load_events(self, turn_id: UUID, after: int) -> list[JournalEntry]:
        """Load the next part of the journal after number `after`.

        Empty if there is no more.
        """
        ...

    @abstractmethod
    async def load_record(self, claim: TurnClaim) -> tuple[TurnRecord, bool]:
        """Load the record of a claimed turn.

        The flag says whether its cancellation was requested.

        Raises:
            TurnUnreadable: the row has a value that this release does not know.
        """
        ...

    @abstractmethod
    async def load_journal(self, turn_id: UUID) -> list[JournalEntry]:
        """Load the whole journal of a turn.

        Raises:
            TurnUnreadable: the journal has an event that this release does not know.
        """
        ...

    @abstractmethod
    async def get_progress(self, turn_id: UUID) -> TurnProgress | None: ...

    @abstractmethod
    async def find_woken(self, epochs: Mapping[UUID, int]) -> list[UUID]:
        """List the turns whose wait has ended.

        `epochs`: the turns with their epochs during that wait. They may wait again.
        """
        ...


class WorkerRepository(Protocol):
    """The lease and the turns of one worker.

    Every method may raise StorageUnavailable.
    """

    @abstractmethod
    async def renew_lease(self, seconds: float) -> float | None:
        """Extend the lease; return its length in seconds from now.

        None: the worker has no lease, because another worker has ended it and may have claimed the turns.
        """
        ...

    @abstractmethod
    async def register(self, seconds: float) -> float:
        """Take a new lease and return its length.

        Stored turns that this worker owned before are released as lost.
        """
        ...

    @abstractmethod
    async def deregister(self) -> None:
        """End the lease of a worker that stops in order."""
        ...

    @abstractmethod
    async def claim_turns(self, silence: timedelta) -> list[TurnClaim]:
        """Claim running turns without a live worker.

        A live worker has a lease. A worker of release 0.1.0 has none; its last heartbeat may be `silence` ago. Nothing
        is claimed without an own lease. Of the turns in their last attempt, a worker has one at a time: one of them may
        kill the worker, and the others would fail with it.
        """
        ...

    @abstractmethod
    async def list_turns(self) -> list[UUID]:
        """List the running turns that this worker owns."""
        ...

    @abstractmethod
    async def release_turns(self, turn_ids: list[UUID], *, is_lost: bool = False) -> None:
        """Release turns, so that other workers can claim them.

        With `is_lost`, the worker did not hand them over in order, which counts as an attempt of each.
        """
        ...

    @abstractmethod
    async def end_turn(self, claim: TurnClaim, error: ErrorInfo, response: str = "") -> None:
        """End a turn as failed without reading its row.

        `response` is its text so far. Does nothing if another worker has claimed it.
        """
        ...


class QuestionRepository(Protocol):
    """Questions of turns and their answers. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def save_questions(
        self, turn_id: UUID, call_id: str, pending_input: PendingInput, *, epoch: int
    ) -> list[tuple[StoredQuestion, datetime]]:
        """Store a call's questions; return each with its expiry time.

        Raises:
            TurnTakenOver: this worker does not own the turn in this epoch.
        """
        ...

    @abstractmethod
    async def get_question(self, turn_id: UUID, input_id: UUID) -> StoredQuestion:
        """Raises:
        NotFound: the turn has no such question.
        """
        ...

    @abstractmethod
    async def answer_question(self, turn_id: UUID, input_id: UUID, answer: Answer) -> None:
        """Answer a question once; a suspended turn continues.

        Raises:
            Conflict: the question is already answered or has expired, or the turn has ended.
        """
        ...

    @abstractmethod
    async def answer_sign_in(self, server: str, owner: str) -> list[UUID]:
        """Answer all questions that wait for a sign-in to `server`.

        Return their turns. The owner "" stands for every user.
        """
        ...

    @abstractmethod
    async def list_for_turn(self, turn_id: UUID) -> list[StoredQuestion]:
        """List a turn's questions, with the answers so far."""
        ...

    @abstractmethod
    async def get_answer(self, turn_id: UUID, input_id: UUID) -> Answer | None: ...

    @abstractmethod
    async def expire_inline(self, turn_id: UUID, *, epoch: int) -> None:
        """Expire open inline questions, which only the previous worker could deliver.

        Raises:
            TurnTakenOver: this worker does not own the turn in this epoch.
        """
        ...

    @abstractmethod
    async def wake_if_answered(self, turn_id: UUID, open_inputs: list[UUID]) -> bool:
        """Resume a suspended turn that need not wait.

        Return whether one of `open_inputs` has an answer, or the turn is to be cancelled.
        """
        ...

    @abstractmethod
    async def expire_overdue(self) -> list[UUID]:
        """Expire overdue questions; return the turns that continue."""
        ...


class Bus(Protocol):
    """Messages between workers. A message may be lost."""

    @abstractmethod
    def publish(self, message: BusMessage) -> None:
        """Send to all workers, this one included."""
        ...

    @abstractmethod
    def subscribe(self, kind: BusKind, handler: Callable[[BusMessage], None]) -> None:
        """Call `handler` with each message of this kind. It must not block."""
        ...


class BudgetTransaction(Protocol):
    """A transaction that excludes other reservations of the same owner."""

    @abstractmethod
    async def get_totals(self, key: str | None = None, *, without: UUID | None = None) -> UsageTotals:
        """Return the totals of an owner or of a key.

        They do not include the turn `without`.
        """
        ...

    @abstractmethod
    async def reserve(self, reservation: BudgetReservation, key: str | None) -> None:
        """Store a reservation, replacing an earlier one of the turn.

        Raises:
            TurnTakenOver: this worker does not own the turn in this epoch.
        """
        ...

    @abstractmethod
    async def reserve_request(self, hold: RequestHold, key: str | None) -> None:
        """Store the reservation of a request that is no turn."""
        ...


class BudgetRepository(Protocol):
    """Usage and reservations of turns. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def get_totals(self, owner: str, key: str | None = None) -> UsageTotals:
        """See `BudgetTransaction.get_totals`."""
        ...

    @abstractmethod
    def begin_transaction(self, owner: str) -> AbstractAsyncContextManager[BudgetTransaction]:
        """Open a transaction, which commits at the end of the block."""
        ...

    @abstractmethod
    async def settle(self, reservation: BudgetReservation) -> None:
        """Replace a turn's reservation by its actual usage.

        Its step has ended.

        Raises:
            TurnTakenOver: this worker does not own the turn in this epoch.
        """
        ...

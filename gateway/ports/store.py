"""What the agent asks others to keep for it. The store satisfies these."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from gateway.domain.events import JournalEntry
from gateway.domain.messages import (
    Answer,
    BudgetReservation,
    BusKind,
    BusMessage,
    CachedAnswer,
    JsonObject,
    Message,
    PendingInput,
    Principal,
    StoredQuestion,
    TurnOutcome,
    TurnRecord,
    TurnRequest,
    UsageTotals,
)


class EventSource(Protocol):
    """A turn's log, as the journal sees it."""

    turn_id: UUID

    @abstractmethod
    def take_unwritten(self) -> list[JournalEntry]:
        """The entries that the journal has not been given yet. It must write them, in this order."""
        ...

    @abstractmethod
    def mark_committed(self, seq: int) -> None:
        """Record that all entries up to `seq` are durable."""
        ...


class StoredTurn(Protocol):
    """A turn as it is stored, to be read. `store`: its messages and events are stored, not its figures alone."""

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


class Journal(Protocol):
    """The append-only record of every turn's events."""

    @abstractmethod
    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """Make the turn and its first events durable.

        Raises:
            StorageUnavailable: the database cannot be reached in time.
        """
        ...

    @abstractmethod
    def schedule_flush(self, log: EventSource) -> None:
        """Write what the log has gathered, at most one flush interval from now."""
        ...

    @abstractmethod
    def flush(self, log: EventSource) -> asyncio.Future[None]:
        """Write what the log has gathered with the next commit; done when that is durable."""
        ...

    @abstractmethod
    def finish_turn(self, log: EventSource, outcome: TurnOutcome) -> asyncio.Future[None]:
        """Write the rest of the log and the turn's outcome in one commit."""
        ...

    @abstractmethod
    def suspend_turn(self, log: EventSource) -> asyncio.Future[None]:
        """Write the rest of the log and leave the turn to wait for a person, in one commit."""
        ...

    @property
    @abstractmethod
    def is_unavailable(self) -> bool:
        """Whether the database could not be reached when it was last written to."""
        ...

    @property
    @abstractmethod
    def is_backlogged(self) -> bool:
        """Whether too much waits for the database: then await `wait_for_capacity()`."""
        ...

    @abstractmethod
    async def wait_for_capacity(self) -> None: ...


class ConversationRepository(Protocol):
    """Conversations and their turns."""

    @abstractmethod
    async def open_conversation(self, request: TurnRequest, principal: Principal) -> UUID | None:
        """The id of the conversation that the request is part of; "new" makes one, None is none.

        Raises:
            NotFound: the principal has no such conversation or parent turn.
            ConversationBusy: the parent turn has not ended.
            StorageUnavailable: the database cannot be reached.
        """
        ...

    @abstractmethod
    async def load_history(self, turn_id: UUID) -> list[tuple[Message, ...]]:
        """The messages of the turns that a turn follows, a tuple a turn, oldest first."""
        ...

    @abstractmethod
    async def load_added_messages(self, turn_ids: list[UUID], owner: str) -> dict[UUID, tuple[Message, ...]]:
        """What ended turns of an owner added to the messages that they were sent."""
        ...

    @abstractmethod
    async def get_busy_turn(self, conversation_id: str, principal: Principal) -> StoredTurn | None:
        """The turn that has to end before another may begin.

        Raises:
            NotFound: the principal has no such conversation.
            StorageUnavailable: the database cannot be reached.
        """
        ...


class ResponseCache(Protocol):
    """Answers to be given again, to their owner alone. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def find_answer(self, owner: str, key: bytes, ttl: float) -> CachedAnswer | None:
        """The answer that an owner got to such a request, if that is no longer ago than `ttl` seconds."""
        ...

    @abstractmethod
    async def save_answer(self, owner: str, key: bytes, turn_id: UUID, ttl: float) -> None:
        """From when the turn has completed, its answer may be given again for `ttl` seconds."""
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
    async def find_by_idempotency_key(self, owner: str, idempotency_key: str) -> StoredTurn | None:
        """The turn that the owner's idempotency key has started."""
        ...

    @abstractmethod
    async def request_cancel(self, turn_id: UUID) -> None:
        """Store the cancellation, so a worker that takes over honours it."""
        ...

    @abstractmethod
    async def load_events(self, turn_id: UUID, after: int) -> list[JournalEntry]:
        """The journal behind number `after`, in order; a part of it if it is long, none if there is no more."""
        ...

    @abstractmethod
    async def load_journal(self, turn_id: UUID) -> list[JournalEntry]:
        """The whole journal."""
        ...

    @abstractmethod
    async def get_status(self, turn_id: UUID) -> str | None: ...


class WorkerRepository(Protocol):
    """The workers, and which turns each runs. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def heartbeat(self, worker_id: UUID) -> None:
        """Say that the worker lives."""
        ...

    @abstractmethod
    async def claim_turns(self, worker_id: UUID, silent: timedelta) -> list[tuple[TurnRecord, bool]]:
        """Take the turns that nobody runs: of dead workers, of those silent for so long, of nobody.

        With each comes whether somebody has asked to cancel it.
        """
        ...

    @abstractmethod
    async def release_turns(self, worker_id: UUID, turn_ids: list[UUID]) -> None:
        """Leave turns to whoever claims them."""
        ...

    @abstractmethod
    async def deregister(self, worker_id: UUID) -> None:
        """The worker ends well."""
        ...


class QuestionRepository(Protocol):
    """Questions of turns and their answers. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def save_questions(
        self, turn_id: UUID, call_id: str, needed: PendingInput
    ) -> list[tuple[StoredQuestion, datetime]]:
        """Keep a call's questions, each with when it expires."""
        ...

    @abstractmethod
    async def get_question(self, turn_id: UUID, input_id: UUID) -> StoredQuestion:
        """Raises:
        NotFound: the turn has not asked this.
        """
        ...

    @abstractmethod
    async def answer_question(self, turn_id: UUID, input_id: UUID, answer: Answer) -> None:
        """Decide a question, once.

        Raises:
            Conflict: it has been decided already, or has expired, or the turn has ended.
        """
        ...

    @abstractmethod
    async def list_for_turn(self, turn_id: UUID) -> list[StoredQuestion]:
        """All that a turn has asked, with the answers so far."""
        ...

    @abstractmethod
    async def get_answer(self, turn_id: UUID, input_id: UUID) -> Answer | None: ...

    @abstractmethod
    async def expire_inline(self, turn_id: UUID) -> None:
        """Decide the questions that only a worker now gone could have answered."""
        ...

    @abstractmethod
    async def wake_if_answered(self, turn_id: UUID) -> bool:
        """Let a parked turn go on if an answer came while it was being parked; whether one did."""
        ...

    @abstractmethod
    async def expire_overdue(self) -> list[UUID]:
        """Decide the questions whose time is over; the turns that may go on."""
        ...


class Bus(Protocol):
    """Workers telling each other; a message may get lost."""

    @abstractmethod
    def publish(self, message: BusMessage) -> None:
        """Send to all workers, this one included."""
        ...

    @abstractmethod
    def subscribe(self, kind: BusKind, handler: Callable[[BusMessage], None]) -> None:
        """Call `handler` with each message of this kind. It must not block."""
        ...


class BudgetTransaction(Protocol):
    """An owner's part of the ledger, while nobody else sets anything aside in it."""

    @abstractmethod
    async def get_totals(self, key: str | None = None, *, without: UUID | None = None) -> UsageTotals:
        """Of the owner, or of that with a key; `without` what a turn holds."""
        ...

    @abstractmethod
    async def reserve(self, hold: BudgetReservation, key: str | None) -> None:
        """Set aside, in the place of what the turn has held before."""
        ...


class BudgetRepository(Protocol):
    """What turns have used up. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def get_totals(self, owner: str, key: str | None = None) -> UsageTotals:
        """See `BudgetTransaction.get_totals`."""
        ...

    @abstractmethod
    def begin_transaction(self, owner: str) -> AbstractAsyncContextManager[BudgetTransaction]:
        """The owner's account; what was done in it counts from the end of the block."""
        ...

    @abstractmethod
    async def settle(self, hold: BudgetReservation) -> None:
        """The turn's step has ended: only what the turn has used up counts."""
        ...

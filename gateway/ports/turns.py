"""A running turn, as tool calls and budgets use it.

Also the limit on running turns.
"""

from abc import abstractmethod
from typing import Protocol
from uuid import UUID

from gateway.domain.events import Event, ToolCallStarted
from gateway.domain.messages import Answer, PendingInput, Principal, Question, ToolCall
from gateway.ports.model import ModelInfo


class EventEmitter(Protocol):
    """Receives the events of a turn."""

    id: UUID
    is_stored: bool
    """True if the turn is stored.

    Another worker can resume a stored turn, and clients can read it later.
    """

    @abstractmethod
    def emit(self, event: Event) -> None: ...

    @abstractmethod
    async def wait_until_durable(self) -> None:
        """Wait until every event that was emitted so far is durable."""
        ...

    @abstractmethod
    def require_lease(self) -> None:
        """Stop the turn if other workers may claim it now.

        It is the `StartCheck` of the turn's calls.

        Raises:
            TurnTakenOver: other workers may claim the turn now.
        """
        ...

    @abstractmethod
    async def ask_questions(self, call_id: str, pending_input: PendingInput) -> None:
        """Store the questions of a call, then show them.

        The call continues when they are answered.
        """
        ...

    @abstractmethod
    async def ask_inline(self, call_id: str, question: Question) -> Answer:
        """Store and show a question, and wait for the answer.

        The call stays open meanwhile.
        """
        ...

    @abstractmethod
    async def withdraw_questions(self, call_id: str) -> None:
        """Close the unanswered inline questions of a call that has ended."""
        ...


class NestedCalls(Protocol):
    """The tool calls of a program."""

    @abstractmethod
    def add_call(self, call: ToolCall) -> None:
        """Emit a call and start it when it may run."""
        ...

    @abstractmethod
    def settle_open_call(self, call: ToolCallStarted) -> None:
        """Continue a call without a result.

        Its questions are answered or open, or it was interrupted.
        """
        ...

    @abstractmethod
    async def wait_for_results(self) -> None:
        """Wait until every call has ended or waits for a person.

        Raises the first error of a call.
        """
        ...


class TurnSpending(Protocol):
    """A running turn, as budgets use it.

    The ledger does not include its usage yet.
    """

    id: UUID
    principal: Principal
    model: ModelInfo

    @property
    @abstractmethod
    def epoch(self) -> int: ...

    @property
    @abstractmethod
    def tokens(self) -> int: ...

    @property
    @abstractmethod
    def usd(self) -> float: ...


class TurnSlot(Protocol):
    """Slot of a caller for a running turn."""

    @abstractmethod
    def release(self) -> None:
        """Release the slot. Repeated calls have no effect."""
        ...


class TurnSlots(Protocol):
    """Limits the turns of a caller that run at once."""

    @abstractmethod
    async def acquire_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """Take a slot for a new turn. None: turns are not limited.

        Raises:
            TooManyStreams: all slots of this caller are taken.
        """
        ...

    @abstractmethod
    async def wait_for_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """Take a slot for a continued turn, when it is free.

        A slot of the turn that another worker held counts as free.
        """
        ...

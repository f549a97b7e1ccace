"""Interfaces between the agent loop and a running turn."""

from abc import abstractmethod

import msgspec

from gateway.agent.branches.recorded_calls import RecordedCalls
from gateway.agent.history.window import HistoryOverflow
from gateway.agent.tasks.waits import TurnTaskWaits
from gateway.agent.transcript import Transcript
from gateway.domain.direct_calls import DirectCall
from gateway.domain.messages import (
    Approval,
    JsonObject,
    Message,
    Parameters,
    Principal,
    StoredQuestion,
    ToolChoice,
    ToolSpec,
    Usage,
)
from gateway.ports.code import ProgramInterface
from gateway.ports.model import ModelCall
from gateway.ports.turns import EventEmitter


class TurnContext(EventEmitter):
    """A running turn, as the agent loop uses it.

    A turn with a `direct_call` consists of it, and `begins_call` if no worker can have made it.
    `interrupted_step` is set from a takeover until the clients were told to discard what they have of that step. A fork
    or replay has `taken_steps` of another turn, and a replay answers calls from `recorded_calls`.
    """

    transcript: Transcript
    tasks: TurnTaskWaits
    inputs: list[StoredQuestion]
    interrupted_step: int | None = None
    taken_steps: int = 0
    recorded_calls: RecordedCalls | None = None
    direct_call: DirectCall | None = None
    begins_call: bool = False

    @abstractmethod
    def on_accepted(self) -> None:
        """Record that the model has accepted the turn's first request."""

    @abstractmethod
    def has_capacity(self) -> bool:
        """Whether `wait_for_capacity` would return at once."""
        ...

    @abstractmethod
    async def wait_for_capacity(self) -> None:
        """Wait while the journal is backlogged.

        Raises:
            TurnTooLarge: the turn's events exceed their maximum.
        """

    @abstractmethod
    async def reserve_budget(self, call: ModelCall) -> None:
        """Reserve the maximum cost of a model call before it is sent.

        Raises:
            BudgetExceeded: the caller's budget does not allow it.
        """

    @abstractmethod
    async def settle_budget(self) -> None:
        """Release the reservation of the step that has ended.

        Only its actual usage counts.
        """

    @abstractmethod
    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        """Count the usage of a failed model call."""

    @abstractmethod
    def calculate_cost(self, usage: Usage) -> float | None:
        """Return the price in USD; None if the model's price is unknown."""


class ModelContext(msgspec.Struct, frozen=True):
    """The part of a model call that all steps share.

    `messages` are the system message, the history and those of the request, whose indexes there are the
    `client_indexes`, and whose names in errors the `message_paths`; `find_tools` searches the `hidden` tools,
    and programs call the `functions` by their `interface`.
    The model summarizes the `overflow` of the history before the first step, with `summary_effort` of reasoning. With
    `sees_images`, it gets images of tool results.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice | None
    parameters: Parameters
    principal: Principal
    approval: Approval = "never"
    response_format: JsonObject | None = None
    hidden: tuple[ToolSpec, ...] = ()
    functions: tuple[ToolSpec, ...] = ()
    interface: ProgramInterface | None = None
    overflow: HistoryOverflow | None = None
    summary_effort: str | None = None
    client_indexes: tuple[int | None, ...] = ()
    message_paths: tuple[str, ...] = ()
    sees_images: bool = False

    def insert_summary(self, message: Message) -> "ModelContext":
        """Return the context with a summary before its other messages.

        The system message stays the first.
        """
        start = 1 if self.messages[0].role == "system" else 0
        return msgspec.structs.replace(
            self,
            messages=(*self.messages[:start], message, *self.messages[start:]),
            client_indexes=(*self.client_indexes[:start], None, *self.client_indexes[start:]),
        )

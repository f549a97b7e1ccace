"""The closed union of what a turn tells the world. Each dispatch over it ends in `assert_never`.

As JSON an event is its fields and its `type`; its number lives beside it, in the log, the journal and the SSE `id`.
"""

from typing import Any, Literal

import msgspec

from gateway.domain.errors import ErrorInfo
from gateway.domain.messages import Action, JsonObject, Outcome, Usage


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    """Not tracked by the garbage collector, nor is its entry: no event can lead back to itself, and there are a lot."""


class TurnStarted(_Event, frozen=True, kw_only=True, tag="turn.started"):
    """`tools` are the names on offer; `warnings` are for people, e.g. that a retired model id was replaced."""

    turn_id: str
    conversation_id: str | None
    model: str
    tools: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ReasoningDelta(_Event, frozen=True, kw_only=True, tag="reasoning.delta"):
    step: int
    text: str


class TextDelta(_Event, frozen=True, kw_only=True, tag="text.delta"):
    step: int
    text: str


class ToolCallStarted(_Event, frozen=True, kw_only=True, tag="tool.call"):
    """Sent before the call runs. `arguments` is the model's text where that is no JSON object.

    A `client` call is not run here: the turn ends with the finish reason `tool_calls`; the client brings the result.
    A `hosted` call was run by the model's own server.
    """

    step: int
    call_id: str
    server: str | None
    tool: str
    arguments: JsonObject | str
    client: bool = False
    hosted: bool = False
    needs_approval: bool = False


class ToolProgress(_Event, frozen=True, kw_only=True, tag="tool.progress"):
    call_id: str
    progress: float
    total: float | None = None
    message: str | None = None


class ToolLog(_Event, frozen=True, kw_only=True, tag="tool.log"):
    call_id: str
    level: str
    message: str


class ToolFinished(_Event, frozen=True, kw_only=True, tag="tool.result"):
    """`content` holds MCP content blocks, as the server sent them but for the size limit."""

    call_id: str
    outcome: Outcome
    content: list[JsonObject]
    structured: Any = None
    duration_ms: float = 0.0


class InputRequired(_Event, frozen=True, kw_only=True, tag="input.required"):
    """The call waits for a person: `schema` says what an accepting answer holds, or `url` which page to visit."""

    input_id: str
    call_id: str
    kind: Literal["question", "approval", "authorization"]
    message: str
    schema: JsonObject | None = None
    url: str | None = None
    expires_at: str | None = None


class InputResolved(_Event, frozen=True, kw_only=True, tag="input.resolved"):
    input_id: str
    call_id: str
    action: Action
    content: JsonObject | None = None
    by: str | None = None


class TurnResumed(_Event, frozen=True, kw_only=True, tag="turn.resumed"):
    """The turn has waited for a person, and goes on with an answer."""


class StepCompleted(_Event, frozen=True, kw_only=True, tag="step.completed"):
    """The model's stream of this step has ended well: what it asked for now counts.

    `cost_usd` is None where the model's price is not known.
    """

    step: int
    finish_reason: str
    usage: Usage
    cost_usd: float | None = None
    tokens_per_second: float | None = None


class ModelRetry(_Event, frozen=True, kw_only=True, tag="model.retry"):
    """The model call of `step` is made again. With `discard`, the step's text and calls so far no longer count.

    `model` is the one that is asked now, where that is another. `usage` and `cost_usd` are there where the step's own
    figures will not hold what the call before has used up.
    """

    step: int
    reason: str
    attempt: int
    discard: bool = False
    model: str | None = None
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    cost_usd: float | msgspec.UnsetType | None = msgspec.UNSET


class TurnCompleted(_Event, frozen=True, kw_only=True, tag="turn.completed"):
    """Times in milliseconds: `first_token_ms` to the first model output, `duration_ms` the whole turn.

    `cached`: the answer is an earlier one's, given again; no model was asked.
    """

    finish_reason: str
    usage: Usage
    steps: int
    duration_ms: float
    first_token_ms: float | None = None
    cost_usd: float | None = None
    tokens_per_second: float | None = None
    cached: bool = False


class TurnFailed(_Event, frozen=True, kw_only=True, tag="turn.failed"):
    """`saved` says what was kept: "text" (what was streamed so far) or "prompt" (nothing had been answered)."""

    error: ErrorInfo
    saved: Literal["text", "prompt", "nothing"]


class TurnCancelled(_Event, frozen=True, kw_only=True, tag="turn.cancelled"):
    error: ErrorInfo
    saved: Literal["text", "prompt", "nothing"]


Event = (
    TurnStarted
    | ReasoningDelta
    | TextDelta
    | ToolCallStarted
    | ToolProgress
    | ToolLog
    | ToolFinished
    | InputRequired
    | InputResolved
    | TurnResumed
    | StepCompleted
    | ModelRetry
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
)
Delta = ReasoningDelta | TextDelta
TurnEnd = TurnCompleted | TurnFailed | TurnCancelled

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Event).decode


def type_of(event: Event) -> str:
    """The event's wire name, e.g. `text.delta`."""
    return str(event.__struct_config__.tag)


class Entry(msgspec.Struct, gc=False):
    """An event with its number inside the turn, from 1, and its JSON, encoded once for all who read it as it comes."""

    seq: int
    event: Event
    _data: bytes | None

    @property
    def data(self) -> bytes:
        """The event as JSON."""
        return self._data or encode(self.event)

    def kept(self) -> None:
        """The journal has it: what may still read it here is late, and rare. It is two fifths of what a token holds."""
        self._data = None

"""The events of a turn, a closed union.

Each dispatch over it ends in `assert_never`. The JSON of an event has its fields and its `type`. Its number is stored
beside it, in the turn log, the journal and the SSE `id`.
"""

from typing import Any, Literal, cast

import msgspec

from gateway.domain.branches import OriginNote, ResultSource
from gateway.domain.errors import ErrorInfo
from gateway.domain.history import HistoryNote
from gateway.domain.messages import Action, JsonObject, Outcome, Usage


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    """Base of all events.

    `gc=False`: events cannot be part of a reference cycle (docs/adr/0007).
    """


class TurnStarted(_Event, frozen=True, kw_only=True, tag="turn.started"):
    """Start of a turn.

    `tools` are the offered names; `warnings` are for people, such as a replaced model id. `origin` is set in a fork or
    replay: its first `after_step` steps are taken over from that turn, and follow at once. `history` is set if the
    model does not get all earlier turns of the conversation as they are.
    """

    turn_id: str
    conversation_id: str | None
    model: str
    tools: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    origin: OriginNote | msgspec.UnsetType = msgspec.UNSET
    history: HistoryNote | msgspec.UnsetType = msgspec.UNSET


class HistorySummarized(_Event, frozen=True, kw_only=True, tag="history.summarized"):
    """Summary of turns that do not fit into the context.

    It is a model call of its own, before step 1. `text` stands for the first `turns` turns of the conversation, up to
    `through_turn_id`; later turns use it, too. With `error`, no summary was made: `cut_turns` turns are left out, and
    `text` is that of an earlier summary, if any. `omitted_chars` of the turns were too long to be summarized.
    """

    text: str | None
    turns: int
    through_turn_id: str
    usage: Usage
    cost_usd: float | None = None
    duration_ms: float = 0.0
    omitted_chars: int = 0
    cut_turns: int = 0
    error: ErrorInfo | msgspec.UnsetType = msgspec.UNSET


class SamplingCompleted(_Event, frozen=True, kw_only=True, tag="sampling.completed"):
    """End of a model call for an MCP server.

    The server has got the answer, or with `error`, a refusal. `model` is the turn's.
    """

    call_id: str
    server: str
    model: str
    usage: Usage
    cost_usd: float | None = None
    duration_ms: float = 0.0
    error: ErrorInfo | msgspec.UnsetType = msgspec.UNSET


class ReasoningDelta(_Event, frozen=True, kw_only=True, tag="reasoning.delta"):
    step: int
    text: str


class TextDelta(_Event, frozen=True, kw_only=True, tag="text.delta"):
    """A piece of the answer.

    `refusal` is set in the words by which a model refuses to answer.
    """

    step: int
    text: str
    refusal: bool | msgspec.UnsetType = msgspec.UNSET


class ToolCallStarted(_Event, frozen=True, kw_only=True, tag="tool.call"):
    """A tool call that is about to run.

    `arguments` is the model's text if that is not a JSON object. The gateway does not run a `client` call: the turn
    ends with the finish reason `tool_calls`, and the client sends the result in a later request. A `hosted` call was
    run by the model's server. `model_id` is the model's own id of the call if it is not `call_id`; the model's server
    gets it back, and `extra_content` with it. A call with a `parent_call_id` was made by the program of that call.
    `original_name` is the tool's name outside of the toolset that renames it.
    """

    step: int
    call_id: str
    server: str | None
    tool: str
    arguments: JsonObject | str
    client: bool = False
    hosted: bool = False
    needs_approval: bool = False
    extra_content: Any = msgspec.UNSET
    model_id: str | msgspec.UnsetType = msgspec.UNSET
    parent_call_id: str | msgspec.UnsetType = msgspec.UNSET
    original_name: str | msgspec.UnsetType = msgspec.UNSET


class ToolProgress(_Event, frozen=True, kw_only=True, tag="tool.progress"):
    """Progress of a call.

    With a `wait_id`, its server runs it as a task, and the turn may be suspended until the task is settled.
    """

    call_id: str
    progress: float
    total: float | None = None
    message: str | None = None
    wait_id: str | msgspec.UnsetType = msgspec.UNSET


class ToolLog(_Event, frozen=True, kw_only=True, tag="tool.log"):
    call_id: str
    level: str
    message: str


class ToolFinished(_Event, frozen=True, kw_only=True, tag="tool.result"):
    """Result of a tool call.

    `content` holds the server's MCP content blocks, truncated to the size limit. `source` is set if the tool did not
    return it during this turn. A direct call has the server's `meta`, and its JSON-RPC error as `refusal`.
    """

    call_id: str
    outcome: Outcome
    content: list[JsonObject]
    structured: Any = None
    duration_ms: float = 0.0
    source: ResultSource | msgspec.UnsetType = msgspec.UNSET
    meta: JsonObject | msgspec.UnsetType = msgspec.UNSET
    refusal: JsonObject | msgspec.UnsetType = msgspec.UNSET


class InputRequired(_Event, frozen=True, kw_only=True, tag="input.required"):
    """The call waits for a person.

    `schema` describes an accepted answer, or `url` is the page to visit: of the gateway itself (`authorization`, a
    sign-in), or a page that the MCP server names (`url`).
    """

    input_id: str
    call_id: str
    kind: Literal["question", "approval", "authorization", "url"]
    message: str
    schema: JsonObject | None = None
    url: str | None = None
    expires_at: str | None = None


class InputResolved(_Event, frozen=True, kw_only=True, tag="input.resolved"):
    """Answer of a person.

    `kind` is that of the question; events of earlier versions lack it.
    """

    input_id: str
    call_id: str
    action: Action
    content: JsonObject | None = None
    by: str | None = None
    kind: Literal["question", "approval", "authorization", "url", "host"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def edited_arguments(self) -> JsonObject | None:
        """The arguments of the approval.

        None if the person kept the model's.
        """
        if self.action != "accept" or self.kind not in (msgspec.UNSET, "approval"):
            return None
        arguments = (self.content or {}).get("arguments")
        return cast("JsonObject", arguments) if isinstance(arguments, dict) else None


class TurnResumed(_Event, frozen=True, kw_only=True, tag="turn.resumed"):
    """The turn waited for a person and continues with the answer."""


class StepCompleted(_Event, frozen=True, kw_only=True, tag="step.completed"):
    """End of a step's model stream: its tool calls are final.

    `cost_usd` is None if the price of the model is unknown. `warning` tells people what was odd about the answer.
    """

    step: int
    finish_reason: str
    usage: Usage
    cost_usd: float | None = None
    tokens_per_second: float | None = None
    warning: str | msgspec.UnsetType = msgspec.UNSET


class ModelRetry(_Event, frozen=True, kw_only=True, tag="model.retry"):
    """The model call of `step` is repeated.

    With `discard`, the step's text and tool calls so far are void. `model` is set if another model is called now.
    `usage` and `cost_usd` are set if the figures of the step will not include those of the failed call.
    """

    step: int
    reason: str
    attempt: int
    discard: bool = False
    model: str | None = None
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    cost_usd: float | msgspec.UnsetType | None = msgspec.UNSET


class TurnCompleted(_Event, frozen=True, kw_only=True, tag="turn.completed"):
    """End of a turn that succeeded.

    `first_token_ms` is the time to the first model output. `cached`: the answer came from the response cache, and no
    model was called.
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
    """End of a turn that failed.

    `saved` is "text" if the text so far was stored, "prompt" if there was none.
    """

    error: ErrorInfo
    saved: Literal["text", "prompt", "nothing"]


class TurnCancelled(_Event, frozen=True, kw_only=True, tag="turn.cancelled"):
    error: ErrorInfo
    saved: Literal["text", "prompt", "nothing"]


Event = (
    TurnStarted
    | HistorySummarized
    | SamplingCompleted
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
TAKEOVER_JUMP = 10_000
"""Gap in the event numbers at a takeover. See docs/adr/0010."""

encode_event = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(Event).decode


def get_event_type(event: Event) -> str:
    """Return the wire name of an event, such as `text.delta`."""
    return str(event.__struct_config__.tag)


class JournalEntry(msgspec.Struct, gc=False):
    """An event with its number in the turn, from 1.

    Its JSON is encoded once for all listeners.
    """

    seq: int
    event: Event
    _data: bytes | None

    @property
    def data(self) -> bytes:
        """JSON of the event."""
        return self._data or encode_event(self.event)

    def release_encoded(self) -> None:
        """Drop the encoded JSON, as the journal has stored it.

        Late listeners encode it again (docs/adr/0001).
        """
        self._data = None

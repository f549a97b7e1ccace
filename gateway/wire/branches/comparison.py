"""Comparison of two turns, step by step.

Texts, calls, arguments, tokens, cost and time stand side by side. It is bounded in bytes: long texts are cut, and steps
and calls beyond a maximum are left out.
"""

from typing import cast
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.common.arguments import normalize_arguments
from gateway.domain.messages import JsonObject, Usage
from gateway.wire.turn_summary import ToolCallSummary, TurnSummary

MAX_BYTES = 256 * 1024
"""Bytes of all texts of one turn, as JSON."""
_MAX_TEXT_BYTES = 16 * 1024
_MAX_ARGUMENTS_BYTES = 4 * 1024
_MAX_RESULT_BYTES = 2 * 1024
_MAX_NAME_BYTES = 256
_MAX_STEPS = 100
_MAX_CALLS = 200


class ComparedCall(BaseModel):
    """Tool call of a step, with its result.

    `arguments` are a text if they are no JSON object, or were cut.
    """

    call_id: str
    tool: str
    arguments: object
    outcome: str | None
    result: str
    duration_ms: float | None
    source: str | None


class ComparedStep(BaseModel):
    """Step of a compared turn.

    A step that was taken over from another turn has no tokens and no cost.
    """

    text: str
    calls: list[ComparedCall]
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


class StepComparison(BaseModel):
    """Steps of the same number.

    `left` or `right` is null if the turn has no such step.
    """

    step: int
    same_text: bool
    same_calls: bool = Field(description="The same tools with equal arguments, in the same order.")
    left: ComparedStep | None
    right: ComparedStep | None


class ComparedTurn(BaseModel):
    """Figures of a compared turn.

    `tool_ms` is the time of the calls that its tools ran.
    """

    turn_id: UUID
    origin_id: UUID | None
    model: str
    status: str
    finish_reason: str | None
    error: str | None
    prompt: str
    response: str
    steps: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float | None
    duration_ms: float | None
    first_token_ms: float | None
    tool_ms: float


class FigureDifferences(BaseModel):
    """Figures of the right turn minus those of the left.

    Null if one of them is unknown.
    """

    steps: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float | None
    duration_ms: float | None
    first_token_ms: float | None
    tool_ms: float


class TurnComparison(BaseModel):
    """Two turns side by side."""

    left: ComparedTurn
    right: ComparedTurn
    difference: FigureDifferences
    same_response: bool
    steps: list[StepComparison]
    truncated: bool = Field(description="Texts were cut, or steps or calls left out, to bound the size.")


class ComparableTurn(BaseModel):
    """The stored turn as a comparison reads it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    origin_id: UUID | None
    model_name: str
    status: str
    finish_reason: str | None
    error: JsonObject | None
    prompt: str
    response: str
    usage: JsonObject | None
    cost_usd: float | None
    duration_ms: float | None
    first_token_ms: float | None


class _Side:
    """Compared turn, and the bytes that its texts may still take."""

    def __init__(self, turn: ComparableTurn, summary: TurnSummary) -> None:
        self.turn = turn
        self.summary = summary
        self.is_truncated = False
        self._remaining_bytes = MAX_BYTES
        self._remaining_calls = _MAX_CALLS

    def cut(self, text: str, max_bytes: int = _MAX_TEXT_BYTES) -> str:
        """Cut a text to at most `max_bytes` bytes of JSON."""
        max_bytes = min(max_bytes, self._remaining_bytes)
        size = len(msgspec.json.encode(text)) - 2
        if size > max_bytes:
            self.is_truncated = True
            text = text[:max_bytes]
            while text and (size := len(msgspec.json.encode(text)) - 2) > max_bytes:
                text = text[: len(text) * max_bytes // size]
        self._remaining_bytes -= min(size, max_bytes)
        return text

    def build_turn(self) -> ComparedTurn:
        turn, summary = self.turn, self.summary
        usage = summary.usage if turn.usage is None else msgspec.convert(turn.usage, Usage)
        calls = summary.calls.values()
        return ComparedTurn(
            turn_id=turn.id,
            origin_id=turn.origin_id,
            model=self.cut(turn.model_name, _MAX_NAME_BYTES),
            status=turn.status,
            finish_reason=turn.finish_reason,
            error=(turn.error or {}).get("code"),
            prompt=self.cut(turn.prompt),
            response=self.cut(turn.response),
            steps=len(summary.step_numbers),
            calls=len(calls),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            cost_usd=turn.cost_usd,
            duration_ms=turn.duration_ms,
            first_token_ms=turn.first_token_ms,
            tool_ms=round(sum(call.duration_ms or 0.0 for call in calls if call.source is None), 2),
        )

    def list_calls(self, step: int) -> list[ToolCallSummary]:
        return [call for call in self.summary.calls.values() if call.step == step]

    def build_step(self, step: int) -> ComparedStep | None:
        if step not in self.summary.step_numbers:
            return None
        end = self.summary.step_ends.get(step)
        usage = end.usage if end is not None else Usage()
        calls = self.list_calls(step)
        shown = calls[: self._remaining_calls]
        self._remaining_calls -= len(shown)
        self.is_truncated = self.is_truncated or len(shown) < len(calls)
        return ComparedStep(
            text=self.cut(self.summary.get_step_text(step)),
            calls=[self._build_call(call) for call in shown],
            finish_reason=end.finish_reason if end is not None else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=end.cost_usd if end is not None else None,
        )

    def _build_call(self, call: ToolCallSummary) -> ComparedCall:
        return ComparedCall(
            call_id=self.cut(call.id, _MAX_NAME_BYTES),
            tool=self.cut(call.tool, _MAX_NAME_BYTES),
            arguments=self._cut_arguments(call.arguments),
            outcome=call.outcome,
            result=self.cut(_format_content(call.content), _MAX_RESULT_BYTES),
            duration_ms=call.duration_ms,
            source=call.source,
        )

    def _cut_arguments(self, arguments: JsonObject | str) -> object:
        if isinstance(arguments, str):
            return self.cut(arguments, _MAX_ARGUMENTS_BYTES)
        text = msgspec.json.encode(arguments).decode()
        return arguments if self.cut(text, _MAX_ARGUMENTS_BYTES) == text else text[:_MAX_NAME_BYTES]


def compare_turns(
    left: ComparableTurn, left_summary: TurnSummary, right: ComparableTurn, right_summary: TurnSummary
) -> TurnComparison:
    """Compare two stored turns, with the summaries of their events."""
    sides = _Side(left, left_summary), _Side(right, right_summary)
    turns = sides[0].build_turn(), sides[1].build_turn()
    numbers = sorted({number for side in sides for number in side.summary.step_numbers})
    steps = [_compare_step(number, *sides) for number in numbers[:_MAX_STEPS]]
    return TurnComparison(
        left=turns[0],
        right=turns[1],
        difference=_subtract(*turns),
        same_response=left.response == right.response,
        steps=steps,
        truncated=sides[0].is_truncated or sides[1].is_truncated or len(numbers) > _MAX_STEPS,
    )


def _compare_step(step: int, left: _Side, right: _Side) -> StepComparison:
    calls = [
        [(call.tool, normalize_arguments(call.arguments, {})) for call in side.list_calls(step)]
        for side in (left, right)
    ]
    in_both = all(step in side.summary.step_numbers for side in (left, right))
    return StepComparison(
        step=step,
        same_text=in_both and left.summary.get_step_text(step) == right.summary.get_step_text(step),
        same_calls=in_both and calls[0] == calls[1],
        left=left.build_step(step),
        right=right.build_step(step),
    )


def _subtract(left: ComparedTurn, right: ComparedTurn) -> FigureDifferences:
    def subtract(name: str) -> float | None:
        minuend, subtrahend = getattr(right, name), getattr(left, name)
        if minuend is None or subtrahend is None:
            return None
        return round(minuend - subtrahend, 9)

    return FigureDifferences.model_validate({name: subtract(name) for name in FigureDifferences.model_fields})


def _format_content(content: list[JsonObject]) -> str:
    """Join the text blocks; others are named by their type."""
    texts: list[str] = []
    for block in content:
        text = block.get("text")
        texts.append(text if isinstance(text, str) else f"[{cast(object, block.get('type'))}]")
    return "\n".join(texts)

"""Answers that are given again: which request is the same as another, and which answer may stand for both."""

import hashlib
from collections.abc import Iterable

import msgspec

from gateway.agent.batch_tool import BATCH
from gateway.agent.loop import ModelContext
from gateway.agent.tool_calls import EventEmitter
from gateway.domain.events import (
    Entry,
    InputRequired,
    ModelRetry,
    StepCompleted,
    TextDelta,
    ToolCallStarted,
    ToolFinished,
)
from gateway.domain.messages import JsonObject, KnownResponse, Message, ToolSpec, Usage

_encode = msgspec.json.Encoder(order="deterministic").encode


def cache_key(conversation: ModelContext) -> bytes:
    """The same for requests that ask the same: model, messages with system prompt and history, parameters, tools as
    they are defined, form of the answer, approvals, headers passed on. Whoever asks is not part of it."""
    told = msgspec.structs.asdict(conversation) | {
        "messages": list(_without_ids(conversation.messages)),
        "principal": conversation.principal.headers,
    }
    return hashlib.sha256(_encode(told)).digest()


def _without_ids(messages: Iterable[Message]) -> Iterable[Message]:
    """Models name their calls at random: the order of the calls tells as much."""
    places: dict[str | None, str] = {None: ""}
    for message in messages:
        calls = tuple(
            msgspec.structs.replace(call, id=places.setdefault(call.id, str(len(places))))
            for call in message.tool_calls
        )
        yield msgspec.structs.replace(
            message, tool_calls=calls, tool_call_id=places.get(message.tool_call_id, message.tool_call_id)
        )


def is_cacheable(finish_reason: str, entries: Iterable[Entry], tools: Iterable[ToolSpec]) -> bool:
    """Whether the answer of a completed turn may be given again: it came to its end, from the model that was asked,
    asked no person, and used no tool but read-only ones, which all worked."""
    if finish_reason not in ("stop", "length"):
        return False
    harmless = {spec.name for spec in tools if spec.read_only and not spec.client}
    batches: set[str] = set()
    for entry in entries:
        match entry.event:
            case ToolCallStarted() as call if call.client or call.tool not in harmless:
                return False
            case ToolCallStarted(tool=tool, call_id=call_id) if tool == BATCH:
                batches.add(call_id)
            case ToolFinished() as result if result.outcome != "ok":
                return False
            case ToolFinished() as result if result.call_id in batches and _failed_in_part(result):
                return False
            case InputRequired():
                return False
            case ModelRetry() as again if again.model is not None:
                return False
            case _:
                pass
    return True


def _failed_in_part(batch: ToolFinished) -> bool:
    told: JsonObject = batch.structured or {}
    return any(result["outcome"] != "ok" for result in told.get("results", ()))


def replay(known: KnownResponse, turn: EventEmitter) -> str:
    """Tell a known answer as the turn's own, which costs nothing; its finish reason."""
    for step, text in enumerate(known.texts, 1):
        turn.emit(TextDelta(step=step, text=text))
        turn.emit(StepCompleted(step=step, finish_reason=known.finish_reason, usage=Usage(), cost_usd=0.0))
    return known.finish_reason

"""The response cache: keys of equal requests, cacheable responses, and their replay."""

import asyncio
import hashlib
from collections.abc import Iterable
from typing import assert_never, cast

import msgspec

from gateway.agent.batch_tool import BATCH
from gateway.agent.model_context import ModelContext
from gateway.agent.tool_search import ToolSelection
from gateway.agent.turn import ActiveTurn
from gateway.common.logging import get_logger
from gateway.domain import events as e
from gateway.domain.cached_answer import CachedAnswer
from gateway.domain.errors import GatewayError
from gateway.domain.events import JournalEntry
from gateway.domain.messages import JsonObject, Message, ToolSpec, Usage
from gateway.domain.reading import get_reader_key
from gateway.ports.store import ResponseCache
from gateway.ports.turns import EventEmitter

log = get_logger(__name__)

_SAVE_TIMEOUT_SECONDS = 2.0
_encode = msgspec.json.Encoder(order="deterministic").encode


def cache_key(context: ModelContext) -> bytes:
    """Hash everything that the answer depends on; equal requests have equal keys.

    That is the model, messages with system prompt and history, parameters, tool definitions, response format,
    approvals and forwarded headers. The caller is only included if it may not read the turns of other keys.
    """
    headers, reader_key = context.principal.headers, get_reader_key(context.principal)
    fields = msgspec.structs.asdict(context) | {
        "messages": list(_without_ids(context.messages)),
        "principal": headers if reader_key is None else (headers, reader_key),
    }
    return hashlib.sha256(_encode(fields)).digest()


def _without_ids(messages: Iterable[Message]) -> Iterable[Message]:
    """Replace call ids by numbers in order of appearance.

    Models choose ids at random, so equal requests would differ.
    """
    numbers: dict[str | None, str] = {None: ""}
    for message in messages:
        calls = tuple(
            msgspec.structs.replace(call, id=numbers.setdefault(call.id, str(len(numbers))), model_id="")
            for call in message.tool_calls
        )
        yield msgspec.structs.replace(
            message, tool_calls=calls, tool_call_id=numbers.get(message.tool_call_id, message.tool_call_id)
        )


def is_cacheable(finish_reason: str, entries: Iterable[JournalEntry], tools: Iterable[ToolSpec]) -> bool:
    """Return whether the answer of a completed turn may be reused.

    It must have ended normally, without a fallback model or a question to a person, and all of its tool calls must be
    read-only and successful.
    """
    if finish_reason not in ("stop", "length"):
        return False
    read_only = {spec.name for spec in tools if spec.read_only and not spec.client}
    batches: set[str] = set()
    for entry in entries:
        match entry.event:
            case e.ToolCallStarted() as call if call.client or call.tool not in read_only:
                return False
            case e.ToolCallStarted(tool=tool, call_id=call_id):
                if tool == BATCH:
                    batches.add(call_id)
            case e.ToolFinished() as result:
                if result.outcome != "ok" or (result.call_id in batches and _has_failed_call(result)):
                    return False
            case e.InputRequired():
                return False
            case e.ModelRetry() as retry:
                if retry.model is not None:
                    return False
            case (
                e.TurnStarted()
                | e.HistorySummarized()
                | e.SamplingCompleted()
                | e.TextDelta()
                | e.ReasoningDelta()
                | e.ToolProgress()
                | e.ToolLog()
                | e.InputResolved()
                | e.TurnResumed()
                | e.StepCompleted()
                | e.TurnCompleted()
                | e.TurnFailed()
                | e.TurnCancelled()
            ):
                pass
            case _:
                assert_never(entry.event)
    return True


def _has_failed_call(batch: e.ToolFinished) -> bool:
    output = cast("JsonObject", batch.structured or {})
    return any(result["outcome"] != "ok" for result in output.get("results", ()))


def replay(answer: CachedAnswer, turn: EventEmitter) -> str:
    """Emit a cached answer as events of this turn, at no cost.

    Return its finish reason.
    """
    for step, text in enumerate(answer.texts, 1):
        turn.emit(e.TextDelta(step=step, text=text))
        turn.emit(e.StepCompleted(step=step, finish_reason=answer.finish_reason, usage=Usage(), cost_usd=0.0))
    return answer.finish_reason


class TurnResponseCache:
    """Looks up and saves responses of turns whose request sets `cache_ttl`.

    A failure only disables the cache for the turn.
    """

    def __init__(self, responses: ResponseCache) -> None:
        self._responses = responses

    async def replay(self, turn: ActiveTurn, context: ModelContext) -> str | None:
        """Emit a cached response and return its finish reason.

        None if there is no cached response. Sets the turn's cache key.
        """
        ttl = turn.record.request.cache_ttl
        if ttl is None:
            return None
        turn.cache_key = cache_key(context)
        if turn.transcript.steps:
            return None  # a resumed turn has called the model already
        try:
            answer = await self._responses.find_answer(turn.record.owner, turn.cache_key, ttl)
        except GatewayError:
            log.warning("response_cache_unavailable", turn_id=str(turn.id))
            return None
        if answer is None:
            return None
        turn.is_cached = True
        turn.on_accepted()
        return replay(answer, turn)

    def discard_uncacheable(self, turn: ActiveTurn, finish_reason: str, selection: ToolSelection) -> None:
        """Drop the cache key if the response must not be saved."""
        if turn.cache_key is None:
            return
        tools = selection.tools + selection.hidden + selection.functions
        if turn.is_cached or not is_cacheable(finish_reason, turn.log.entries, tools):
            turn.cache_key = None

    async def save(self, turn: ActiveTurn) -> None:
        """Save a completed turn's response if it has a cache key."""
        ttl = turn.record.request.cache_ttl
        if turn.cache_key is None or ttl is None:
            return
        try:
            async with asyncio.timeout(_SAVE_TIMEOUT_SECONDS):
                await self._responses.save_answer(turn.record.owner, turn.cache_key, turn.id, ttl)
        except (GatewayError, TimeoutError):
            log.warning("response_not_cached", turn_id=str(turn.id))

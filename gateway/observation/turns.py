"""Turns: their spans, waits and figures.

A turn counts once, at its end, with what is stored of it: also the steps of workers that died count then.
"""

import time
from typing import Any
from uuid import UUID

from gateway.agent.budgets import Budgets
from gateway.agent.conversation_queue import ConversationPlace, ConversationQueue
from gateway.agent.runner import Runner
from gateway.agent.starting.plan import TurnPlan
from gateway.agent.starting.takeover import StoredProgress
from gateway.agent.turn import ActiveTurn
from gateway.common.concurrency import Deadline
from gateway.domain.errors import ConversationBusy
from gateway.domain.events import TurnCompleted, TurnEnd, TurnFailed
from gateway.domain.messages import Principal, TurnRecord, TurnRequest
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.http import request_format
from gateway.observation.model import describe_usage
from gateway.observation.tools import tool_parent
from gateway.ports.model import ModelCall
from gateway.ports.observer import AttributeValue, Observer, Span
from gateway.ports.turns import TurnSlot, TurnSlots, TurnSpending
from gateway_runtime.redaction.redactor import Redactor
from gateway_runtime.telemetry.content import encode_content

_FORMAT_KEY = "format"
_UUID7_TIME_SHIFT = 80
_MIN_WAIT_SECONDS = 0.001


class ObservedRunner(Runner):
    """A runner whose turns are spans.

    The part of a turn that another worker goes on with, or that a person's answer wakes, is a span of its own in the
    same trace, with a link to the request that started it.
    """

    def __init__(self, *arguments: Any, observer: Observer, provider: str, redactor: Redactor, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observer = observer
        self._provider = provider
        self._redactor = redactor

    def take_over(self, record: TurnRecord, progress: StoredProgress, *, cancel: bool) -> None:
        """See `Runner.take_over`."""
        reason = "answer" if progress.inputs else "task" if progress.waits else "handed_over"
        self._observer.increase_counter(f.TAKEOVERS, 1, "lost_worker" if record.attempts else reason)
        super().take_over(record, progress, cancel=cancel)

    async def _run_turn(self, turn: ActiveTurn, plan: TurnPlan) -> None:
        origin = turn.record.trace_context or {}
        headers = {name: value for name, value in origin.items() if name != _FORMAT_KEY}
        is_resumed = turn.epoch > 0
        wire_format = origin.get(_FORMAT_KEY, "other")
        if is_resumed:
            self._record_answered_questions(turn, headers)
        span = self._observer.open_span(
            f"invoke_agent {n.AGENT_NAME}",
            self._describe_turn(turn, wire_format),
            parent=headers if is_resumed else None,
            links=[headers] if is_resumed and headers else (),
        )
        with span as open_span:
            tool_parent.set(self._observer.get_trace_headers())
            await super()._run_turn(turn, plan)
            end = turn.log.entries[-1].event if turn.log.has_ended else None
            if isinstance(end, TurnEnd):
                self._record_end(turn, end, wire_format)
            self._describe_end(open_span, turn, end if isinstance(end, TurnEnd) else None)

    def _describe_turn(self, turn: ActiveTurn, wire_format: str) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            n.OPERATION: "invoke_agent",
            n.PROVIDER: self._provider,
            n.AGENT: n.AGENT_NAME,
            n.MODEL: turn.model.id,
            n.TURN: str(turn.id),
            n.FORMAT: wire_format,
        }
        if turn.record.conversation_id is not None:
            attributes[n.CONVERSATION] = str(turn.record.conversation_id)
        if turn.record.request_id is not None:
            attributes[n.REQUEST] = turn.record.request_id
        return attributes

    def _record_answered_questions(self, turn: ActiveTurn, headers: dict[str, str]) -> None:
        for question in turn.inputs:
            if question.answer is not None and turn.transcript.is_open_input(str(question.id)):
                record_question(self._observer, question.id, question.question.kind, headers)

    def _record_end(self, turn: ActiveTurn, end: TurnEnd, wire_format: str) -> None:
        observer, model, usage = self._observer, turn.model.id, turn.transcript.usage
        outcome, reason = _describe_outcome(end)
        observer.increase_counter(f.TURNS, 1, outcome, model, wire_format, reason)
        error_type = reason if isinstance(end, TurnFailed) else ""
        observer.record_value(f.TURN_DURATION, turn.elapsed_ms() / 1000, n.AGENT_NAME, model, outcome, error_type)
        if turn.first_token_ms is not None and turn.epoch == 0:
            observer.record_value(f.FIRST_TOKEN, turn.first_token_ms / 1000, model)
        counts = (
            ("input", usage.prompt_tokens),
            ("output", usage.completion_tokens),
            ("cached", usage.cached_tokens),
            ("reasoning", usage.reasoning_tokens),
        )
        for kind, tokens in counts:
            observer.increase_counter(f.TOKENS, tokens, model, kind)
        if turn.transcript.cost_usd:
            observer.increase_counter(f.COST, turn.transcript.cost_usd, model)

    def _describe_end(self, span: Span, turn: ActiveTurn, end: TurnEnd | None) -> None:
        if end is None:
            outcome = "waiting" if turn.cancel_reason is None else "handed_over"
            span.set_attributes({n.OUTCOME: outcome, n.STEPS: turn.transcript.steps})
            return
        outcome, reason = _describe_outcome(end)
        span.set_attributes({n.OUTCOME: outcome, n.STEPS: turn.transcript.steps, n.FINISH_REASONS: [reason]})
        span.set_attributes(describe_usage(turn.transcript.usage))
        if isinstance(end, TurnFailed):
            span.fail(reason)
        if self._observer.captures_content:
            span.set_attributes(self._describe_content(turn))

    def _describe_content(self, turn: ActiveTurn) -> dict[str, str]:
        texts = {n.INPUT_MESSAGES: ("user", turn.record.request.prompt)}
        texts[n.OUTPUT_MESSAGES] = ("assistant", turn.transcript.response)
        return {
            name: encode_content(
                [{"role": role, "parts": [{"type": "text", "content": self._redactor.redact_text(text)}]}]
            )
            for name, (role, text) in texts.items()
        }


def make_trace_context(observer: Observer) -> dict[str, str]:
    """Return the trace of a turn's request, and its wire format."""
    return {**observer.get_trace_headers(), _FORMAT_KEY: request_format.get()}


def record_question(observer: Observer, question_id: UUID, kind: str, parent: dict[str, str] | None = None) -> None:
    """Record the wait for an answer that has come.

    The question's id has the time at which it was asked.
    """
    asked_at = (question_id.int >> _UUID7_TIME_SHIFT) / 1000
    observer.record_value(f.WAITS, max(0.0, time.time() - asked_at), kind)
    observer.record_span(f"wait {kind}", {n.WAIT: kind}, started_at=asked_at, parent=parent)


def _describe_outcome(end: TurnEnd) -> tuple[str, str]:
    if isinstance(end, TurnCompleted):
        return "completed", end.finish_reason
    return "failed" if isinstance(end, TurnFailed) else "cancelled", end.error.code


class _WaitWatch:
    """Records a wait at its end, if there was one."""

    def __init__(self, observer: Observer, kind: str) -> None:
        self._observer = observer
        self._kind = kind

    def __enter__(self) -> None:
        self._started_at, self._clock = time.time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._clock
        self._observer.record_value(f.WAITS, seconds, self._kind)
        if seconds >= _MIN_WAIT_SECONDS:
            self._observer.record_span(f"wait {self._kind}", {n.WAIT: self._kind}, started_at=self._started_at)


class ObservedBudgets(Budgets):
    """Budgets whose reservations are waits."""

    def __init__(self, *arguments: Any, observer: Observer, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observer = observer

    async def reserve(self, turn: TurnSpending, call: ModelCall) -> None:
        """See `Budgets.reserve`."""
        if not self.applies_to(turn.principal):
            return
        with _WaitWatch(self._observer, "budget"):
            await super().reserve(turn, call)


class ObservedSlots(TurnSlots):
    """Slots for turns whose waits are recorded."""

    def __init__(self, slots: TurnSlots, observer: Observer) -> None:
        self._slots = slots
        self._observer = observer

    async def acquire_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """See `TurnSlots.acquire_turn_slot`."""
        return await self._slots.acquire_turn_slot(turn_id, principal)

    async def wait_for_turn_slot(self, turn_id: UUID, principal: Principal) -> TurnSlot | None:
        """See `TurnSlots.wait_for_turn_slot`."""
        with _WaitWatch(self._observer, "slot"):
            return await self._slots.wait_for_turn_slot(turn_id, principal)


class ObservedQueue(ConversationQueue):
    """Queue of conversations whose waits are recorded."""

    def __init__(self, *arguments: Any, observer: Observer, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.observer = observer

    def make_place(self, request: TurnRequest, principal: Principal, *, may_wait: bool) -> ConversationPlace:
        """See `ConversationQueue.make_place`."""
        deadline = Deadline.after(self._busy_seconds if may_wait else 0.0)
        return _ObservedPlace(self, request, principal, deadline, observer=self.observer)


class _ObservedPlace(ConversationPlace):
    def __init__(self, *arguments: Any, observer: Observer) -> None:
        super().__init__(*arguments)
        self._observer = observer

    async def wait(self, busy: ConversationBusy) -> None:
        with _WaitWatch(self._observer, "conversation"):
            await super().wait(busy)

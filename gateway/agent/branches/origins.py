"""Loads the steps and results that forks and replays take over."""

from collections.abc import Iterable
from uuid import UUID

import msgspec

from gateway.agent.branches.recorded_calls import RecordedCalls
from gateway.agent.direct.calls import build_call_events
from gateway.agent.transcript import Transcript, TranscriptStep
from gateway.agent.turn_log import TurnLog
from gateway.domain.branches import OriginNote, ReplacedResult, TurnOrigin
from gateway.domain.errors import InvalidRequest, JournalExpired, PayloadTooLarge
from gateway.domain.events import Event, StepCompleted, TextDelta, ToolFinished, encode_event
from gateway.domain.messages import TurnRequest, Usage, text_block
from gateway.ports.store import TurnRepository

MAX_TAKEN_BYTES = 16 * 1024 * 1024
"""Bytes of the events that a turn takes over.

They are written in one commit.
"""
_MAX_NAMES = 10
_MAX_NAME_LENGTH = 64


class TurnOrigins:
    """Reads the turns that forks and replays come from."""

    def __init__(self, turns: TurnRepository) -> None:
        self._turns = turns

    async def load_taken_steps(self, request: TurnRequest) -> list[Event]:
        """Load the events of the steps that a new turn takes over.

        Those of a direct call are its only step. The caller may read the origin: `TurnRepository.load_request` has
        checked it.

        Raises:
            InvalidRequest: the origin has no such finished step, or a replaced result is of no call in these steps.
            PayloadTooLarge: the steps are too large.
            JournalExpired: the origin's journal was deleted.
        """
        if request.direct_call is not None:
            return build_call_events(request.direct_call)
        origin = request.origin
        if origin is None or not (origin.after_step or origin.results):
            return []
        events = build_taken_events(await self._load_transcript(origin.turn_id), origin)
        if not any(up.after_step == origin.after_step for up in request.follow_ups):
            _require_followed(events, origin.after_step)
        size = sum(len(encode_event(event)) for event in events)
        if size > MAX_TAKEN_BYTES:
            raise PayloadTooLarge(
                f"after_step: these steps have {size:,} bytes; at most {MAX_TAKEN_BYTES:,} can be taken over.",
                param="after_step",
            )
        return events

    async def load_recorded_calls(self, request: TurnRequest, replay: Transcript) -> RecordedCalls | None:
        """Load the calls that answer those of a replay.

        None for other turns.

        Raises:
            JournalExpired: the origin's journal was deleted.
        """
        origin = request.origin
        if origin is None or origin.on_new_call is None:
            return None
        recorded = await self._load_transcript(origin.turn_id)
        return RecordedCalls(recorded, replay, after_step=origin.after_step, on_new_call=origin.on_new_call)

    async def _load_transcript(self, turn_id: UUID) -> Transcript:
        transcript, last = Transcript(), 0
        while entries := await self._turns.load_events(turn_id, last):
            for entry in entries:
                transcript.apply(entry.event)
            last = entries[-1].seq
        if not last:
            raise JournalExpired
        return transcript


def make_origin_note(origin: TurnOrigin | None) -> OriginNote | msgspec.UnsetType:
    if origin is None:
        return msgspec.UNSET
    return OriginNote("replay" if origin.is_replay else "fork", str(origin.turn_id), origin.after_step)


def add_taken_events(events: list[Event], transcript: Transcript, log: TurnLog) -> None:
    """Add the events of taken steps to a new turn.

    They become durable with its start.
    """
    for event in events:
        transcript.apply(event)
        log.append(event)


def build_taken_events(recorded: Transcript, origin: TurnOrigin) -> list[Event]:
    """Build the events of the steps that a turn takes over.

    They cost nothing: the usage counts in the turn that made them. Arguments are those that ran, after approvals.

    Raises:
        InvalidRequest: see `TurnOrigins.load_taken_steps`.
    """
    steps = recorded.numbered_steps[: origin.after_step]
    finished = next((n for n, (_, step) in enumerate(steps) if not _is_finished(step, origin)), len(steps))
    if finished < origin.after_step:
        _raise_unfinished(finished, steps[finished][1] if finished < len(steps) else None, origin)
    _check_replaced(origin, {call_id for _, step in steps for call_id in step.calls})
    return [event for number, step in steps for event in _build_step_events(number, step, origin.results)]


def _is_finished(step: TranscriptStep, origin: TurnOrigin) -> bool:
    known = step.results.keys() | origin.results.keys()
    return step.completion is not None and step.calls.keys() <= known and not step.refused_calls


def _raise_unfinished(finished: int, step: TranscriptStep | None, origin: TurnOrigin) -> None:
    open_calls = [call for call in (step.calls.values() if step else ()) if call.call_id not in origin.results]
    if any(call.client for call in open_calls):
        names = _list_names(call.call_id for call in open_calls if call.client)
        raise InvalidRequest(
            f"after_step: step {finished + 1} called tools of the client, whose results are not in the turn: send them "
            f"in results, for {names}.",
            param="after_step",
        )
    raise InvalidRequest(
        f"after_step: the turn has {finished} finished steps, so nothing can follow step {origin.after_step}.",
        param="after_step",
    )


def _check_replaced(origin: TurnOrigin, call_ids: set[str]) -> None:
    if unknown := sorted(origin.results.keys() - call_ids):
        raise InvalidRequest(
            f"results: the first {origin.after_step} steps of the turn have no call {_list_names(unknown)}.",
            param="results",
        )


def _require_followed(events: list[Event], step: int) -> None:
    """Raise if the last step is the turn's answer.

    Then the model has nothing to do without a message.
    """
    if not any(isinstance(event, ToolFinished) for event in _list_last_step(events)):
        raise InvalidRequest(
            f"after_step: step {step} called no tool, so it is the turn's answer: send a message, or fork after an "
            "earlier step.",
            param="message",
        )


def _list_last_step(events: list[Event]) -> Iterable[Event]:
    for event in reversed(events):
        yield event
        if isinstance(event, StepCompleted):
            return


def _build_step_events(number: int, step: TranscriptStep, replaced: dict[str, ReplacedResult]) -> list[Event]:
    events: list[Event] = []
    if step.text:
        events.append(TextDelta(step=number, text="".join(step.text)))
    if step.refusal:
        events.append(TextDelta(step=number, text="".join(step.refusal), refusal=True))
    events += [msgspec.structs.replace(call, client=False, needs_approval=False) for call in step.calls.values()]
    assert step.completion is not None
    events.append(msgspec.structs.replace(step.completion, usage=Usage(), cost_usd=0.0, tokens_per_second=None))
    for call in step.program_calls.values():
        if call.parent_call_id not in replaced and (result := step.results.get(call.call_id)) is not None:
            events += [msgspec.structs.replace(call, needs_approval=False), result]
    for call_id in step.calls:
        events.append(_build_result(call_id, step.results.get(call_id), replaced.get(call_id)))
    return events


def _build_result(call_id: str, recorded: ToolFinished | None, replaced: ReplacedResult | None) -> ToolFinished:
    if replaced is None:
        assert recorded is not None
        return msgspec.structs.replace(recorded, source="recorded")
    return ToolFinished(
        call_id=call_id, outcome=replaced.outcome, content=[text_block(replaced.text)], source="replaced"
    )


def _list_names(names: Iterable[str]) -> str:
    """List some names, each cut, for a message."""
    quoted = [repr(name[:_MAX_NAME_LENGTH]) for name in names]
    return ", ".join(quoted[:_MAX_NAMES]) + (
        f" and {len(quoted) - _MAX_NAMES} more" if len(quoted) > _MAX_NAMES else ""
    )

"""What of a turn is written, with what the administrator's rules find taken out of it."""

from itertools import groupby
from typing import Any

import msgspec

from gateway import events as e
from gateway.events import Entry, encode
from gateway.messages import Message, TurnOutcome, TurnRecord
from gateway.redaction import Redactor


def record(turn: TurnRecord, redactor: Redactor) -> TurnRecord:
    """The request as it is kept."""
    request = turn.request
    kept = msgspec.structs.replace(
        request,
        messages=_messages(request.messages, redactor),
        system=request.system and redactor.text(request.system),
        metadata=redactor.value(request.metadata),
    )
    return msgspec.structs.replace(turn, request=kept)


def outcome(end: TurnOutcome, redactor: Redactor) -> TurnOutcome:
    """The turn's end as it is kept."""
    messages = _messages(end.messages, redactor)
    return msgspec.structs.replace(end, messages=messages, response=redactor.text(end.response))


def whole(fresh: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Those that can be looked at now, and the deltas at the end, of whose text more may come."""
    end = len(fresh)
    while end and _run_of(fresh[end - 1].event) is not None:
        end -= 1
    return fresh[:end], fresh[end:]


def entries(fresh: list[Entry], redactor: Redactor) -> list[Entry]:
    """Events as they are kept. Deltas in a row are looked at together, for what a rule finds may lie in several; the
    first of them then holds what is left of all."""
    kept: list[Entry] = []
    for kind, group in groupby(fresh, key=lambda entry: _run_of(entry.event)):
        run = list(group)
        if kind is None:
            kept += [_entry(entry, _event(entry.event, redactor)) for entry in run]
            continue
        text = "".join(entry.event.text for entry in run if isinstance(entry.event, e.TextDelta | e.ReasoningDelta))
        if (left := redactor.text(text)) != text:
            for number, entry in enumerate(run):
                kept.append(_entry(entry, msgspec.structs.replace(entry.event, text="" if number else left)))
        else:
            kept += run
    return kept


def _run_of(event: e.Event) -> tuple[type[e.Event], int] | None:
    return (type(event), event.step) if isinstance(event, e.TextDelta | e.ReasoningDelta) else None


def _entry(entry: Entry, event: e.Event) -> Entry:
    return entry if event is entry.event else Entry(entry.seq, event, encode(event))


def _event(event: e.Event, redactor: Redactor) -> e.Event:
    match event:
        case e.ToolCallStarted():
            return msgspec.structs.replace(event, arguments=redactor.value(event.arguments))
        case e.ToolFinished():
            content, structured = redactor.value(event.content), redactor.value(event.structured)
            return msgspec.structs.replace(event, content=content, structured=structured)
        case e.ToolProgress():
            return msgspec.structs.replace(event, message=event.message and redactor.text(event.message))
        case e.ToolLog() | e.InputRequired():
            return msgspec.structs.replace(event, message=redactor.text(event.message))
        case e.InputResolved():
            return msgspec.structs.replace(event, content=redactor.value(event.content))
        case _:
            return event


def _messages(messages: tuple[Message, ...], redactor: Redactor) -> tuple[Message, ...]:
    return tuple(_message(message, redactor) for message in messages)


def _message(message: Message, redactor: Redactor) -> Message:
    content: Any = redactor.value(message.content)
    calls = tuple(
        msgspec.structs.replace(call, arguments=_arguments(call.arguments, redactor)) for call in message.tool_calls
    )
    return msgspec.structs.replace(message, content=content, tool_calls=calls)


def _arguments(arguments: str, redactor: Redactor) -> str:
    """Redacted value by value, so that they stay JSON."""
    try:
        return msgspec.json.encode(redactor.value(msgspec.json.decode(arguments))).decode()
    except msgspec.DecodeError:
        return redactor.text(arguments)

"""Applies the administrator's redaction rules to stored turns. See docs/adr/0012."""

from itertools import groupby
from typing import Any, assert_never

import msgspec

from gateway.domain import events as e
from gateway.domain.branches import FollowUp, TurnOrigin
from gateway.domain.errors import ErrorInfo
from gateway.domain.events import JournalEntry, encode_event
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Message, ToolSpec, TurnOutcome, TurnRecord
from gateway_runtime.redaction.redactor import Redactor


def redact_record(turn: TurnRecord, redactor: Redactor) -> TurnRecord:
    """Redact a request.

    Identifiers stay: ids, and the names of models and tools.
    """
    redactor = redactor.with_shared_budget()
    request, parameters = turn.request, turn.request.parameters
    redacted = msgspec.structs.replace(
        request,
        messages=redact_messages(request.messages, redactor),
        parameters=msgspec.structs.replace(
            parameters, stop=parameters.stop and _redact_texts(parameters.stop, redactor)
        ),
        system=request.system and redactor.redact_text(request.system),
        user_label=request.user_label and redactor.redact_text(request.user_label),
        warnings=_redact_texts(request.warnings, redactor),
        client_tools=tuple(_redact_tool(spec, redactor) for spec in request.client_tools),
        response_format=redactor.redact_strings(request.response_format),
        metadata=redactor.redact_value(request.metadata),
        echo=request.echo and _redact_echo(request.echo, redactor),
        origin=request.origin and _redact_origin(request.origin, redactor),
        follow_ups=tuple(FollowUp(up.after_step, redactor.redact_text(up.text)) for up in request.follow_ups),
    )
    return msgspec.structs.replace(turn, request=redacted)


def redact_outcome(end: TurnOutcome, redactor: Redactor) -> TurnOutcome:
    """Redact the outcome of a turn."""
    redactor = redactor.with_shared_budget()
    return msgspec.structs.replace(
        end,
        messages=redact_messages(end.messages, redactor),
        response=redactor.redact_text(end.response),
        error=end.error and _redact_error(end.error, redactor),
        prompt=end.prompt and redactor.redact_text(end.prompt),
    )


def split_trailing_deltas(fresh: list[JournalEntry]) -> tuple[list[JournalEntry], list[JournalEntry]]:
    """Split the trailing deltas, whose text may continue, from the entries.

    Return the complete entries, then the deltas.
    """
    end = len(fresh)
    while end and _delta_key(fresh[end - 1].event) is not None:
        end -= 1
    return fresh[:end], fresh[end:]


def redact_entries(fresh: list[JournalEntry], redactor: Redactor) -> list[JournalEntry]:
    """Redact events.

    Rules apply to the joined text of consecutive deltas, because a match may span several. If a rule matches, the
    first delta holds the redacted text and the others are empty.
    """
    redactor = redactor.with_shared_budget()
    redacted_entries: list[JournalEntry] = []
    for kind, group in groupby(fresh, key=lambda entry: _delta_key(entry.event)):
        run = list(group)
        if kind is None:
            redacted_entries += [_replace_event(entry, _redact_event(entry.event, redactor)) for entry in run]
            continue
        text = "".join(entry.event.text for entry in run if isinstance(entry.event, e.TextDelta | e.ReasoningDelta))
        if (redacted := redactor.redact_text(text)) != text:
            for number, entry in enumerate(run):
                redacted_entries.append(
                    _replace_event(entry, msgspec.structs.replace(entry.event, text="" if number else redacted))
                )
        else:
            redacted_entries += run
    return redacted_entries


def _delta_key(event: e.Event) -> tuple[type[e.Event], int, bool] | None:
    if isinstance(event, e.TextDelta | e.ReasoningDelta):
        return type(event), event.step, isinstance(event, e.TextDelta) and event.refusal is True
    return None


def _replace_event(entry: JournalEntry, event: e.Event) -> JournalEntry:
    return entry if event is entry.event else JournalEntry(entry.seq, event, encode_event(event))


def _redact_event(event: e.Event, redactor: Redactor) -> e.Event:
    match event:
        case e.ToolCallStarted():
            arguments = redactor.redact_value(event.arguments)
            extra_content = _redact_extra_content(event.extra_content, redactor, msgspec.UNSET)
            return msgspec.structs.replace(event, arguments=arguments, extra_content=extra_content)
        case e.ToolFinished():
            content, structured = redactor.redact_blocks(event.content), redactor.redact_value(event.structured)
            meta = event.meta and redactor.redact_value(event.meta)
            refusal = event.refusal and {**redactor.redact_value(event.refusal), "code": event.refusal["code"]}
            return msgspec.structs.replace(event, content=content, structured=structured, meta=meta, refusal=refusal)
        case e.ToolProgress():
            return msgspec.structs.replace(event, message=event.message and redactor.redact_text(event.message))
        case e.ToolLog():
            return msgspec.structs.replace(event, message=redactor.redact_text(event.message))
        case e.InputRequired():
            message, schema = redactor.redact_text(event.message), redactor.redact_strings(event.schema)
            return msgspec.structs.replace(event, message=message, schema=schema)
        case e.InputResolved():
            return msgspec.structs.replace(event, content=redactor.redact_value(event.content))
        case e.TurnStarted():
            return msgspec.structs.replace(event, warnings=_redact_texts(event.warnings, redactor))
        case e.HistorySummarized():
            error = _redact_error(event.error, redactor) if isinstance(event.error, ErrorInfo) else event.error
            return msgspec.structs.replace(event, text=event.text and redactor.redact_text(event.text), error=error)
        case e.SamplingCompleted():
            error = _redact_error(event.error, redactor) if isinstance(event.error, ErrorInfo) else event.error
            return msgspec.structs.replace(event, error=error)
        case e.TurnFailed() | e.TurnCancelled():
            return msgspec.structs.replace(event, error=_redact_error(event.error, redactor))
        case (
            e.TextDelta()  # `redact_entries` redacts consecutive deltas together
            | e.ReasoningDelta()
            | e.TurnResumed()
            | e.StepCompleted()
            | e.ModelRetry()
            | e.TurnCompleted()
        ):
            return event
        case _:
            assert_never(event)  # a new event with text would be stored unredacted


def redact_messages(messages: tuple[Message, ...], redactor: Redactor) -> tuple[Message, ...]:
    """Redact the texts and arguments of messages."""
    return tuple(_redact_message(message, redactor) for message in messages)


def _redact_message(message: Message, redactor: Redactor) -> Message:
    content = redactor.redact_value(message.content)
    calls = tuple(
        msgspec.structs.replace(
            call,
            arguments=_redact_arguments(call.arguments, redactor),
            problem=redactor.redact_text(call.problem),
            extra_content=_redact_extra_content(call.extra_content, redactor, None),
        )
        for call in message.tool_calls
    )
    name = message.name and redactor.redact_text(message.name)
    refusal = message.refusal and redactor.redact_text(message.refusal)
    return msgspec.structs.replace(message, content=content, tool_calls=calls, name=name, refusal=refusal)


def _redact_extra_content(content: Any, redactor: Redactor, missing: Any) -> Any:
    """Drop the extra content that a rule matches.

    A changed signature is worth nothing.
    """
    if content is None or content is msgspec.UNSET:
        return content
    return content if redactor.redact_value(content) == content else missing


def _redact_tool(spec: ToolSpec, redactor: Redactor) -> ToolSpec:
    description, schema = redactor.redact_text(spec.description), redactor.redact_strings(spec.input_schema)
    return msgspec.structs.replace(spec, description=description, input_schema=schema)


def _redact_echo(echo: JsonObject, redactor: Redactor) -> JsonObject:
    """Redact the values of a stored response; its field names stay.

    Other formats store only identifiers.
    """
    if "response" not in echo:
        return echo
    return {**echo, "response": {name: redactor.redact_strings(value) for name, value in echo["response"].items()}}


def _redact_origin(origin: TurnOrigin, redactor: Redactor) -> TurnOrigin:
    results = {
        call_id: msgspec.structs.replace(result, text=redactor.redact_text(result.text))
        for call_id, result in origin.results.items()
    }
    return msgspec.structs.replace(origin, results=results)


def _redact_error(error: ErrorInfo, redactor: Redactor) -> ErrorInfo:
    return msgspec.structs.replace(error, message=redactor.redact_text(error.message))


def _redact_texts(texts: tuple[str, ...], redactor: Redactor) -> tuple[str, ...]:
    return tuple(redactor.redact_text(text) for text in texts)


def _redact_arguments(arguments: str, redactor: Redactor) -> str:
    """Redact each value, so that the arguments stay JSON."""
    try:
        return msgspec.json.encode(redactor.redact_value(msgspec.json.decode(arguments))).decode()
    except JSON_DECODE_ERRORS:
        return redactor.redact_text(arguments)

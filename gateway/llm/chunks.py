"""Chunks of a chat-completions stream.

Chunks of the expected form are decoded by msgspec. Others are read leniently: one odd field does not cost the answer.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject
from gateway.llm.tool_repair.json_repair import is_list, is_object, join_surrogates
from gateway.llm.usage import read_usage

_T = TypeVar("_T")
_Empty = Annotated[list[Any], msgspec.Meta(max_length=0)]
_FinishReason = Annotated[str, msgspec.Meta(pattern="^(?:stop|length|tool_calls|function_call|content_filter|null|)$")]
_MAX_VALUES = 10_000
"""Number of JSON values beyond which a body is not read."""
_VALUE_START = re.compile(r"(?:[\s,]+|:[^\n]*\n)*+(?=[{\[])")


class FunctionDelta(msgspec.Struct, gc=False):
    """A part of a call's name and arguments."""

    name: str | None = None
    arguments: str | JsonObject | None = None


class ToolCallDelta(msgspec.Struct, gc=False):
    """A part of a tool call.

    `extra_content` is what the server wants back with the call, such as a signature of the model's thoughts. Some
    servers send `name` and `arguments` without a `function`.
    """

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None
    extra_content: Any = None
    name: str | None = None
    arguments: str | JsonObject | None = None


class ServerToolCall(msgspec.Struct, gc=False):
    """A call that the model's server made itself."""

    index: int = 0
    type: str = "tool"
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class Delta(msgspec.Struct, gc=False):
    """A part of a message, or a whole one.

    A `function_call`, which came before `tool_calls`, makes a chunk odd; so do the rarer names of reasoning.
    """

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    executed_tools: list[ServerToolCall] | None = None
    function_call: None = None
    thinking: None = None
    reasoning_details: _Empty | None = None


class Choice(msgspec.Struct, gc=False):
    """The first choice of a chunk.

    Some servers send a whole `message`, also behind its deltas. A `text`, another index than 0, another name of the
    finish reason, and an unusual one make a chunk odd.
    """

    delta: Delta | None = None
    finish_reason: _FinishReason | None = None
    message: Delta | None = None
    usage: Any = None
    text: None = None
    index: Literal[0] | None = None
    stop_reason: None = None
    finish_details: None = None
    camel_finish_reason: None = msgspec.field(default=None, name="finishReason")


class XGroq(msgspec.Struct, gc=False):
    """Groq's own members of a chunk."""

    usage: Any = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """Chunk of a stream, or a whole answer.

    Figures of usage under other names make a chunk odd.
    """

    choices: list[Choice] | None = None
    usage: Any = None
    x_groq: XGroq | None = None
    error: Any = None
    gemini_usage: None = msgspec.field(default=None, name="usageMetadata")
    snake_gemini_usage: None = msgspec.field(default=None, name="usage_metadata")
    prompt_eval_count: None = None
    eval_count: None = None


decode_chunk = msgspec.json.Decoder(Chunk, strict=False).decode
_decode_value = json.JSONDecoder().raw_decode


def read_odd_chunk(payload: bytes) -> Chunk | None:
    """Read a chunk that `decode_chunk` rejects.

    Members of unexpected types are left out. None: the payload is no JSON object.
    """
    try:
        # Other than msgspec, `json` accepts half a surrogate pair.
        body = json.loads(payload.decode("utf-8-sig", "replace"))
    except (*JSON_DECODE_ERRORS, ValueError):
        return None
    if is_list(body) and body:
        body = body[0]
    return _build_chunk(body) if is_object(body) else None


def decode_chunks(body: bytes) -> tuple[list[Chunk], bytes]:
    """Decode the leading JSON values of a body; return the rest, too.

    A body in place of a stream is one value, a list, or one value behind the other.
    """
    try:
        return [decode_chunk(body)], b""
    except JSON_DECODE_ERRORS:
        text = body.decode("utf-8-sig", "replace")
    chunks: list[Chunk] = []
    at = 0
    while len(chunks) < _MAX_VALUES and (start := _VALUE_START.match(text, at)):
        try:
            value, at = _decode_value(text, start.end())
        except (ValueError, RecursionError):
            break
        values = cast(list[object], value) if is_list(value) else [value]
        chunks += [_build_chunk(item) for item in values[:_MAX_VALUES] if is_object(item)]
    return chunks, text[at:].encode(errors="replace")


def _build_chunk(body: JsonObject) -> Chunk:
    choices = _get_list(body, "choices")
    x_groq = body.get("x_groq")
    extra: JsonObject = x_groq if is_object(x_groq) else {}
    return Chunk(
        choices=[_read_choice(choice) for choice in choices if is_object(choice)] if choices is not None else None,
        usage=_choose_usage(body),
        x_groq=XGroq(extra.get("usage"), extra.get("error")) if extra else None,
        error=body.get("error") or _find_choice_error(choices),
    )


def _find_choice_error(choices: list[Any] | None) -> object:
    """Return the error inside a choice, where OpenRouter has it."""
    return next((choice["error"] for choice in choices or () if is_object(choice) and choice.get("error")), None)


def _choose_usage(body: JsonObject) -> object:
    """Return the member with the figures of usage."""
    members = [body.get(name) for name in ("usage", "usageMetadata", "usage_metadata")]
    if "eval_count" in body or "prompt_eval_count" in body:
        members.append({name: body.get(name) for name in ("prompt_eval_count", "eval_count")})
    return next((member for member in members if read_usage(member)), body.get("usage"))


def _read_choice(choice: JsonObject) -> Choice:
    delta, message = choice.get("delta"), choice.get("message")
    if delta is None and message is None and "text" in choice:
        delta = {"content": choice["text"]}  # of the older completions API
    return Choice(
        delta=_read_any_delta(delta),
        finish_reason=_choose_finish_reason(choice),
        message=_read_any_delta(message),
        usage=choice.get("usage"),
        index=cast(Any, _convert(choice.get("index"), int)),  # only the expected form is limited to 0
    )


def _read_any_delta(delta: object) -> Delta | None:
    """Read a delta or message, or several in a list."""
    if is_list(delta):
        parts = [part for part in cast(list[object], delta) if is_object(part)]
        members = {name: value for part in parts for name, value in part.items()}
        delta = members | {"content": [part.get("content") for part in parts]}
    return _read_delta(delta) if is_object(delta) else None


def _choose_finish_reason(choice: JsonObject) -> str | None:
    """Return the first finish reason under one of its names."""
    names = ("finish_reason", "finishReason", "finish_details", "stop_reason")
    reasons = (_read_finish_reason(choice.get(name)) for name in names)
    return next((reason for reason in reasons if reason), None)


def _read_finish_reason(reason: object) -> str | None:
    if is_object(reason):
        reason = reason.get("type") or reason.get("reason")
    if isinstance(reason, bool | int | float):
        return "stop" if reason else None
    return reason if isinstance(reason, str) else None


def _read_delta(delta: JsonObject) -> Delta:
    text, thoughts, refusal = _read_content(delta.get("content"))
    calls, executed = _get_list(delta, "tool_calls"), _get_list(delta, "executed_tools")
    if not calls and is_object(legacy_call := delta.get("function_call")):
        calls = [{"function": legacy_call}]
    return Delta(
        content=text,
        reasoning=thoughts or _read_reasoning(delta),
        refusal=refusal or _join_texts(delta.get("refusal")),
        tool_calls=[_read_call(call) for call in calls if is_object(call)] if calls is not None else None,
        executed_tools=None if executed is None else _convert(_join_halves(executed), list[ServerToolCall]),
    )


def _read_reasoning(delta: JsonObject) -> str | None:
    """Return the reasoning under the first of its names.

    Servers repeat it under several ones.
    """
    for name in ("reasoning", "reasoning_content", "thinking"):
        if text := _join_texts(delta.get(name)):
            return text
    details = [detail for detail in _get_list(delta, "reasoning_details") or [] if is_object(detail)]
    return "".join(_join_texts(detail.get("text") or detail.get("summary")) or "" for detail in details) or None


def _read_content(content: object) -> tuple[str | None, str | None, str | None]:
    """Return the text, the thoughts and the refusal of a content.

    It may be a list of parts.
    """
    if is_object(content):
        content = [content]
    if not is_list(content):
        return (content if isinstance(content, str) else None), None, None
    texts: list[str] = []
    thoughts: list[str] = []
    refusals: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif is_object(part):
            thought = part.get("thinking")
            if thought is not None:
                thoughts.append(_read_content(thought)[0] or "")
            elif isinstance(refusal := part.get("refusal"), str):
                refusals.append(refusal)
            elif isinstance(text := part.get("text"), str):
                is_thought = part.get("type") in ("thinking", "reasoning", "reasoning_text")
                (thoughts if is_thought else texts).append(text)
    return "".join(texts) or None, "".join(thoughts) or None, "".join(refusals) or None


def _join_texts(content: object) -> str | None:
    return "".join(text for text in _read_content(content) if text) or None


def _read_call(call: JsonObject) -> ToolCallDelta:
    function, index = call.get("function"), call.get("index")
    if is_object(function):
        arguments = function.get("arguments")
        part = FunctionDelta(
            _get_text(function, "name"),
            arguments if arguments is None or isinstance(arguments, str) else json.dumps(arguments),
        )
    else:
        part = None
    return ToolCallDelta(
        index=index if isinstance(index, int) else None,
        id=_join_halves(str(call_id) if isinstance(call_id := call.get("id"), str | int) else None),
        function=part or FunctionDelta(_get_text(call, "name"), _get_text(call, "arguments")),
        extra_content=_join_halves(call.get("extra_content")),
    )


def _get_list(body: JsonObject, name: str) -> list[Any] | None:
    """Return a list, also where a server sends its only item."""
    value = body.get(name)
    return value if is_list(value) else [value] if is_object(value) else None


def _join_halves(value: Any) -> Any:
    """Join or replace halves of surrogate pairs, which cannot be encoded."""
    if isinstance(value, str):
        return join_surrogates(value)
    if is_list(value):
        return [_join_halves(item) for item in value]
    return {name: _join_halves(item) for name, item in value.items()} if is_object(value) else value


def _get_text(body: JsonObject, name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _convert(value: object, kind: type[_T]) -> _T | None:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return None

"""Chunks of a chat-completions stream, and their figures of usage.

Chunks of the expected form are decoded by msgspec. Others are read leniently: one odd field does not cost the answer.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Usage
from gateway.llm.tool_repair.json_repair import is_list, is_object, join_surrogates

_T = TypeVar("_T")
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]
_Empty = Annotated[list[Any], msgspec.Meta(max_length=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]


_CAPITAL = re.compile("[A-Z]")
_PROMPT_NAMES = ("prompt_tokens", "input_tokens", "prompt_token_count", "prompt_eval_count")
_CACHED_NAMES = ("cached_tokens", "prompt_cache_hit_tokens", "cached_input_tokens", "cached_content_token_count")
_READ_CACHE_NAMES = ("cache_read_input_tokens",)
_WRITTEN_CACHE_NAMES = ("cache_creation_input_tokens", "cache_write_input_tokens")


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

    Some servers send a whole `message`, also behind its deltas. A `text`, another index than 0, and another name of the
    finish reason make a chunk odd.
    """

    delta: Delta | None = None
    finish_reason: str | None = None
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


class _TokenDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _UsageFigures(msgspec.Struct, gc=False):
    """Figures of usage as OpenAI and Groq send them."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None
    queue_time: _Seconds | None = None
    total_time: _Seconds | None = None
    completion_time: _Seconds | None = None
    cached_tokens: None = None
    cache_read_input_tokens: None = None
    cache_creation_input_tokens: None = None
    prompt_cache_hit_tokens: None = None
    input_tokens: None = None
    output_tokens: None = None


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
    if not is_object(body):
        return None
    choices = _get_list(body, "choices")
    x_groq = body.get("x_groq")
    extra: JsonObject = x_groq if is_object(x_groq) else {}
    return Chunk(
        choices=[_read_choice(choice) for choice in choices if is_object(choice)] if choices is not None else None,
        usage=_choose_usage(body),
        x_groq=XGroq(extra.get("usage"), extra.get("error")) if extra else None,
        error=body.get("error"),
    )


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
        delta=_read_delta(delta) if is_object(delta) else None,
        finish_reason=_choose_finish_reason(choice),
        message=_read_delta(message) if is_object(message) else None,
        usage=choice.get("usage"),
        index=cast(Any, _convert(choice.get("index"), int)),  # only the expected form is limited to 0
    )


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


def read_usage(*bodies: object) -> Usage | None:
    """Read the first figures of usage that are not all zero."""
    for body in bodies:
        if body is not None and is_object(body):
            usage = _build_usual_usage(body) or _build_usage(body)
            if usage.total_tokens:
                return usage
    return None


def merge_usage(first: Usage | None, second: Usage | None) -> Usage | None:
    """Join the figures of two chunks.

    Each may have a part of them, or the figures so far.
    """
    if first is None or second is None:
        return second if first is None else first
    prompt = max(first.prompt_tokens, second.prompt_tokens)
    completion = max(first.completion_tokens, second.completion_tokens)
    total = max(first.total_tokens, second.total_tokens, prompt + completion)
    return msgspec.structs.replace(
        second,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=max(first.cached_tokens, second.cached_tokens),
        reasoning_tokens=max(first.reasoning_tokens, second.reasoning_tokens),
    )


def complete_usage(usage: Usage, estimate: Usage) -> Usage:
    """Estimate the figures that a server left out.

    A zero is one of them where tokens flowed.
    """
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    if not completion:
        completion = total - prompt if 0 < prompt < total else estimate.completion_tokens
    if not prompt:
        prompt = total - completion if completion < total else estimate.prompt_tokens
    return msgspec.structs.replace(
        usage, prompt_tokens=prompt, completion_tokens=completion, total_tokens=max(total, prompt + completion)
    )


def _build_usual_usage(body: JsonObject) -> Usage | None:
    """Build the usage from figures of the usual form, in few steps.

    None: the figures have another form.
    """
    try:
        figures = msgspec.convert(body, _UsageFigures)
    except msgspec.ValidationError:
        return None
    prompt, completion = figures.prompt_tokens, figures.completion_tokens
    details, completion_details = figures.prompt_tokens_details, figures.completion_tokens_details
    cached = (details and details.cached_tokens) or 0
    if cached > prompt or prompt + completion != figures.total_tokens:
        return None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=figures.total_tokens,
        cached_tokens=cached,
        reasoning_tokens=(completion_details and completion_details.reasoning_tokens) or 0,
        queue_time=figures.queue_time or 0.0,
        model_time=figures.total_time or 0.0,
        generation_time=figures.completion_time or 0.0,
    )


def _build_usage(body: JsonObject) -> Usage:
    """Build the usage from figures of any form."""
    body = {_to_snake_case(name): value for name, value in body.items()}
    prompt = _get_count(body, *_PROMPT_NAMES) + _get_count(body, "tool_use_prompt_token_count")
    completion = _get_count(body, "completion_tokens", "output_tokens", "candidates_token_count", "eval_count")
    total = _get_count(body, "total_tokens", "total_token_count")
    cached = _get_count(body, *_CACHED_NAMES, *_READ_CACHE_NAMES)
    cached = max(cached, _get_detail(body, ("prompt_tokens", "input_tokens"), "cached_tokens"))
    written = _get_count(body, *_WRITTEN_CACHE_NAMES)
    if _are_beside(body, prompt, cached, written, total - prompt - completion):
        prompt += cached + written
    reasoning = _get_count(body, "reasoning_tokens", "thoughts_token_count")
    reasoning = max(reasoning, _get_detail(body, ("completion_tokens", "output_tokens"), "reasoning_tokens"))
    is_gemini = not total and "thoughts_token_count" in body
    if reasoning and (is_gemini or total == prompt + completion + reasoning):
        completion += reasoning  # this one counts reasoning beside the answer
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(total, prompt + completion),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        queue_time=_get_number(body, "queue_time"),
        model_time=_get_number(body, "total_time"),
        generation_time=_get_number(body, "completion_time"),
    )


def _are_beside(body: JsonObject, prompt: int, cached: int, written: int, rest: int) -> bool:
    """Whether a server counts tokens of the cache beside the others.

    Anthropic does. `rest` is what the total has beside prompt and answer.
    """
    if max(cached, written) > prompt:
        return True
    if rest >= 0:  # the server told the total
        return rest > 0 and rest == cached + written
    has_names = any(name in body for name in (*_READ_CACHE_NAMES, *_WRITTEN_CACHE_NAMES))
    return has_names and "input_tokens" in body and "prompt_tokens" not in body


def _to_snake_case(name: str) -> str:
    return _CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", name)


def _get_detail(body: JsonObject, names: tuple[str, ...], detail: str) -> int:
    """Return the largest count of that name in the details."""
    members = (body.get(f"{name}_details") for name in names)
    details = ({_to_snake_case(name): value for name, value in part.items()} for part in members if is_object(part))
    return max((_get_count(part, detail) for part in details), default=0)


def _get_count(body: object, *names: str) -> int:
    """Return the largest of the counts, which are never negative."""
    return int(max((_get_number(body, name) for name in names), default=0.0))


def _get_number(body: object, name: str) -> float:
    value = body.get(name) if is_object(body) else None
    if isinstance(value, str):
        value = _convert(value, float)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        return 0.0
    return cast(float, value)

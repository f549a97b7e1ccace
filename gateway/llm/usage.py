"""Figures of usage, which servers send in several forms."""

import re
from typing import Annotated, cast

import msgspec

from gateway.domain.messages import JsonObject, Usage
from gateway.llm.tool_repair.json_repair import is_list, is_object

_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]
_CAPITAL = re.compile("[A-Z]")
_PROMPT_NAMES = ("prompt_tokens", "input_tokens", "prompt_token_count", "prompt_eval_count")
_CACHED_NAMES = ("cached_tokens", "prompt_cache_hit_tokens", "cached_input_tokens", "cached_content_token_count")
_READ_CACHE_NAMES = ("cache_read_input_tokens",)
_WRITTEN_CACHE_NAMES = ("cache_creation_input_tokens", "cache_write_input_tokens")


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


def read_usage(*bodies: object) -> Usage | None:
    """Read the first figures of usage that are not all zero."""
    for body in bodies:
        body = body[0] if is_list(body) and body else body
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
        value = _parse_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        return 0.0
    return cast(float, value)


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

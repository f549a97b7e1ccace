"""Fields of OpenAI's documented requests that are not supported.

Each refusal names the field and what to send instead.
"""

from typing import Any, cast

from gateway.domain.messages import JsonObject
from gateway.wire.openai_response_input import ITEM_TYPES, get_item_type
from gateway.wire.openai_response_tools import IGNORED_TOOL_TYPES
from gateway.wire.request_fields import (
    UNSUPPORTED,
    UNSUPPORTED_IN_MESSAGES,
    make_unsupported,
    refuse_unsupported_field,
)

_LEAVE_OUT = "leave it out"
_RESPONSES_ONLY = "leave it out, or send the request to /v1/responses"
_CHAT_FIELDS = {
    name: UNSUPPORTED[name].advice
    for name in ("audio", "documents", "search_settings", "input", "reasoning", "suffix", "echo", "best_of")
} | {
    "instructions": "send a message of the role system",
    "text": "send response_format",
    "prompt": "send messages, or send it to /v1/completions",
    "conversation": "send the earlier messages, or x_gateway.conversation_id",
    "previous_response_id": "send the earlier messages, or x_gateway.parent_turn_id",
    "background": _RESPONSES_ONLY,
    "include": _LEAVE_OUT,
    "max_tool_calls": _LEAVE_OUT,
    "truncation": _LEAVE_OUT,
    "max_output_tokens": "send max_completion_tokens",
    "exclude_domains": UNSUPPORTED["search_settings"].advice,
    "include_domains": UNSUPPORTED["search_settings"].advice,
    "compound_custom": _LEAVE_OUT,
    "moderation": _LEAVE_OUT,
}
IGNORED_IF_EMPTY = frozenset(_CHAT_FIELDS) | {"max_completion_tokens"}
"""Further fields of chat completions that change nothing when empty."""
_RESPONSE_FIELDS = {
    name: UNSUPPORTED[name].advice
    for name in ("n", "logprobs", "logit_bias", "audio", "modalities", "prediction", "web_search_options")
} | {
    "stop": _LEAVE_OUT,
    "seed": _LEAVE_OUT,
    "frequency_penalty": _LEAVE_OUT,
    "presence_penalty": _LEAVE_OUT,
    "reasoning_effort": "send reasoning.effort",
    "verbosity": "send text.verbosity",
    "system": "send instructions",
    "function_call": "send tool_choice",
    "prompt": "stored prompts are unknown here: send their text as instructions and input",
    "messages": "send input",
    "max_tokens": "send max_output_tokens",
    "max_completion_tokens": "send max_output_tokens",
    "response_format": "send text.format",
    "functions": UNSUPPORTED["functions"].advice,
    "moderation": _LEAVE_OUT,
    "context_management": "leave it out: old turns are left out where a conversation is longer than the model's window",
}
_USER_CONTENT = ("images", "files", "attachments", "parts")
"""Content of a user's message in the form of other APIs."""
_OTHER_FORM = "is in the form of another API"
_MAX_BIASES = 300
"""More are refused by their number."""
_ITEM_ADVICE = "send messages, function calls and their outputs"


def refuse_unsupported_chat(body: Any) -> Any:
    """Refuse what chat completions do not support.

    Of two equal limits of tokens, one is kept.

    Raises:
        UnsupportedParameter: the request needs something that is not supported.
    """
    if not isinstance(body, dict):
        return body
    fields = cast(JsonObject, body)
    fields = _refuse_fields(fields, _CHAT_FIELDS)
    if isinstance(count := fields.get("n"), int) and count > 1:
        refuse_unsupported_field("n", count)
    if fields.get("logprobs") is True:
        refuse_unsupported_field("logprobs", value=True)
    _refuse_probabilities(fields)
    if isinstance(bias := fields.get("logit_bias"), dict) and len(cast(JsonObject, bias)) <= _MAX_BIASES:
        refuse_unsupported_field("logit_bias", cast(JsonObject, bias))
    if "audio" in (modalities := _list_values(fields.get("modalities"))):
        refuse_unsupported_field("modalities", modalities)
    _refuse_tool_types(fields, {"function"})
    _refuse_choice(fields, {"function", "allowed_tools"})
    for path, function in _list_functions(fields):
        if "function" not in function and "name" in function:
            raise make_unsupported(f"{path}.name", "send its members in a function", _OTHER_FORM)
    for number, message in enumerate(_list_values(fields.get("messages"))):
        if isinstance(message, dict):
            _refuse_message(cast(JsonObject, message), f"messages.{number}")
    return _join_limits(fields)


def refuse_unsupported_response(body: Any) -> Any:
    """Refuse what the Responses API does not support.

    Raises:
        UnsupportedParameter: the request needs something that is not supported.
    """
    if not isinstance(body, dict):
        return body
    fields = cast(JsonObject, body)
    fields = _refuse_fields(fields, _RESPONSE_FIELDS)
    _refuse_probabilities(fields)
    for number, item in enumerate(_list_values(fields.get("input"))):
        kind = get_item_type(cast(JsonObject, item)) if isinstance(item, dict) else "message"
        if isinstance(kind, str) and kind not in ITEM_TYPES:
            problem = f"items of the type {kind[:80]!r} are not supported"
            raise make_unsupported(f"input.{number}.type", _ITEM_ADVICE, problem)
    _refuse_tool_types(fields, {"function", "mcp"}, IGNORED_TOOL_TYPES)
    _refuse_choice(fields, {"function", "mcp", "allowed_tools"})
    for path, function in _list_functions(fields):
        if "function" in function:
            raise make_unsupported(f"{path}.function", "send its members beside the type", _OTHER_FORM)
    for number, tool in enumerate(_list_values(fields.get("tools"))):
        for name in ("connector_id", "tunnel_id") if isinstance(tool, dict) else ():
            if cast(JsonObject, tool).get(name) is not None:
                raise make_unsupported(f"tools.{number}.{name}", "send the server_label of a configured server")
    return fields


def _list_functions(fields: JsonObject) -> list[tuple[str, JsonObject]]:
    """List the functions of the tools and the choice, by path."""
    values = [(f"tools.{number}", tool) for number, tool in enumerate(_list_values(fields.get("tools")))]
    values.append(("tool_choice", fields.get("tool_choice")))
    objects = [(path, cast(JsonObject, value)) for path, value in values if isinstance(value, dict)]
    return [(path, value) for path, value in objects if value.get("type") == "function"]


def _refuse_choice(fields: JsonObject, supported: set[str]) -> None:
    choice = fields.get("tool_choice")
    kind = cast(JsonObject, choice).get("type") if isinstance(choice, dict) else None
    if isinstance(kind, str) and kind not in supported:
        advice = f"send auto, none, required, or a choice of the type {' or '.join(sorted(supported))}"
        raise make_unsupported("tool_choice.type", advice, f"choices of the type {kind[:80]!r} are not supported")


def _refuse_message(message: JsonObject, path: str) -> None:
    for name in _USER_CONTENT if message.get("role") == "user" else ():
        if message.get(name):
            raise make_unsupported(f"{path}.{name}", UNSUPPORTED_IN_MESSAGES[name].advice)
    for number, call in enumerate(_list_values(message.get("tool_calls"))):
        kind = cast(JsonObject, call).get("type") if isinstance(call, dict) else None
        if isinstance(kind, str) and kind != "function":
            problem = f"calls of the type {kind[:80]!r} are not supported"
            raise make_unsupported(f"{path}.tool_calls.{number}.type", "send calls of the type function", problem)


def _refuse_fields(fields: JsonObject, advice: dict[str, str]) -> JsonObject:
    """Refuse fields that are set, and leave out those that are null."""
    for name in advice:
        if fields.get(name) is not None:
            raise make_unsupported(name, advice[name])
    return {name: value for name, value in fields.items() if name not in advice}


def _refuse_probabilities(fields: JsonObject) -> None:
    if isinstance(count := fields.get("top_logprobs"), int) and count > 0:
        refuse_unsupported_field("top_logprobs", count)


def _refuse_tool_types(fields: JsonObject, supported: set[str], ignored: tuple[str, ...] = ()) -> None:
    for number, tool in enumerate(_list_values(fields.get("tools"))):
        kind = cast(JsonObject, tool).get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in supported and kind not in ignored:
            types = " or ".join(sorted(supported))
            problem = f"tools of the type {kind[:80]!r} are not supported"
            raise make_unsupported(f"tools.{number}.type", f"send tools of the type {types}", problem)


def _join_limits(fields: JsonObject) -> JsonObject:
    """Keep one of two equal limits of tokens."""
    old, new = fields.get("max_tokens"), fields.get("max_completion_tokens")
    if "max_tokens" not in fields or "max_completion_tokens" not in fields:
        return fields
    if old is not None and new is not None and old != new:
        problem = "max_tokens and max_completion_tokens differ"
        raise make_unsupported("max_tokens", "send max_completion_tokens alone", problem)
    limit = new if new is not None else old
    return {name: value for name, value in fields.items() if name != "max_tokens"} | {"max_completion_tokens": limit}


def _list_values(value: object) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []

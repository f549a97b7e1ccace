"""Bodies of requests in OpenAI's chat-completions format."""

from collections.abc import Iterable
from hashlib import sha256

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Message, ToolCall
from gateway.ports.model import ModelCall

_MAX_CALL_ID_LENGTH = 40
_parse_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def make_chat_body(call: ModelCall, *, official: bool) -> JsonObject:
    """Build the request fields that all servers share.

    Equal calls give equal bytes, for the prompt cache. `official`: the server is the provider itself, which knows no
    `extra_content` of calls and rejects unknown fields.
    """
    messages = _make_messages(_join_system_messages(call.messages), with_extra_content=not official)
    body: JsonObject = {"model": call.model, "messages": messages}
    if call.tools:
        body["tools"] = [tool.function_json for tool in call.tools]
        if call.tool_choice is not None:
            body["tool_choice"] = call.tool_choice
    if call.response_format is not None:
        body["response_format"] = call.response_format
    parameters: JsonObject = msgspec.to_builtins(call.parameters)
    return body | parameters


def _join_system_messages(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Join all system messages to one at the beginning.

    The chat templates of some models refuse a second one.
    """
    system_messages = [message for message in messages if message.role == "system"]
    if not system_messages or (len(system_messages) == 1 and messages[0].role == "system"):
        return messages
    texts = dict.fromkeys(message.text for message in system_messages)
    others = (message for message in messages if message.role != "system")
    return (Message("system", "\n\n".join(filter(None, texts))), *others)


def list_client_indexes(call: ModelCall) -> list[int | None]:
    """Return the client's indexes of the messages of a call.

    A joined system message has the index of the client's first one.
    """
    padding = [None] * (len(call.messages) - len(call.client_indexes))
    indexes = [*call.client_indexes, *padding]
    if _join_system_messages(call.messages) is call.messages:
        return indexes
    pairs = list(zip(call.messages, indexes, strict=True))
    joined = [index for message, index in pairs if message.role == "system" and index is not None]
    return [joined[0] if joined else None, *(index for message, index in pairs if message.role != "system")]


def _make_messages(messages: Iterable[Message], *, with_extra_content: bool) -> list[JsonObject]:
    """Build the messages with the fields that Groq accepts.

    Groq rejects unknown fields and unexpected nulls. A call and its result have the id that the model's server knows.
    """
    bodies: list[JsonObject] = []
    sent_ids: dict[str, str] = {}
    for message in messages:
        content = message.content or message.refusal if message.refusal else message.content
        body: JsonObject = {"role": message.role, "content": content}
        if message.tool_calls:
            call_ids = _choose_call_ids(message.tool_calls)
            sent_ids |= call_ids
            body["tool_calls"] = [
                _make_call(call, call_ids[call.id], with_extra_content=with_extra_content)
                for call in message.tool_calls
            ]
        if message.role == "tool":
            call_id = message.tool_call_id or ""
            body["tool_call_id"] = sent_ids.get(call_id) or _shorten_call_id(call_id)
        elif message.name is not None:
            body["name"] = message.name
        bodies.append(body)
    return bodies


def _choose_call_ids(calls: tuple[ToolCall, ...]) -> dict[str, str]:
    """Choose the ids of a message's calls by those of the gateway.

    They are the model's own ones if these are unique.
    """
    call_ids: dict[str, str] = {}
    used_ids: set[str] = set()
    for call in calls:
        own_id = _shorten_call_id(call.model_id or call.id)
        call_ids[call.id] = own_id if own_id not in used_ids else _shorten_call_id(call.id)
        used_ids.add(own_id)
    return call_ids


def _shorten_call_id(call_id: str) -> str:
    """Return an id that model servers accept: OpenAI refuses longer ones."""
    return call_id if len(call_id) <= _MAX_CALL_ID_LENGTH else f"call_{sha256(call_id.encode()).hexdigest()[:32]}"


def _make_call(call: ToolCall, call_id: str, *, with_extra_content: bool) -> JsonObject:
    body: JsonObject = {
        "id": call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": _normalize_arguments(call.arguments)},
    }
    if with_extra_content and call.extra_content is not None:
        body["extra_content"] = call.extra_content
    return body


def _normalize_arguments(arguments: str) -> str:
    """Return arguments that are the text of a JSON object, else `{}`.

    Groq accepts nothing else, and clients send calls of earlier answers as their model wrote them, for example with an
    empty text. The result of such a call tells the model what was wrong.
    """
    try:
        _parse_members(arguments)
    except JSON_DECODE_ERRORS:
        return "{}"
    return arguments

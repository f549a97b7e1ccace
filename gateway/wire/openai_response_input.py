"""Input items of the Responses API, also those of a stored response."""

from uuid import UUID

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject
from gateway.wire.request_model import ItemList


def build_input_list(turn_id: UUID, messages: list[JsonObject]) -> JsonObject:
    """Convert the messages of a turn's request to items.

    The newest is first.
    """
    items: list[JsonObject] = []
    for message in messages:
        if message["role"] == "tool":
            output = {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
            items.append(output)
            continue
        if message.get("content") is not None or message.get("refusal"):
            items.append({"type": "message", "role": message["role"], "content": _to_parts(message)})
        for call in message.get("tool_calls") or ():
            fields = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
            items.append({"type": "function_call", **fields})
    data = [{"id": f"in_{turn_id.hex}_{n}", "status": "completed", **item} for n, item in enumerate(items)][::-1]
    bounds = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": False, **bounds}


def _to_parts(message: JsonObject) -> list[JsonObject]:
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    if refusal := message.get("refusal"):
        return [{"type": "refusal", "refusal": refusal}]
    content = message["content"]
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [{"type": kind, "text": part["text"]} if part["type"] == "text" else part for part in content]


def parse_content(content: str | ItemList[JsonObject]) -> str | ItemList[JsonObject]:
    """Convert content parts to the format of chat completions.

    If all parts are text, the result is one text.
    """
    if isinstance(content, str):
        return content
    parts: list[JsonObject] = []
    for part in content:
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "refusal", "refusal": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "input_image", "image_url": str(url)}:
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case _:
                kind = str(part.get("type"))[:80]
                advice = "send input_text, or input_image with an image_url"
                raise InvalidRequest(f"input: content of the type {kind!r} is not supported; {advice}.", param="input")
    return "\n".join(p["text"] for p in parts) if all(p["type"] == "text" for p in parts) else parts

"""Input items of a stored response, for the Responses API."""

from uuid import UUID

from gateway.domain.messages import JsonObject


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
        if message.get("content") is not None:
            items.append({"type": "message", "role": message["role"], "content": _to_parts(message)})
        for call in message.get("tool_calls") or ():
            fields = {"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}
            items.append({"type": "function_call", **fields})
    data = [{"id": f"in_{turn_id.hex}_{n}", "status": "completed", **item} for n, item in enumerate(items)][::-1]
    bounds = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": False, **bounds}


def _to_parts(message: JsonObject) -> list[JsonObject]:
    content = message["content"]
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    return [{"type": kind, "text": part["text"]} if part["type"] == "text" else part for part in content]

"""Valid request bodies of the largest size, which are processed in full."""

import json

from benchmarks.hostile_bodies import TOOL_BYTES, TURN_BYTES, HostileBody

_CHARS = 340_000
"""Characters of a prompt that a context window of 131,072 tokens holds.

Escaped, each of these takes 12 bytes.
"""
_CHARACTER = "\U0001f600"
_SESSION_HEADERS = (("MCP-Protocol-Version", "2025-11-25"), ("Mcp-Session-Id", ""))
_MODERN_PROTOCOL = "2026-07-28"


def list_valid_bodies() -> list[HostileBody]:
    """List the largest valid bodies of each route, by shape.

    An empty `Mcp-Session-Id` stands for a session to open.
    """
    return [*_list_turns(), *_list_calls()]


def _list_turns() -> list[HostileBody]:
    bodies: list[HostileBody] = []
    for path in ("/api/v1/chat", "/api/v1/chat/stream", "/v1/chat/completions"):
        for name, messages in _list_messages("text").items():
            bodies.append(_encode(f"valid, {name}", path, {"messages": messages}))
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * (TURN_BYTES - 1_000)}"}}
        body = {
            "messages": [{"role": "user", "content": [image]}],
            "model": "meta-llama/llama-4-scout-17b-16e-instruct",
        }
        bodies.append(_encode("valid, an image", path, body))
    for name, items in _list_messages("input_text").items():
        bodies.append(_encode(f"valid, {name}", "/v1/responses", {"input": items}))
    text = _CHARACTER * _CHARS
    message = {"messages": [{"role": "user", "content": "x"}]}
    return [
        *bodies,
        _encode("valid, long text", "/stream", {"prompt": text}),
        _encode("valid, long text", "/api/chat/stream", {"user_prompt": text}),
        _encode("valid, long system", "/api/ada/chat", {"message": "x", "system": text}),
        _encode("valid, tools", "/api/v1/chat", {**message, "tools": _list_tools()}),
        _encode("valid, tools", "/v1/chat/completions", {**message, "tools": _list_tools()}),
    ]


def _list_messages(text_type: str) -> dict[str, list[object]]:
    """Shapes of 4 MB of messages: long, many, many parts."""
    part = {"type": text_type, "text": _CHARACTER * 30}
    return {
        "a long message": [{"role": "user", "content": _CHARACTER * _CHARS}],
        "many messages": [{"role": "user", "content": _CHARACTER * (_CHARS // 480)}] * 480,
        "many parts": [{"role": "user", "content": [part] * 255}] * 40,
    }


def _list_tools() -> list[object]:
    parameters = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(50)}}
    description = _CHARACTER * 2_000
    return [
        {"type": "function", "function": {"name": f"tool_{n}", "description": description, "parameters": parameters}}
        for n in range(100)
    ]


def _list_calls() -> list[HostileBody]:
    text = "1+" * (TOOL_BYTES // 2 - 200) + "1"
    task = {"title": "x", "description": "x" * (TOOL_BYTES - 2_000)}
    values = {"expression": "1", "values": [1] * 40_000}
    prompt = _CHARACTER * (TOOL_BYTES // 12 - 200)
    return [
        _encode("valid, long argument", "/api/v1/tools/calculator", {"expression": text}),
        _encode("valid, long argument", "/api/v1/tools/add_task", task),
        _encode("valid, long argument", "/api/v1/mcp/prompts/plan_day", {"arguments": {"focus": "x" * 200_000}}),
        _encode_call("calculator", {"expression": text}),
        _encode_call("add_task", task),
        _encode_call("calculator", values, name="many values"),
        _encode_call("ask_agent", {"prompt": prompt}),
        _encode_call("ask_agent", {"prompt": prompt}, legacy=True),
        _encode_call("calculator", {"expression": text}, legacy=True),
        # The last one, because a key ends anonymous access.
        _encode("valid, long lists", "/api/v1/keys", {"name": "x", "models": [f"{n:0200}" for n in range(200)]}),
    ]


def _encode(name: str, path: str, body: object) -> HostileBody:
    return HostileBody(name, path, json.dumps(body, separators=(",", ":")).encode())


def _encode_call(tool: str, arguments: object, *, name: str = "long argument", legacy: bool = False) -> HostileBody:
    """Encode a call at `/mcp`.

    The protocol is that of 2026-07-28, or a legacy one with a session.
    """
    meta = {
        "io.modelcontextprotocol/protocolVersion": _MODERN_PROTOCOL,
        "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments} | ({} if legacy else {"_meta": meta})
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"MCP-Protocol-Version": _MODERN_PROTOCOL, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    body = _encode(f"valid {tool}, {'legacy, ' if legacy else ''}{name}", "/mcp", message)
    return HostileBody(body.name, body.path, body.body, _SESSION_HEADERS if legacy else tuple(headers.items()))

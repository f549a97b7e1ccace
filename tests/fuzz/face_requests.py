"""Requests of every format's clients, with odd values in place of parts."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import aiohttp

from tests.stack import Gateway

_HEADERS = {"Content-Type": "application/json", "A2A-Version": "1.0"}
_TEXT = "What is 23*19?"
_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": _SCHEMA}
_IMAGE = "data:image/png;base64,iVBORw0KGgo="
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    "",
    " ",
    "\x00",
    "\u202e",
    "x" * 300,
    "../..",
    "new",
    "01a2",
    [],
    [None],
    [[]],
    {},
    {"type": None},
    {"id": []},
    {"$ref": "#"},
    {"": {}},
    [{"type": "text"}],
    [{"role": "user"}],
)


class FaceRequest(NamedTuple):
    """A request: method, path and body."""

    method: str
    path: str
    body: Any


_CHAT_MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": _TEXT}, {"type": "image_url", "image_url": {"url": _IMAGE}}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "snow"},
    {"role": "user", "content": _TEXT},
]
_ANTHROPIC = {
    "model": "claude-sonnet-5",
    "max_tokens": 64,
    "system": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": _TEXT}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "snow"}]}],
        },
    ],
    "tools": [{"name": "get_weather", "input_schema": _SCHEMA}, {"type": "mcp_toolset", "mcp_server_name": "tools"}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 1_024},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["x"],
}
_RESPONSE = {
    "model": "openai/gpt-oss-120b",
    "instructions": "Be short.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": _TEXT}]},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "snow"},
        {"type": "mcp_call", "id": "mcp_1", "name": "calculator", "arguments": "{}", "output": "4"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ],
    "tools": [
        {"type": "function", **_FUNCTION},
        {"type": "mcp", "server_label": "tools", "allowed_tools": ["calculator"], "require_approval": "never"},
        {"type": "web_search"},
    ],
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": "low"},
    "metadata": {"a": "b"},
}
_AG_UI = {
    "threadId": "thread",
    "runId": "run",
    "state": {},
    "messages": [
        {"id": "m1", "role": "user", "content": _TEXT},
        {"id": "m2", "role": "assistant", "toolCalls": [_CALL]},
        {"id": "m3", "role": "tool", "toolCallId": "call_1", "content": "snow"},
    ],
    "tools": [_FUNCTION],
    "context": [{"description": "page", "value": "home"}],
    "forwardedProps": {"model": "openai/gpt-oss-120b"},
    "resume": [],
}
_UI_MESSAGES = {
    "id": "chat",
    "trigger": "submit-message",
    "messages": [
        {"id": "u1", "role": "user", "parts": [{"type": "text", "text": _TEXT}]},
        {
            "id": "a1",
            "role": "assistant",
            "parts": [
                {"type": "step-start"},
                {"type": "tool-get_weather", "toolCallId": "c1", "state": "output-available", "input": {}, "output": 1},
                {"type": "text", "text": "It snows.", "state": "done"},
            ],
        },
        {"id": "u2", "role": "user", "parts": [{"type": "file", "mediaType": "image/png", "url": _IMAGE}]},
    ],
}
_A2A_MESSAGE = {"role": "ROLE_USER", "messageId": "m", "contextId": "c", "parts": [{"text": _TEXT}]}
_CHATKIT_INPUT = {
    "content": [{"type": "input_text", "text": _TEXT}],
    "attachments": [],
    "inference_options": {"model": "openai/gpt-oss-120b"},
}
_BATCH = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"a": "b"}}
REQUESTS: tuple[FaceRequest, ...] = (
    FaceRequest(
        "POST",
        "/v1/chat/completions",
        {
            "model": "openai/gpt-oss-120b",
            "messages": _CHAT_MESSAGES,
            "tools": [{"type": "function", "function": _FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
            "stream_options": {"include_usage": True},
            "x_gateway": {"tools": ["calculator"], "cache": {"ttl": 60}},
        },
    ),
    FaceRequest("POST", "/v1/chat/completions", {"messages": _CHAT_MESSAGES[:1], "stream": True}),
    FaceRequest("POST", "/v1/completions", {"prompt": _TEXT, "stop": ["x"], "echo": True, "stream": False}),
    FaceRequest("POST", "/v1/messages", _ANTHROPIC),
    FaceRequest("POST", "/v1/messages?beta=true", _ANTHROPIC | {"stream": True}),
    FaceRequest("POST", "/v1/messages/count_tokens", _ANTHROPIC),
    FaceRequest("POST", "/v1/responses", _RESPONSE),
    FaceRequest("POST", "/v1/responses", _RESPONSE | {"stream": True, "store": False}),
    FaceRequest("POST", "/v1/responses/input_tokens", {"input": _TEXT}),
    FaceRequest("POST", "/v1/conversations", {"items": _RESPONSE["input"], "metadata": {"a": "b"}}),
    FaceRequest("POST", "/api/v1/ag-ui", _AG_UI),
    FaceRequest("POST", "/api/v1/ui-messages", _UI_MESSAGES),
    FaceRequest(
        "POST",
        "/a2a",
        {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": _A2A_MESSAGE}},
    ),
    FaceRequest("POST", "/a2a/v1/message:send", {"message": _A2A_MESSAGE, "configuration": {"historyLength": 1}}),
    FaceRequest("POST", "/chatkit", {"type": "threads.create", "params": {"input": _CHATKIT_INPUT}, "metadata": {}}),
    FaceRequest("POST", "/chatkit", {"type": "threads.list", "params": {"limit": 5, "order": "desc", "after": None}}),
    FaceRequest(
        "POST",
        "/chatkit",
        {"type": "threads.custom_action", "params": {"thread_id": "t", "item_id": "i", "action": {"type": "a"}}},
    ),
    FaceRequest("POST", "/v1/embeddings", {"model": "nomic-embed-text-v1_5", "input": ["a", "b"]}),
    FaceRequest("POST", "/v1/audio/speech", {"model": "tts", "voice": "a", "input": "hello", "response_format": "wav"}),
    FaceRequest("POST", "/v1/batches", _BATCH),
)


def generate_face_requests(seed: int, count: int) -> Iterator[FaceRequest]:
    """Generate changed requests of all formats in turn.

    A seed always generates the same.
    """
    generator = random.Random(seed)
    for number in range(count):
        request = REQUESTS[number % len(REQUESTS)]
        body = copy.deepcopy(request.body)
        for _ in range(generator.choice((0, 1, 1, 1, 2, 4))):
            body = _change_part(body, generator)
        yield request._replace(body=body)


def encode_body(body: Any) -> bytes:
    return json.dumps(body).encode()


def _change_part(value: Any, generator: random.Random) -> Any:
    """Replace, remove, repeat or rename a random part of a value."""
    if not isinstance(value, dict | list) or not value or generator.random() < 0.15:
        return copy.deepcopy(generator.choice(_ODD_VALUES))
    parts: Any = value
    key = generator.choice(list(parts) if isinstance(value, dict) else range(len(parts)))
    match generator.randrange(8):
        case 0:
            del parts[key]
        case 1 if isinstance(value, list):
            parts.extend([parts[key]] * generator.randrange(1, 40))
        case 1:
            parts[f"{key}x"] = parts.pop(key)
        case _:
            parts[key] = _change_part(parts[key], generator)
    return parts


async def send_face_request(gateway: Gateway, request: FaceRequest) -> tuple[int, str]:
    """Send a request; return the status and the text of its answer."""
    async with gateway.session.request(
        request.method,
        f"{gateway.base_url}{request.path}",
        data=encode_body(request.body),
        headers=_HEADERS,
        timeout=aiohttp.ClientTimeout(total=30),
    ) as response:
        return response.status, await response.text(errors="replace")


async def load_all_formats(gateway: Gateway) -> None:
    """Let the gateway load the modules and models of all formats.

    Another test of the process may have loaded them or not.
    """
    assert (await gateway.get("/openapi.json")).status == 200
    for request in generate_face_requests(0, 60):
        status, _ = await send_face_request(gateway, request)
        assert status != 401

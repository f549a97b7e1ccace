"""Programs in every wire format, by request and by key."""

import json
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.gateway.api.test_programs import SUM
from tests.gateway.api.test_tool_offer import get_offered
from tests.stack import Gateway, JsonObject, serve_gateway

pytestmark = pytest.mark.faults

USER: JsonObject = {"role": "user", "content": SUM}
A2A: JsonObject = {"message": {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": SUM}]}}
CHATKIT_INPUT: JsonObject = {
    "content": [{"type": "input_text", "text": SUM}],
    "attachments": [],
    "inference_options": {},
}
FORMATS: dict[str, tuple[str, JsonObject]] = {
    "native": ("/api/v1/chat", {"messages": [USER]}),
    "chat completions": ("/v1/chat/completions", {"messages": [USER]}),
    "completions": ("/v1/completions", {"prompt": SUM}),
    "responses": ("/v1/responses", {"input": SUM}),
    "messages": ("/v1/messages", {"messages": [USER], "max_tokens": 500}),
    "ui messages": (
        "/api/v1/ui-messages",
        {"id": "chat", "messages": [{"role": "user", "parts": [{"type": "text", "text": SUM}]}]},
    ),
    "ag-ui": ("/api/v1/ag-ui", {"threadId": "t", "runId": "r", "messages": [{"id": "1", **USER}]}),
    "a2a": ("/a2a", {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": A2A}),
    "chatkit": ("/chatkit", {"type": "threads.create", "params": {"input": CHATKIT_INPUT}}),
}
SHOW_CALLS = ("native", "chat completions", "responses", "messages", "ui messages", "ag-ui")
"""Formats that show calls of tools."""


def ask_for_programs(name: str) -> JsonObject:
    """Build the request that asks for programs."""
    _, body = FORMATS[name]
    match name:
        case "native":
            return body | {"code": "only"}
        case "ag-ui":
            return body | {"forwardedProps": {"x_gateway": {"code": "only"}}}
        case "a2a":
            return body | {"params": A2A | {"metadata": {"code": "only"}}}
        case "chatkit":
            return body | {"metadata": {"code": "only"}}
        case _:
            return body | {"x_gateway": {"code": "only"}}


async def send(gateway: Gateway, name: str, body: JsonObject, headers: dict[str, str] | None = None) -> str:
    """Send a request, and return the answer's whole text."""
    url = f"{gateway.base_url}{FORMATS[name][0]}"
    sent = {"A2A-Version": "1.0"} | (headers or {})
    async with gateway.session.post(url, json=body, headers=sent) as response:
        text = await response.text()
        assert response.status == 200, text
        return text


async def test_request_of_every_format_can_ask_for_programs(gateway: Gateway) -> None:
    await gateway.chat_stream("Add a task: Buy 3 eggs")
    for name in FORMATS:
        text = await send(gateway, name, ask_for_programs(name))
        assert get_offered(gateway.simulator) == {"run_python"}, name
        assert "add up to 3" in text or is_streamed(text), name
        if name in SHOW_CALLS:
            assert "run_python" in text, name
            assert "list_tasks" in text, name


def is_streamed(text: str) -> bool:
    """Return whether the deltas of a stream add up to the answer."""
    frames = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return "add up to 3" in "".join(find_delta(json.loads(frame)) for frame in frames)


def find_delta(value: Any) -> str:
    """Return the text of a delta, wherever it stands."""
    if isinstance(value, dict):
        return "".join(
            item if key == "delta" and isinstance(item, str) else find_delta(item) for key, item in value.items()
        )
    return ""


async def test_key_asks_for_programs_where_the_request_says_nothing(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("eager", code="only")
        await keyring.create_key("plain")
        for name, (_, body) in FORMATS.items():
            await send(gateway, name, body, keyring.headers("eager"))
            assert get_offered(simulator) == {"run_python"}, name
            await send(gateway, name, body, keyring.headers("plain"))
            assert "run_python" not in get_offered(simulator), name


async def test_request_overrides_the_mode_of_its_key(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, tool_token_budget=500) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("eager", code="only")
        await keyring.create_key("careful", code="off")
        await keyring.chat("careful", "Hello")
        assert "run_python" not in get_offered(simulator)
        await keyring.chat("careful", "Hello", code="only")
        assert "run_python" in get_offered(simulator)
        await keyring.chat("eager", "Hello", code="off")
        assert "run_python" not in get_offered(simulator)


async def test_mode_of_a_key_is_created_shown_and_kept_in_rotation(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ann", role="admin")
        made = await keyring.post("ann", "/api/v1/keys", {"name": "laptop", "code": "auto"})
        assert (made.status, made.body["code"]) == (201, "auto")
        rotated = await keyring.post("ann", f"/api/v1/keys/{made.body['id']}/rotate", {})
        assert rotated.body["code"] == "auto"
        refused = await keyring.post("ann", "/api/v1/keys", {"code": "sometimes"})
        assert (refused.status, refused.body["error"]["param"]) == (422, "code")

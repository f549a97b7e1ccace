"""Approvals with other arguments than the model's."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.gateway.api.test_questions import get_only_event, read_to_end, send_answer
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

ADDRESS = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
SCHEMA = {
    "type": "object",
    "required": ["to"],
    "properties": {"to": {"$ref": "#/$defs/Address"}, "more": {"type": "array", "items": {"$ref": "#/$defs/Address"}}},
    "$defs": {"Address": ADDRESS},
}


@pytest.fixture
async def server() -> RawServer:
    return RawServer(make_raw_tool("send", inputSchema=SCHEMA))


@pytest.fixture
async def gateway(
    database_url: str, simulator: Simulator, tmp_path: Path, server: RawServer
) -> AsyncGenerator[Gateway]:
    async with serve_raw(database_url, simulator, tmp_path, {"post": (server, {})}) as gateway:
        yield gateway


async def ask(gateway: Gateway) -> tuple[str, Any]:
    reply = await gateway.chat_stream('call post_send {"to": {"city": "Oslo"}}', approval="always")
    return reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]


async def test_arguments_of_a_schema_with_references_are_changed(gateway: Gateway, server: RawServer) -> None:
    turn_id, question = await ask(gateway)
    invalid = await send_answer(gateway, turn_id, question["input_id"], "accept", {"arguments": {"to": {"city": 1}}})
    assert (invalid.status, invalid.body["error"]["param"]) == (422, "content.arguments.to.city")
    arguments = {"to": {"city": "Rome"}, "more": [{"city": "Bari"}]}
    accepted = await send_answer(gateway, turn_id, question["input_id"], "accept", {"arguments": arguments})
    assert accepted.status == 200, accepted.body
    events = await read_to_end(gateway, turn_id)
    assert get_only_event(events, "input.resolved")["content"] == {"arguments": arguments}
    assert get_only_event(events, "tool.result")["outcome"] == "ok"
    assert [params["arguments"] for method, params in server.calls if method == "tools/call"] == [arguments]


async def test_call_whose_schema_has_references_is_approved_as_it_is(gateway: Gateway, server: RawServer) -> None:
    turn_id, question = await ask(gateway)
    assert (await send_answer(gateway, turn_id, question["input_id"], "accept")).status == 200
    await read_to_end(gateway, turn_id)
    assert [params["arguments"] for method, params in server.calls if method == "tools/call"] == [
        {"to": {"city": "Oslo"}}
    ]


async def test_answer_to_a_question_of_the_server_changes_no_arguments(gateway: Gateway, server: RawServer) -> None:
    form = {"type": "object", "properties": {"note": {"type": "string"}}}  # which allows others
    question = {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": form}}

    asking = {"resultType": "input_required", "inputRequests": {"q": question}, "requestState": "asked"}
    server.answers["tools/call"] = asking
    reply = await gateway.chat_stream('call post_send {"to": {"city": "Oslo"}}')
    turn_id, asked = reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]
    answer = {"arguments": {"to": {"city": "Rome"}}}
    assert (await send_answer(gateway, turn_id, asked["input_id"], "accept", answer)).status == 200
    await read_to_end(gateway, turn_id)
    [call] = (await gateway.get(f"/api/v1/turns/{turn_id}")).body["tool_calls"]
    assert call["arguments"] == {"to": {"city": "Oslo"}}

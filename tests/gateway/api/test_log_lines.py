"""Log lines of requests and their turns."""

import io
import json
from typing import Any

import pytest

from gateway.simulator import Fault
from tests.eventually import eventually
from tests.stack import Gateway


def list_turn_lines(log_text: io.StringIO, turn_id: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    return [line for line in lines if line.get("turn_id") == turn_id and "turn" in line]


async def find_turn_line(log_text: io.StringIO, turn_id: str) -> dict[str, Any]:
    await eventually(lambda: list_turn_lines(log_text, turn_id))
    [line] = list_turn_lines(log_text, turn_id)
    return line


@pytest.mark.parametrize("path", ["/api/v1/chat", "/api/v1/chat/stream"])
async def test_line_of_a_request_has_the_end_of_its_turn(
    shared_gateway: Gateway, log_text: io.StringIO, path: str
) -> None:
    send = shared_gateway.chat if path == "/api/v1/chat" else shared_gateway.chat_stream
    reply = await send("Hello")
    line = await find_turn_line(log_text, reply.headers["x-turn-id"])
    assert (line["event"], line["path"], line["status"]) == ("request", path, 200)
    assert (line["turn"], line["steps"], line["code"]) == ("completed", 1, None)
    assert line["tokens"] > 0
    assert 0 < line["first_token_ms"] <= line["turn_ms"] <= line["duration_ms"]
    assert line["model"]
    assert line["request_id"] == reply.headers["x-request-id"]
    assert "turn_completed" not in log_text.getvalue()


async def test_line_of_a_request_has_the_failure_of_its_turn(shared_gateway: Gateway, log_text: io.StringIO) -> None:
    shared_gateway.simulator.faults.add_faults(Fault(kind="status", status=400, match="zebra"))
    reply = await shared_gateway.post("/api/v1/chat", {"messages": [{"role": "user", "content": "zebra"}]})
    line = await find_turn_line(log_text, reply.headers["x-turn-id"])
    assert (line["event"], line["turn"], line["status"]) == ("request", "failed", reply.status)
    assert line["code"] == reply.body["error"]["code"]


async def test_turn_that_goes_on_without_its_request_has_a_line(shared_gateway: Gateway, log_text: io.StringIO) -> None:
    shared_gateway.simulator.pause_streams()
    async with shared_gateway.stream("count to 300", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        stream.response.close()
        await eventually(lambda: '"path": "/api/v1/chat/stream"' in log_text.getvalue())
    assert not list_turn_lines(log_text, turn_id)
    shared_gateway.simulator.resume_streams()
    line = await find_turn_line(log_text, turn_id)
    assert (line["event"], line["turn"]) == ("turn_completed", "completed")
    assert line["tokens"] > 0


async def test_turn_of_two_requests_has_one_line(shared_gateway: Gateway, log_text: io.StringIO) -> None:
    """A retry follows the turn of its request."""
    body = {"messages": [{"role": "user", "content": "count to 300"}], "stream": True}
    retry = {"X-Stainless-Retry-Count": "1"}
    shared_gateway.simulator.pause_streams()
    async with shared_gateway.session.post(f"{shared_gateway.base_url}/api/v1/chat", json=body) as first:
        turn_id = first.headers["x-turn-id"]
        url = f"{shared_gateway.base_url}/api/v1/chat"
        async with shared_gateway.session.post(url, json=body, headers=retry) as second:
            assert second.headers["x-turn-id"] == turn_id
            shared_gateway.simulator.resume_streams()
            await first.read()
            await second.read()
    await eventually(lambda: log_text.getvalue().count('"path": "/api/v1/chat"') == 2)
    assert (await find_turn_line(log_text, turn_id))["event"] == "request"

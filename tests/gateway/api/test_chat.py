"""The native chat API: streamed and complete responses, and stored turns."""

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.conftest import count_lock_waits
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway


async def get_turn_row(db: asyncpg.Connection, turn_id: str) -> Any:
    return await db.fetchrow("SELECT * FROM turns WHERE id = $1::uuid", turn_id)


async def test_stream_reports_a_turn_with_tools_from_start_to_done(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat_stream("What is 23*19?")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.is_done
    numbered_events = reply.events[:-1]
    assert [event.id for event in numbered_events] == list(range(1, len(numbered_events) + 1))
    assert all(event.data["type"] == event.type for event in numbered_events)
    started, call, result, end = (
        reply.get_event_data(kind)[0] for kind in ("turn.started", "tool.call", "tool.result", "turn.completed")
    )
    assert started["turn_id"] == reply.headers["x-turn-id"]
    assert (call["tool"], call["server"], call["arguments"]) == ("calculator", "tools", {"expression": "23*19"})
    assert (result["outcome"], result["structured"]["result"]) == ("ok", 437)
    assert result["content"][0]["text"] == "23*19 = 437"
    assert "437" in reply.text
    assert (end["finish_reason"], end["steps"]) == ("stop", 2)
    assert end["usage"]["total_tokens"] > 0
    assert end["cost_usd"] > 0
    row = await get_turn_row(db, started["turn_id"])
    assert (row["status"], row["prompt"], row["response"]) == ("completed", "What is 23*19?", reply.text)


async def test_turn_is_stored_with_its_messages_and_tool_calls(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.chat_stream("What is 23*19?", temperature=0.3, user="label-1")
    row = await get_turn_row(db, reply.headers["x-turn-id"])
    roles = [message["role"] for message in json.loads(row["messages"])]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert json.loads(row["parameters"]) == {"temperature": 0.3}
    assert (row["model_name"], row["user_label"], row["finish_reason"]) == ("openai/gpt-oss-120b", "label-1", "stop")
    assert (
        json.loads(row["usage"])["total_tokens"] == reply.get_event_data("turn.completed")[0]["usage"]["total_tokens"]
    )
    assert row["duration_ms"] >= row["first_token_ms"] > 0
    call = await db.fetchrow("SELECT * FROM tool_calls WHERE turn_id = $1::uuid", reply.headers["x-turn-id"])
    assert call is not None
    assert (call["tool"], call["outcome"], json.loads(call["arguments"])) == (
        "calculator",
        "ok",
        {"expression": "23*19"},
    )


async def test_non_streamed_response_contains_answer_tool_calls_and_usage(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    reply = await gateway.chat("What is 23*19?")
    body = reply.body
    assert reply.status == 200
    assert "437" in body["response"]
    assert body["turn_id"] == reply.headers["x-turn-id"]
    assert body["conversation_id"] is None
    assert body["model"] == "openai/gpt-oss-120b"
    assert body["finish_reason"] == "stop"
    call = body["tool_calls"][0]
    assert (call["tool"], call["outcome"], call["arguments"]) == ("calculator", "ok", {"expression": "23*19"})
    assert call["duration_ms"] > 0
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert (await get_turn_row(db, body["turn_id"]))["response"] == body["response"]


async def test_tasks_are_added_listed_and_completed_over_several_steps(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    await gateway.chat("Add a task to buy milk")
    await gateway.chat("Add a task to write a letter")
    reply = await gateway.chat("Show my pending tasks and mark the first one done")
    assert [call["tool"] for call in reply.body["tool_calls"]] == ["list_tasks", "complete_task"]
    rows = await db.fetch("SELECT user_id, id, title, status FROM tools.tasks ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("local", 1, "buy milk", "completed"),
        ("local", 2, "write a letter", "pending"),
    ]
    logs = await db.fetch("SELECT id, prompt, model_name, created_at FROM chat_logs ORDER BY id DESC")
    assert logs[0]["prompt"] == "Show my pending tasks and mark the first one done"
    assert len(logs) == 3


async def test_conversation_is_continued_and_an_unknown_one_is_a_404(gateway: Gateway) -> None:
    first = await gateway.chat("My name is Ada", conversation_id="new")
    conversation = first.body["conversation_id"]
    assert conversation
    second = await gateway.chat("What is my name?", conversation_id=conversation)
    assert second.body["response"].startswith("Your name is Ada.")
    assert second.body["conversation_id"] == conversation
    reply = await gateway.chat("Hello", conversation_id="01890000-0000-7000-8000-000000000000")
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")
    assert reply.body["error"]["param"] == "conversation_id"


async def test_model_accepts_the_history_of_a_turn_with_tools(gateway: Gateway) -> None:
    first = await gateway.chat("What is 23*19?", conversation_id="new")
    second = await gateway.chat("What did I ask before?", conversation_id=first.body["conversation_id"])
    assert second.body["response"].startswith("Before this you wrote: What is 23*19?")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "name": 1}]}, "messages.1.name"),
        ({"messages": [{"role": "user", "content": "x"}] * 501}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 400_001}]}, "messages.0.content"),
        ([1, 2], None),
    ],
)
async def test_invalid_request_is_a_422_that_names_the_field(
    shared_gateway: Gateway, body: Any, param: str | None
) -> None:
    for path in ("/api/v1/chat", "/api/v1/chat/stream"):
        reply = await shared_gateway.post(path, body)
        error = reply.body["error"]
        assert (reply.status, error["code"]) == (422, "invalid_request")
        assert error.get("param") == param
        assert error["message"]
        assert error["request_id"] == reply.headers["x-request-id"]


async def test_invalid_json_is_a_422_in_the_error_format(gateway: Gateway) -> None:
    headers = {"content-type": "application/json"}
    async with gateway.session.post(f"{gateway.base_url}/api/v1/chat", data=b"{oops", headers=headers) as response:
        assert response.status == 422
        assert (await response.json())["error"]["message"] == "The body is not valid JSON."


async def test_body_over_the_limit_is_a_413_with_and_without_content_length(gateway: Gateway) -> None:
    async def stream_spaces() -> Any:
        for _ in range(100):
            yield b" " * 65_536

    for data in (b" " * (5 * 1024 * 1024), stream_spaces()):
        headers = {"content-type": "application/json"}
        async with gateway.session.post(f"{gateway.base_url}/api/v1/chat", data=data, headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize("path", ["/api/v1/chat", "/v1/chat/completions", "/v1/responses"])
async def test_compressed_body_is_a_415(gateway: Gateway, path: str) -> None:
    body = gzip.compress(b'{"messages":[{"role":"user","content":"Hello"}]}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with gateway.session.post(f"{gateway.base_url}{path}", data=body, headers=headers) as response:
        assert response.status == 415
        error = (await response.json())["error"]
        assert error["code"] == "unsupported_encoding"
        assert "without Content-Encoding" in error["message"]


async def test_safe_request_id_is_used_and_an_unsafe_one_replaced(gateway: Gateway) -> None:
    safe = await gateway.get("/health", headers={"x-request-id": "abc-123"})
    replaced = await gateway.get("/health", headers={"x-request-id": "evil id"})
    assert safe.headers["x-request-id"] == "abc-123"
    assert len(replaced.headers["x-request-id"]) == 36


async def test_retired_model_is_replaced_by_its_successor_with_a_warning(gateway: Gateway) -> None:
    reply = await gateway.chat("Hello", model="llama-3.3-70b-versatile")
    assert reply.body["model"] == "openai/gpt-oss-120b"
    assert "retired" in reply.body["warnings"][0]
    unknown_model = await gateway.chat("Hello", model="gpt-99")
    assert (unknown_model.status, unknown_model.body["error"]["code"]) == (404, "model_not_found")


async def test_only_requested_tools_are_sent_to_the_model(gateway: Gateway) -> None:
    reply = await gateway.chat_stream("What is 23*19?", tools=["list_tasks", "no_such_tool"])
    started = reply.get_event_data("turn.started")[0]
    assert started["tools"] == ["list_tasks"]
    assert "no_such_tool" in started["warnings"][0]
    assert not reply.get_event_data("tool.call")
    sent = gateway.simulator.requests[-1]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["list_tasks"]


async def test_prompt_prefix_is_identical_across_turns_for_the_prompt_cache(gateway: Gateway) -> None:
    await gateway.chat("What is 23*19?", conversation_id="new")
    reply = await gateway.chat_stream("What is 23*19?")
    assert reply.get_event_data("turn.completed")[0]["usage"]["cached_tokens"] > 0
    first_request, second_request = gateway.simulator.requests[0], gateway.simulator.requests[-1]
    assert json.dumps(first_request["tools"]) == json.dumps(second_request["tools"])
    assert first_request["messages"][0] == second_request["messages"][0]
    assert "calculator is exact" in first_request["messages"][0]["content"]


async def test_endless_tool_use_ends_at_the_step_limit(database_url: str, simulator: Simulator, tools_url: str) -> None:
    simulator.faults.add_faults(Fault(kind="tool_calls", times=99, calls=[{"name": "list_tasks", "arguments": {}}]))
    async with serve_gateway(database_url, simulator, tools_url, agent_max_steps=3) as gateway:
        reply = await gateway.chat("Hello")
    assert (reply.body["finish_reason"], reply.body["steps"], len(reply.body["tool_calls"])) == ("step_limit", 3, 3)


async def test_model_call_overlaps_the_turn_insert_and_no_output_precedes_its_commit(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    async with db.transaction():
        await db.execute("LOCK TABLE turns IN SHARE MODE")
        request = asyncio.create_task(gateway.chat("Hello"))
        await gateway.simulator.wait_until(lambda s: len(s.requests) == 1 and not s.open_streams)
        assert not request.done()
    reply = await request
    assert reply.status == 200
    assert await db.fetchval("SELECT response FROM turns") == reply.body["response"] != ""


async def test_turn_with_a_parent_waits_for_its_history(gateway: Gateway, db: asyncpg.Connection) -> None:
    first = (await gateway.chat("My name is Ada.")).body["turn_id"]
    async with db.transaction():
        await db.execute("LOCK TABLE turns IN SHARE MODE")
        request = asyncio.create_task(gateway.chat("What is my name?", parent_turn_id=first))
        await eventually(lambda: count_lock_waits(db))
    assert (await request).status == 200
    assert "My name is Ada." in [message["content"] for message in gateway.simulator.requests[-1]["messages"]]


async def test_two_hundred_concurrent_streams_complete(gateway: Gateway, db: asyncpg.Connection) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Gateway(gateway.base_url, session, gateway.state, gateway.simulator)
        replies = await asyncio.gather(*(client.chat_stream(f"count to {n}") for n in range(1, 201)))
    assert all(reply.text.endswith(f" {n} (simulated)") or n == 1 for n, reply in enumerate(replies, 1))
    assert await db.fetchval("SELECT count(*) FROM turns WHERE status = 'completed'") == 200

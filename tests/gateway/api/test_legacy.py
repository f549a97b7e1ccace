"""The legacy API: `/stream`, `/api/chat/stream` and `/api/{user_id}/chat`."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from gateway.simulator import Fault, Simulator
from tests.stack import Gateway, Reply, serve_gateway

SUM_PROMPT = "What is 23*19?"


async def post_raw(gateway: Gateway, path: str, body: Any) -> tuple[Any, bytes]:
    async with gateway.session.post(f"{gateway.base_url}{path}", json=body) as response:
        return response, await response.read()


def parse_frames(body: bytes) -> list[Any]:
    return [json.loads(frame.removeprefix("data: ")) for frame in body.decode().split("\n\n") if frame]


# --- /stream


async def test_stream_is_plain_text_by_default(gateway: Gateway, db: asyncpg.Connection) -> None:
    response, body = await post_raw(gateway, "/stream", {"prompt": SUM_PROMPT})
    assert response.content_type == "text/plain"
    assert body.decode() == await db.fetchval("SELECT response FROM turns")


async def test_openai_stream_format_is_one_json_object_per_line(gateway: Gateway) -> None:
    _, body = await post_raw(gateway, "/stream?stream_format=openai", {"prompt": SUM_PROMPT})
    chunks = [json.loads(line) for line in body.decode().splitlines()]
    assert all(set(chunk) == {"id", "object", "created", "model", "choices"} for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "437" in "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def test_sse_stream_format_ends_with_done(gateway: Gateway) -> None:
    response, body = await post_raw(gateway, "/stream?stream_format=sse", {"prompt": SUM_PROMPT})
    assert response.content_type == "text/event-stream"
    assert body.endswith(b"data: [DONE]\n\n")
    assert all(frame.startswith(b"data: {") for frame in body.split(b"\n\n")[:-2])


@pytest.mark.parametrize("stream_format", ["text", "openai", "sse"])
async def test_mid_stream_failure_is_reported_in_each_format(gateway: Gateway, stream_format: str) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="cut", after_chunks=40))
    _, body = await post_raw(gateway, f"/stream?stream_format={stream_format}", {"prompt": "count to 300"})
    assert b"broke off" in body
    assert b"[DONE]" not in body


@pytest.mark.parametrize("stream_format", ["text", "openai", "sse"])
async def test_text_after_tool_calls_is_streamed_in_each_format(gateway: Gateway, stream_format: str) -> None:
    reply = await gateway.chat_stream("Show my pending tasks and mark the first one done")
    _, body = await post_raw(gateway, f"/stream?stream_format={stream_format}", {"prompt": "Add a task to rest"})
    assert b"Added task" in body
    assert reply.is_done


# --- /api/chat/stream and its conversations


async def send_prompt(gateway: Gateway, prompt: str, **body: Any) -> list[Any]:
    _, answer = await post_raw(gateway, "/api/chat/stream", {"user_prompt": prompt, **body})
    return parse_frames(answer)


async def test_frames_start_with_the_conversation_id_and_end_with_finished(gateway: Gateway) -> None:
    frames = await send_prompt(gateway, SUM_PROMPT)
    assert set(frames[0]) == {"conversation_id", "model"}
    assert all(set(frame) == {"content", "finished"} and frame["finished"] is False for frame in frames[1:-1])
    assert frames[-1] == {"content": "", "finished": True}
    assert "437" in "".join(frame["content"] for frame in frames[1:])


async def test_conversation_is_continued_shown_and_deleted(gateway: Gateway, db: asyncpg.Connection) -> None:
    first = await send_prompt(gateway, "My name is Ada.")
    conversation_id = first[0]["conversation_id"]
    second = await send_prompt(gateway, "What is my name?", conversation_id=conversation_id)
    assert "Ada" in "".join(frame["content"] for frame in second[1:])
    path = f"/api/conversations/{conversation_id}"
    conversation = (await gateway.get(path)).body
    assert conversation["conversation_id"] == conversation_id
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant", "user", "assistant"]
    assert conversation["messages"][0] == {"role": "user", "content": "My name is Ada."}
    async with gateway.session.delete(f"{gateway.base_url}{path}") as response:
        assert response.status == 200
    assert (await gateway.get(path)).status == 404
    for table in ("turns", "turn_events", "tool_calls", "conversations"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_save_conversation_false_stores_no_content(gateway: Gateway, db: asyncpg.Connection) -> None:
    frames = await send_prompt(gateway, "A secret", save_conversation=False)
    assert frames[0]["conversation_id"] is None
    assert await db.fetchval("SELECT count(*) FROM conversations") == 0
    assert await db.fetchval("SELECT prompt FROM turns") == ""


async def test_supported_hyperparameters_reach_the_model(gateway: Gateway) -> None:
    hyperparameters = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 1000,
        "stop": ["X"],
        "top_k": 40,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
    }
    frames = await send_prompt(gateway, "Hello", hyperparameters=hyperparameters, system_prompt="Be a camel.")
    assert frames[-1]["finished"] is True
    model_request = gateway.simulator.requests[-1]
    assert (
        model_request["temperature"],
        model_request["top_p"],
        model_request["max_completion_tokens"],
        model_request["stop"],
    ) == (0.5, 0.9, 1000, ["X"])
    assert not {"top_k", "repetition_penalty", "frequency_penalty", "presence_penalty"} & set(model_request)
    assert "Be a camel." in model_request["messages"][0]["content"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("max_tokens", 32_001),
        ("stop", list("abcde")),
        ("top_k", -1),
        ("repetition_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("n", 2),
    ],
)
async def test_invalid_hyperparameter_is_a_422_that_names_the_field(
    shared_gateway: Gateway, name: str, value: Any
) -> None:
    reply = await shared_gateway.post("/api/chat/stream", {"user_prompt": "Hello", "hyperparameters": {name: value}})
    assert reply.status == 422
    assert reply.body["error"]["param"].startswith(f"hyperparameters.{name}")
    assert name in reply.body["detail"]


# --- /api/{user_id}/chat


async def send_message(gateway: Gateway, user: str, message: str, **more: Any) -> Reply:
    return await gateway.post(f"/api/{user}/chat", {"message": message, **more})


async def test_user_in_the_path_owns_the_tasks_and_the_conversation(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await send_message(gateway, "ada", "Add a task to buy milk", conversation_id=None)
    assert set(reply.body) == {"conversation_id", "response", "tool_calls"}
    assert reply.body["tool_calls"] == [{"tool": "add_task", "params": {"title": "buy milk"}}]
    assert await db.fetchval("SELECT user_id FROM tools.tasks") == "ada"
    conversation_id = reply.body["conversation_id"]
    second = await send_message(gateway, "ada", "What did I ask?", conversation_id=conversation_id)
    assert "milk" in second.body["response"]
    other = await send_message(gateway, "bob", "What did I ask?", conversation_id=conversation_id)
    assert (other.status, "milk" in other.body["response"]) == (200, False)  # bob's own conversation of that number


@pytest.mark.parametrize("user", ["chat", "conversations", "a%20b", "x" * 129])
async def test_reserved_and_invalid_user_names_are_rejected(shared_gateway: Gateway, user: str) -> None:
    assert (await send_message(shared_gateway, user, "Hello")).status in (404, 422)


async def test_too_long_and_empty_messages_are_rejected(gateway: Gateway) -> None:
    assert (await send_message(gateway, "ada", "x" * 4097)).status == 422
    assert (await send_message(gateway, "ada", "")).status == 422
    assert (await send_message(gateway, "ada", "x" * 4096)).status == 200


@pytest.fixture
async def protected_gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, api_key=SecretStr("the-right-key-16")) as gateway:
        yield gateway


async def test_user_in_the_path_must_be_the_authenticated_caller(protected_gateway: Gateway) -> None:
    headers = {"X-API-Key": "the-right-key-16"}
    rejection = await protected_gateway.post("/api/ada/chat", {"message": "Hello"}, headers=headers)
    assert (rejection.status, rejection.body["error"]["code"]) == (404, "not_found")
    assert (await protected_gateway.post("/api/local/chat", {"message": "Hello"}, headers=headers)).status == 200
    assert (await protected_gateway.post("/api/local/chat", {"message": "Hello"})).status == 401


# --- errors and health


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/stream", {}),
        ("/stream", {"prompt": ""}),
        ("/stream", {"prompt": 1}),
        ("/stream", {"prompt": "x", "stream": False}),
        ("/stream?stream_format=xml", {"prompt": "x"}),
        ("/api/chat/stream", {"text": "x"}),
        ("/api/chat/stream", {"user_prompt": "x", "conversation_id": [7]}),
        ("/api/ada/chat", {"text": "x"}),
        ("/stream", []),
    ],
)
async def test_invalid_request_is_a_422_with_a_detail(shared_gateway: Gateway, path: str, body: Any) -> None:
    reply = await shared_gateway.post(path, body)
    assert reply.status == 422
    assert reply.body["error"]["code"] in ("invalid_request", "unsupported_parameter")
    assert isinstance(reply.body["detail"], str)


async def test_health_reports_the_conversation_count_under_both_names(gateway: Gateway) -> None:
    await send_prompt(gateway, "Hello")
    health = (await gateway.get("/health")).body
    assert (health["status"], health["conversations"], health["conversations_in_memory"]) == ("healthy", 1, 1)

"""Chats of the AI SDK: branches, tools, stop, resume, hostile input."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest

from gateway.api.routes.front_ends import ui_messages
from gateway.simulator import Fault
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.ui_chat import (
    UIChat,
    decide,
    get_part,
    list_asked,
    list_sent,
    make_message,
    read_chunks,
    resume,
)
from tests.stack import Gateway

pytestmark = pytest.mark.faults

WEATHER = {"get_weather": {"description": "The weather.", "parameters": {"type": "object", "properties": {}}}}


async def test_answer_that_is_asked_for_again_is_a_branch(gateway: Gateway, db: asyncpg.Connection) -> None:
    chat = UIChat(gateway)
    await chat.send("Say one.")
    await chat.send("Say two.")
    chat.messages.pop()
    await chat.send(trigger="regenerate-message")
    assert list_asked(gateway) == ["Say one.", "Say two."]
    del chat.messages[1:]
    await chat.send(trigger="regenerate-message")
    assert list_asked(gateway) == ["Say one."]
    chat.messages = [make_message("Say zero.", id="edited")]
    await chat.send(messageId="edited")
    assert list_asked(gateway) == ["Say zero."]
    await chat.send("Say half.")
    assert list_asked(gateway) == ["Say zero.", "Say half."]
    assert await db.fetchval("SELECT count(*) FROM turns WHERE parent_id IS NULL") == 3
    assert await db.fetchval("SELECT count(*) FROM conversations") == 1


async def test_chat_of_another_back_end_is_taken_over(gateway: Gateway) -> None:
    call = {"toolCallId": "c1", "state": "output-available", "input": {"a": 1}, "output": {"b": 2}}
    earlier = {
        "id": "other",
        "role": "assistant",
        "parts": [{"type": "text", "text": "Hi."}, {"type": "tool-t", **call}],
    }
    chat = UIChat(gateway)
    chat.messages = [make_message("Hello."), earlier]
    await chat.send("Say one.")
    assert [role for role, _ in list_sent(gateway)] == ["user", "assistant", "tool", "user"]
    await chat.send("Say two.")
    assert list_asked(gateway) == ["Hello.", "Say one.", "Say two."]


async def test_front_end_may_send_the_last_message_alone(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    await chat.send("Say one.")
    await chat.send(message=make_message("Say two."), messages=None)
    assert list_asked(gateway) == ["Say one.", "Say two."]


async def test_decision_that_is_sent_twice_counts_once(gateway: Gateway, db: asyncpg.Connection) -> None:
    chat = UIChat(gateway, x_gateway={"approval": "always"})
    answer = await chat.send("Add a task to buy milk")
    decide(answer, approved=True)
    again = json.loads(json.dumps(chat.messages))
    await chat.send()
    chat.messages = again
    assert get_part(await chat.send())["state"] == "output-available"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1


async def test_writing_on_cancels_a_turn_that_waits(gateway: Gateway, db: asyncpg.Connection) -> None:
    chat = UIChat(gateway, x_gateway={"approval": "always"})
    await chat.send("Add a task to buy milk")
    await chat.send("Say two.", x_gateway={})
    assert list_asked(gateway)[-1] == "Say two."
    assert [row[0] for row in await db.fetch("SELECT status FROM turns ORDER BY id")] == ["cancelled", "completed"]


async def test_question_is_a_data_part_and_its_answer_continues_the_message(gateway: Gateway) -> None:
    for title in ("Buy milk", "buy milk"):
        await gateway.chat(f"Add a task to {title}")
    chat = UIChat(gateway)
    answer = await chat.send("delete the task buy milk")
    question = next(chunk for chunk in chat.chunks if chunk["type"] == "data-input")
    assert question["data"]["schema"]["required"] == ["task_id"]
    wrong = await gateway.post(
        "/api/v1/ui-messages",
        {
            "id": chat.id,
            "messages": chat.messages,
            "answers": [{"input_id": question["id"], "content": {"task_id": "x"}}],
        },
    )
    assert wrong.status == 422
    await chat.send(answers=[{"input_id": question["id"], "content": {"task_id": 2}}])
    assert get_part(answer)["output"]["deleted"]["id"] == 2
    [update] = [chunk for chunk in chat.chunks if chunk["type"] == "data-input"]
    assert (update["id"], update["data"]["answer"]) == (question["id"], "accept")


async def test_tools_of_the_front_end_continue_the_message(gateway: Gateway, db: asyncpg.Connection) -> None:
    chat = UIChat(gateway, tools=WEATHER)
    answer = await chat.send('call get_weather with {"city": "Oslo"}')
    part = get_part(answer, "tool-get_weather")
    assert (part["state"], part["input"]) == ("input-available", {"city": "Oslo"})
    assert chat.chunks[-1]["finishReason"] == "tool-calls"
    part |= {"state": "output-available", "output": "It snows in Oslo."}
    assert await chat.send() is answer
    assert "It snows in Oslo." in chat.text
    assert [role for role, _ in list_sent(gateway)] == ["user", "assistant", "tool"]
    await chat.send("Say two.")
    assert [role for role, _ in list_sent(gateway)] == ["user", "assistant", "tool", "assistant", "user"]
    assert await db.fetchval("SELECT count(*) FROM turns") == 3


async def test_answer_is_not_complete_or_the_stream_says_so(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    gateway.simulator.faults.add_faults(Fault(kind="abort", after_chunks=4, times=20, match="Say one"))
    await chat.send("Say one.")
    assert chat.types[-1] == "error"
    assert chat.chunks[-1]["errorText"]
    refused = await gateway.post("/api/v1/ui-messages", {"id": "x", "messages": [make_message("Hi")], "model": "none"})
    assert (refused.status, refused.body["error"]["code"]) == (404, "model_not_found")


async def read_until(chunks: AsyncGenerator[dict[str, Any]], kind: str) -> dict[str, Any]:
    async for chunk in chunks:
        if chunk["type"] == kind:
            return chunk
    raise AssertionError(f"no {kind}")


def start_endless_turn(gateway: Gateway, chat: UIChat) -> Any:
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.5, match="Go on"))
    body = {"id": chat.id, "messages": [make_message("Go on.")]}
    return gateway.session.post(f"{gateway.base_url}/api/v1/ui-messages", json=body)


async def test_turn_is_cancelled_when_its_page_does_not_come_back(
    gateway: Gateway, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui_messages, "GRACE_SECONDS", 0.1)
    async with start_endless_turn(gateway, UIChat(gateway)) as response:
        await read_until(read_chunks(response), "text-delta")

    async def is_cancelled() -> bool:
        return await db.fetchval("SELECT status FROM turns") == "cancelled"

    await eventually(is_cancelled)


async def test_page_that_is_loaded_again_gets_the_answer_from_its_start(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    async with start_endless_turn(gateway, chat) as response:
        chunks = read_chunks(response)
        start = await anext(chunks)
        first = await read_until(chunks, "text-delta")
    async with gateway.session.get(f"{gateway.base_url}/api/v1/ui-messages/{chat.id}/stream") as resumed:
        chunks = read_chunks(resumed)
        assert await anext(chunks) == start
        assert await read_until(chunks, "text-delta") == first
        await gateway.post(f"/api/v1/turns/{start['messageMetadata']['turn_id']}/cancel", None)
        assert await read_until(chunks, "abort")


async def test_page_that_is_loaded_again_gets_the_turns_of_one_message(gateway: Gateway) -> None:
    chat = UIChat(gateway, tools=WEATHER)
    prompt = 'call get_weather with {"city": "Oslo"}'
    answer = await chat.send(prompt)
    get_part(answer, "tool-get_weather").update(state="output-available", output="It snows in Oslo.")
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.5, match=prompt))
    body = {"id": chat.id, "messages": chat.messages, **chat.body}
    async with gateway.session.post(f"{gateway.base_url}/api/v1/ui-messages", json=body) as response:
        await read_until(read_chunks(response), "text-delta")
    async with gateway.session.get(f"{gateway.base_url}/api/v1/ui-messages/{chat.id}/stream") as resumed:
        chunks: list[dict[str, Any]] = []
        async for chunk in read_chunks(resumed):
            chunks.append(chunk)
            if chunk["type"] == "text-delta":
                break
        turn_id = next(c for c in chunks if c["type"] == "message-metadata")["messageMetadata"]["turn_id"]
        await gateway.post(f"/api/v1/turns/{turn_id}/cancel", None)
    types = [chunk["type"] for chunk in chunks]
    assert types.count("start") == types.count("tool-input-available") == types.count("tool-output-available") == 1
    assert chunks[0]["messageId"] == answer["id"]
    assert chunks[types.index("tool-output-available")]["output"] == "It snows in Oslo."
    assert "finish" not in types


@pytest.mark.faults
async def test_page_at_another_worker_keeps_the_turn_until_it_leaves(
    workers: list[Gateway], db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui_messages, "GRACE_SECONDS", 3.0)
    first, second = workers
    chat = UIChat(first)
    async with start_endless_turn(first, chat) as response:
        await read_until(read_chunks(response), "text-delta")
        follower = await second.session.get(f"{second.base_url}/api/v1/ui-messages/{chat.id}/stream")
        await read_until(read_chunks(follower), "text-delta")
    await asyncio.sleep(4)
    assert await db.fetchval("SELECT status FROM turns") == "running"
    follower.close()

    async def is_cancelled() -> bool:
        return await db.fetchval("SELECT status FROM turns") == "cancelled"

    await eventually(is_cancelled)


async def test_message_after_a_stop_follows_the_turn_that_was_stopped(gateway: Gateway, db: asyncpg.Connection) -> None:
    chat = UIChat(gateway)
    async with start_endless_turn(gateway, chat) as response:
        chunks = read_chunks(response)
        start = await anext(chunks)
        await read_until(chunks, "text-delta")
    stopped = {"id": start["messageId"], "role": "assistant", "parts": [], "metadata": start["messageMetadata"]}
    chat.messages = [make_message("Go on."), stopped]
    await chat.send("Say two.")
    assert list_asked(gateway) == ["Go on.", "Say two."]
    assert [row[0] for row in await db.fetch("SELECT status FROM turns ORDER BY id")] == ["cancelled", "completed"]


async def test_nothing_is_resumed_where_no_turn_runs(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    assert await resume(chat) == 204
    await chat.send("Say one.")
    assert await resume(chat) == 204


@pytest.mark.parametrize("chat_id", ["new", "a b/c", "0199b1c0-0000-7000-8000-000000000001", "ü" * 200])
async def test_any_id_names_a_chat(gateway: Gateway, chat_id: str) -> None:
    chat = UIChat(gateway)
    chat.id = chat_id
    await chat.send("Say one.")
    await chat.send("Say two.")
    assert list_asked(gateway) == ["Say one.", "Say two."]


async def test_page_that_is_loaded_again_sees_the_question(gateway: Gateway) -> None:
    chat = UIChat(gateway, x_gateway={"approval": "always"})
    await chat.send("Add a task to buy milk")
    before = chat.messages[-1]
    assert await resume(chat) == 200
    assert chat.messages[-1]["parts"] == before["parts"]
    decide(chat.messages[-1], approved=True)
    assert get_part(await chat.send())["state"] == "output-available"


async def test_files_are_read_as_far_as_models_can(gateway: Gateway) -> None:
    parts = [
        {"type": "text", "text": "Say one."},
        {"type": "file", "mediaType": "text/plain", "filename": "a.txt", "url": "data:text/plain;base64,aGVsbG8="},
        {
            "type": "file",
            "mediaType": "application/pdf",
            "filename": "b.pdf",
            "url": "data:application/pdf;base64,JVBERg==",
        },
        {"type": "data-unknown", "data": {"x": 1}},
        {"type": "a-part-of-the-future"},
    ]
    chat = UIChat(gateway)
    answer = await chat.send({"id": "u", "role": "user", "parts": parts})
    assert "hello" in list_asked(gateway)[0]
    assert "b.pdf" in answer["metadata"]["warnings"][0]


HOSTILE: list[Any] = [
    {},
    {"messages": []},
    {"messages": None},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "tool", "parts": []}]},
    {"messages": [{"role": "user", "parts": [1, None, "x", [], {"type": 3}, {"type": "text", "text": {"a": 1}}]}]},
    {
        "messages": [
            {"role": "user", "parts": [{"type": "file", "url": "data:text/plain,%ff", "mediaType": "text/plain"}]}
        ]
    },
    {"messages": [{"role": "assistant", "parts": [{"type": "tool-", "toolCallId": 1, "state": []}], "id": "msg_zz"}]},
    {
        "messages": [
            {"role": "assistant", "parts": [{"type": "tool-a", "toolCallId": "x", "state": "output-available"}]}
        ]
    },
    {"messages": [{"role": "assistant", "parts": [], "id": f"msg_{'0' * 32}", "metadata": {"turn_id": "x" * 99}}]},
    {"messages": [make_message("x", metadata=[1])], "tools": {"bad name": {}}},
    {"messages": [make_message("x")], "tools": [{"function": {"name": "a", "parameters": 3}}]},
    {"messages": [make_message("x")], "tools": 3},
    {"messages": [make_message("x")], "answers": [{"input_id": "x"}]},
    {"messages": [make_message("x")] * 5_000},
    {"messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}] * 20_000}]},
    {"messages": [make_message("x")], "id": 3},
    {"messages": [make_message("x")], "x_gateway": {"tools": 3}},
]


async def test_hostile_chats_cause_no_server_error(gateway: Gateway) -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = [{"part": deep}]
    for number, body in enumerate(
        [*HOSTILE, {"messages": [{"role": "user", "parts": [{"type": "data-x", "data": deep}]}]}]
    ):
        async with gateway.session.post(
            f"{gateway.base_url}/api/v1/ui-messages",
            json={"id": f"hostile-{number}", "model": "openai/gpt-oss-20b", **body},
        ) as response:
            text = await response.text()
            assert response.status in (200, 422), (number, text[:500])
            assert response.status == 200 or "error" in text


async def test_chats_of_users_are_apart(keyring: Keyring, db: asyncpg.Connection) -> None:
    gateway = keyring.gateway
    await keyring.create_key("ada")
    bob = await keyring.create_key("bob")
    body = {"id": "shared", "messages": [make_message("Add a task to buy milk")], "x_gateway": {"approval": "always"}}
    async with gateway.session.post(
        f"{gateway.base_url}/api/v1/ui-messages", json=body, headers=keyring.headers("ada")
    ) as response:
        chat = UIChat(gateway)
        answer = await chat.read_answer(response)
    decide(answer, approved=True)
    stolen = {"id": "shared", "messages": [*body["messages"], answer]}
    assert (await gateway.post("/api/v1/ui-messages", stolen, headers=bob)).status == 404
    own = {"id": "shared", "messages": [*body["messages"], answer, make_message("Say two.")]}
    async with gateway.session.post(f"{gateway.base_url}/api/v1/ui-messages", json=own, headers=bob) as response:
        assert response.status == 200
        await response.text()
    async with gateway.session.get(f"{gateway.base_url}/api/v1/ui-messages/shared/stream", headers=bob) as response:
        assert response.status == 204
    assert await db.fetchval("SELECT status FROM turns WHERE owner = 'ada'") == "waiting"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0

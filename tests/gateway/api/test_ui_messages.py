"""`/api/v1/ui-messages`: one answer, its history, and approvals."""

import asyncpg
import pytest

from tests.gateway.api.ui_chat import UIChat, decide, get_part, list_asked
from tests.stack import Gateway


async def test_turn_is_one_message_with_tool_parts(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    answer = await chat.send("What is 23*19?")
    assert "437" in chat.text
    kinds = ["step-start", "reasoning", "dynamic-tool", "step-start", "reasoning", "text"]
    assert [part["type"] for part in answer["parts"]] == kinds
    call = get_part(answer)
    assert (call["toolName"], call["state"], call["input"]) == (
        "calculator",
        "output-available",
        {"expression": "23*19"},
    )
    assert call["output"] == {"expression": "23*19", "result": 437}
    metadata = answer["metadata"]
    assert (metadata["model"], metadata["finish_reason"], metadata["conversation_id"]) == (
        "openai/gpt-oss-120b",
        "stop",
        chat.id,
    )
    assert metadata["usage"]["total_tokens"] > 0
    assert chat.types[-2:] == ["finish-step", "finish"]


async def test_chat_that_is_sent_whole_is_stored_once(gateway: Gateway) -> None:
    chat = UIChat(gateway)
    await chat.send("Say one.")
    await chat.send("Say two.")
    await chat.send("Say three.")
    assert list_asked(gateway) == ["Say one.", "Say two.", "Say three."]
    turns = (await gateway.get(f"/api/v1/conversations/{chat.id}")).body["turns"]
    assert [len(turn["messages"]) for turn in turns] == [2, 2, 2]
    assert [turn["parent_id"] for turn in turns] == [None, turns[0]["id"], turns[1]["id"]]


@pytest.mark.parametrize("approved", [True, False])
async def test_approval_continues_the_message(gateway: Gateway, db: asyncpg.Connection, approved: bool) -> None:
    chat = UIChat(gateway, x_gateway={"approval": "always"})
    answer = await chat.send("Add a task to buy milk")
    assert chat.types[-3:] == ["tool-approval-request", "finish-step", "finish"]
    assert chat.chunks[-1]["finishReason"] == "tool-calls"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    decide(answer, approved=approved)
    assert await chat.send() is answer
    assert get_part(answer)["state"] == ("output-available" if approved else "output-denied")
    assert "tool-input-start" not in chat.types
    assert len([part for part in answer["parts"] if part["type"] == "dynamic-tool"]) == 1
    assert answer["metadata"]["finish_reason"] == "stop"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == approved
    assert await db.fetchval("SELECT count(*) FROM turns") == 1
    await chat.send("Say two.")
    assert list_asked(gateway) == ["Add a task to buy milk", "Say two."]

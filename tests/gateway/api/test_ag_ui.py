"""`/api/v1/ag-ui` with the protocol's own types."""

import json
from typing import Any
from uuid import uuid4

import ag_ui.core as ag
import asyncpg
import pytest
from pydantic import TypeAdapter

from gateway.simulator import Fault
from tests.auth_helpers import Keyring
from tests.gateway.api.ui_chat import list_asked, list_sent
from tests.stack import Gateway

pytestmark = pytest.mark.faults
check_event = TypeAdapter(ag.Event).validate_python


def make_user(content: Any) -> dict[str, Any]:
    return {"id": uuid4().hex, "role": "user", "content": content}


class Thread:
    """A thread whose messages are kept as AG-UI's client keeps them."""

    def __init__(self, gateway: Gateway, headers: dict[str, str] | None = None, **options: Any) -> None:
        self.gateway = gateway
        self.headers = headers
        self.id = uuid4().hex
        self.options = options
        self.messages: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    async def run(self, *messages: Any, **fields: Any) -> dict[str, Any]:
        """Run with new messages; return the last event."""
        self.messages += [make_user(m) if isinstance(m, str) else m for m in messages]
        body = {
            "threadId": self.id,
            "runId": uuid4().hex,
            "protocolVersion": "1.0",
            "messages": self.messages,
            **self.options,
            **fields,
        }
        url = f"{self.gateway.base_url}/api/v1/ag-ui"
        async with self.gateway.session.post(url, json=body, headers=self.headers) as response:
            text = await response.text()
            assert response.status == 200, text
        frames = [frame for frame in text.split("\n\n") if frame.startswith("data: ")]
        self.events = [json.loads(frame.removeprefix("data: ")) for frame in frames]
        for event in self.events:
            check_event(event)
            assert None not in [value for key, value in event.items() if key not in ("value", "result")], event
            self._apply(event)
        assert self.events[0]["type"] == "RUN_STARTED"
        assert (self.events[0]["threadId"], self.events[0]["runId"]) == (self.id, body["runId"])
        return self.events[-1]

    def _apply(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
                self.messages.append({"id": event["messageId"], "role": event["role"], "content": ""})
            case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                self._find(event["messageId"])["content"] += event["delta"]
            case "TOOL_CALL_START":
                if not any(message["id"] == event["parentMessageId"] for message in self.messages):
                    self.messages.append({"id": event["parentMessageId"], "role": "assistant"})
                function = {"name": event["toolCallName"], "arguments": ""}
                call = {"id": event["toolCallId"], "type": "function", "function": function}
                self._find(event["parentMessageId"]).setdefault("toolCalls", []).append(call)
            case "TOOL_CALL_ARGS":
                calls = [call for message in self.messages for call in message.get("toolCalls", ())]
                [call] = [call for call in calls if call["id"] == event["toolCallId"]]
                call["function"]["arguments"] += event["delta"]
            case "TOOL_CALL_RESULT":
                fields = {name: event[name] for name in ("toolCallId", "content")}
                self.messages.append({"id": event["messageId"], "role": "tool", **fields})
            case _:
                pass

    def _find(self, message_id: str) -> dict[str, Any]:
        return next(message for message in self.messages if message["id"] == message_id)

    @property
    def text(self) -> str:
        return self.messages[-1].get("content", "")

    def list_types(self) -> list[str]:
        return [event["type"] for event in self.events]


async def test_thread_that_is_sent_whole_is_stored_once(gateway: Gateway, db: asyncpg.Connection) -> None:
    thread = Thread(gateway)
    end = await thread.run("What is 23*19?")
    assert "437" in thread.text
    assert end["metadata"]["gateway"]["finish_reason"] == "stop"
    await thread.run("Say two.")
    assert list_asked(gateway) == ["What is 23*19?", "Say two."]
    assert [role for role, _ in list_sent(gateway)] == ["user", "assistant", "tool", "assistant", "user"]
    assert await db.fetchval("SELECT count(DISTINCT conversation_id) FROM turns") == 1


async def test_every_start_has_its_end(gateway: Gateway) -> None:
    thread = Thread(gateway)
    await thread.run("What is 23*19?")
    open_ids: set[tuple[str, str]] = set()
    for event in thread.events:
        name, _, phase = event["type"].rpartition("_")
        key = (name, event.get("messageId") or event.get("toolCallId") or event.get("stepName") or "")
        if phase in ("START", "STARTED") and name != "RUN":
            assert key not in open_ids
            open_ids.add(key)
        elif phase in ("END", "FINISHED") and name != "RUN":
            open_ids.remove(key)
        elif phase in ("CONTENT", "ARGS"):
            assert key in open_ids
    assert not open_ids


@pytest.mark.parametrize(
    ("status", "payload", "runs"),
    [
        ("resolved", None, True),
        ("resolved", {"approved": True}, True),
        ("resolved", {"arguments": {"title": "buy milk"}}, True),
        ("resolved", {"approved": False}, False),
        ("resolved", False, False),
        ("cancelled", None, False),
    ],
)
async def test_interrupt_is_answered_in_a_new_run(
    gateway: Gateway, db: asyncpg.Connection, status: str, payload: Any, runs: bool
) -> None:
    thread = Thread(gateway, forwardedProps={"x_gateway": {"approval": "always"}})
    [interrupt] = (await thread.run("Add a task to buy milk"))["outcome"]["interrupts"]
    assert interrupt["reason"] == "approval"
    assert "approved" in interrupt["responseSchema"]["properties"]
    end = await thread.run(resume=[{"interruptId": interrupt["id"], "status": status, "payload": payload}])
    assert end["outcome"]["type"] == "success"
    assert "TOOL_CALL_START" not in thread.list_types()
    assert thread.list_types().count("TOOL_CALL_RESULT") == 1
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == runs
    assert await db.fetchval("SELECT count(*) FROM turns") == 1
    await thread.run("Say two.")
    assert list_asked(gateway) == ["Add a task to buy milk", "Say two."]


async def test_question_has_its_schema_and_takes_its_content(gateway: Gateway) -> None:
    for title in ("Buy milk", "buy milk"):
        await gateway.chat(f"Add a task to {title}")
    thread = Thread(gateway)
    [interrupt] = (await thread.run("delete the task buy milk"))["outcome"]["interrupts"]
    assert interrupt["responseSchema"]["required"] == ["task_id"]
    answer = {"interruptId": interrupt["id"], "status": "resolved", "payload": {"task_id": 2}}
    await thread.run(messages=[], resume=[answer])
    [result] = [event for event in thread.events if event["type"] == "TOOL_CALL_RESULT"]
    assert json.loads(result["content"])["deleted"]["id"] == 2


async def test_tools_of_the_front_end_are_pending(gateway: Gateway) -> None:
    tools = [{"name": "get_weather", "description": "The weather.", "parameters": {"type": "object"}}]
    thread = Thread(gateway, tools=tools)
    end = await thread.run('call get_weather with {"city": "Oslo"}')
    [call] = thread.messages[-1]["toolCalls"]
    assert end["outcome"] == {"type": "success", "pendingToolCallIds": [call["id"]]}
    result = {"id": "r", "role": "tool", "toolCallId": call["id"], "content": "It snows in Oslo."}
    await thread.run(result)
    assert "It snows in Oslo." in thread.text
    assert [role for role, _ in list_sent(gateway)] == ["user", "assistant", "tool"]


async def test_clients_before_version_1_get_no_fields_of_it(gateway: Gateway) -> None:
    tools = [{"name": "get_weather", "description": "The weather.", "parameters": {"type": "object"}}]
    thread = Thread(gateway, tools=tools, protocolVersion=None)
    end = await thread.run('call get_weather with {"city": "Oslo"}')
    assert end["outcome"] == {"type": "success"}


async def test_context_and_state_reach_the_model(gateway: Gateway) -> None:
    context = [{"description": "The user's name", "value": "Ada"}]
    await Thread(gateway, context=context, state={"page": 7}).run("Say one.")
    system = gateway.simulator.requests[-1]["messages"][0]["content"]
    assert "The user's name: Ada" in system
    assert '{"page":7}' in system


async def test_failure_after_output_is_a_run_error(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="abort", after_chunks=4, times=20, match="Say one"))
    end = await Thread(gateway).run("Say one.")
    assert (end["type"], end["code"]) == ("RUN_ERROR", "model_stream_broken")


RUN = {"threadId": "t", "runId": "r"}
HOSTILE: list[Any] = [
    {},
    RUN,
    RUN | {"messages": []},
    RUN | {"messages": None},
    RUN | {"messages": [3]},
    RUN | {"messages": [{"role": "user"}]},
    RUN | {"messages": [{"role": "of-the-future", "content": {"a": []}}, make_user("x")]},
    RUN | {"messages": [make_user([{"type": "text", "text": 3}, 7, None, {"type": "hologram", "source": {}}])]},
    RUN | {"messages": [make_user([{"type": "image", "source": 3}, {"type": "image", "source": {"type": "url"}}])]},
    RUN | {"messages": [{"id": f"msg_{'0' * 32}_1", "role": "assistant", "content": 5, "toolCalls": []}]},
    RUN
    | {"messages": [{"role": "assistant", "toolCalls": [{"id": "x", "function": {"name": "y", "arguments": "{"}}]}]},
    RUN | {"messages": [{"role": "tool", "content": []}]},
    RUN | {"messages": [make_user("x")], "tools": [{"name": "bad name"}]},
    RUN | {"messages": [make_user("x")], "tools": [{"name": "a", "parameters": 3}]},
    RUN | {"messages": [make_user("x")], "resume": [{"interruptId": "x", "status": "resolved"}]},
    RUN | {"messages": [make_user("x")], "resume": [{"interruptId": str(uuid4()), "status": "resolved"}]},
    RUN | {"messages": [], "resume": [{"interruptId": str(uuid4()), "status": "resolved"}]},
    RUN | {"messages": [make_user("x")], "forwardedProps": {"x_gateway": {"tools": 3}}},
    RUN | {"messages": [make_user("x")], "forwardedProps": [1], "state": [[[]]]},
    RUN | {"messages": [make_user("x")] * 5_000},
    RUN | {"messages": [make_user("x")], "threadId": ""},
    RUN | {"messages": [make_user("x")], "threadId": "../\u0000\u2028"},
]


async def test_hostile_runs_cause_no_server_error(gateway: Gateway) -> None:
    for number, body in enumerate(HOSTILE):
        thread = {"threadId": f"{body['threadId']}{number}"} if body.get("threadId") else {}
        async with gateway.session.post(f"{gateway.base_url}/api/v1/ag-ui", json=body | thread) as response:
            text = await response.text()
            assert response.status in (200, 400, 404, 422), (number, text[:500])
            assert response.status == 200 or json.loads(text)["error"]["message"]


async def test_interrupt_of_another_user_is_not_found(keyring: Keyring, db: asyncpg.Connection) -> None:
    gateway = keyring.gateway
    await keyring.create_key("ada")
    bob = await keyring.create_key("bob")
    ada = Thread(gateway, keyring.headers("ada"), forwardedProps={"x_gateway": {"approval": "always"}})
    [interrupt] = (await ada.run("Add a task to buy milk"))["outcome"]["interrupts"]
    answer = {"interruptId": interrupt["id"], "status": "resolved"}
    body = {"threadId": ada.id, "runId": "r", "messages": ada.messages, "resume": [answer]}
    assert (await gateway.post("/api/v1/ag-ui", body, headers=bob)).status == 404
    stranger = Thread(gateway, bob)
    stranger.id = ada.id
    await stranger.run("Say two.")
    assert list_asked(gateway) == ["Say two."]
    assert await db.fetchval("SELECT status FROM turns WHERE owner = 'ada'") == "waiting"

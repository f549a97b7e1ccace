"""Tools that ChatKit's page runs."""

from typing import Any

import pytest
from chatkit import types

from tests.auth_helpers import Keyring
from tests.gateway.api.test_chatkit import add, ask, create, fold_items, get_text, get_thread_id, list_items, stream
from tests.stack import Gateway, JsonObject

pytestmark = pytest.mark.faults
WEATHER: JsonObject = {
    "name": "get_weather",
    "description": "Tell the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PROMPT = 'call get_weather with {"city": "Oslo"}'


def make_output(thread_id: str, result: Any) -> types.ThreadsAddClientToolOutputReq:
    params = types.ThreadAddClientToolOutputParams(thread_id=thread_id, result=result)
    return types.ThreadsAddClientToolOutputReq(params=params)


async def call_client_tool(gateway: Gateway, headers: dict[str, str] | None = None) -> tuple[str, Any]:
    events = await stream(gateway, create(PROMPT, metadata={"client_tools": [WEATHER]}), headers)
    [call] = [item for item in fold_items(events).values() if item.type == "client_tool_call"]
    return get_thread_id(events), call


@pytest.mark.parametrize("result", ["It snows in Oslo.", {"weather": "It snows in Oslo."}])
async def test_page_runs_its_tool_and_the_turn_goes_on(gateway: Gateway, result: Any) -> None:
    thread_id, call = await call_client_tool(gateway)
    assert (call.name, call.arguments, call.status) == ("get_weather", {"city": "Oslo"}, "pending")
    [pending] = [item for item in (await list_items(gateway, thread_id)).data if item.type == "client_tool_call"]
    assert (pending.id, pending.status) == (call.id, "pending")
    answer = list(fold_items(await stream(gateway, make_output(thread_id, result))).values())
    assert "It snows in Oslo." in get_text(answer[-1])
    roles = [message["role"] for message in gateway.simulator.requests[-1]["messages"]]
    assert roles[-3:] == ["user", "assistant", "tool"]
    items = (await list_items(gateway, thread_id, order="asc")).data
    assert [item.type for item in items] == ["user_message", "client_tool_call", "assistant_message"]
    assert items[1].status == "completed"
    assert (await ask(gateway, make_output(thread_id, "again"))).status == 422
    again = list(fold_items(await stream(gateway, add(thread_id, "Thank you."))).values())
    assert again[-1].type == "assistant_message"


async def test_unanswered_call_does_not_stop_the_thread(gateway: Gateway) -> None:
    thread_id, _ = await call_client_tool(gateway)
    events = await stream(gateway, add(thread_id, "Never mind."))
    assert fold_items(events)
    assert events[-1].type != "error"
    assert (await ask(gateway, make_output(thread_id, "too late"))).status == 422
    calls = [item for item in (await list_items(gateway, thread_id)).data if item.type == "client_tool_call"]
    assert [call.status for call in calls] == ["completed"]


async def test_result_for_a_thread_of_another_user_is_not_taken(keyring: Keyring) -> None:
    ada, bob = await keyring.create_key("ada"), await keyring.create_key("bob")
    thread_id, call = await call_client_tool(keyring.gateway, ada)
    assert (await ask(keyring.gateway, make_output(thread_id, "forged"), bob)).status == 404
    [pending] = [
        item
        for item in types.Page[Any]
        .model_validate(  # type: ignore[misc]
            (
                await ask(keyring.gateway, types.ItemsListReq(params=types.ItemsListParams(thread_id=thread_id)), ada)
            ).body
        )
        .data
        if item["type"] == "client_tool_call"
    ]
    assert (pending["id"], pending["status"]) == (call.id, "pending")


@pytest.mark.parametrize(
    "tools",
    ["all", {"name": "x"}, ["x"], [{"name": "a b"}], [{"name": "x", "parameters": 7}], [{}]],
    ids=["text", "object", "texts", "name", "schema", "empty"],
)
async def test_tools_that_are_none_are_refused(shared_gateway: Gateway, tools: Any) -> None:
    reply = await ask(shared_gateway, create(metadata={"client_tools": tools}))
    assert reply.status == 422, reply.body


async def test_too_many_tools_are_refused(shared_gateway: Gateway) -> None:
    tools = [WEATHER | {"name": f"tool_{number}"} for number in range(1_000)]
    reply = await ask(shared_gateway, create(metadata={"client_tools": tools}))
    assert (reply.status, "at most 128" in reply.body["error"]["message"]) == (422, True), reply.body


async def test_huge_result_is_refused_and_a_smaller_one_taken(gateway: Gateway) -> None:
    thread_id, _ = await call_client_tool(gateway)
    events = await stream(gateway, make_output(thread_id, "x" * 1_100_000))
    assert events[-1].type == "error"
    assert "MAX_MESSAGE_CHARS" in events[-1].message
    answer = list(fold_items(await stream(gateway, make_output(thread_id, "It snows."))).values())
    assert "It snows." in get_text(answer[-1])

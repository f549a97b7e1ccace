"""Tests of call ids and extra content, sent back to the model."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.gateway.api.test_odd_streams import PURGE, complete, stream_completion
from tests.gateway.api.test_upstream_errors import PROVIDERS
from tests.scripted_model import (
    ScriptedAnswer,
    ScriptedModelServer,
    json_answer,
    serve_scripted_model,
    stream_deltas,
    stream_text,
)
from tests.stack import Gateway, ServeSharedGateway

SIGNATURE = {"google": {"thought_signature": "CpwB/+=="}}
ARGUMENTS = '{"expression":"1+1"}'
NO_TOOLS = {"X-Gateway-Tools": "none"}
USER = {"role": "user", "content": "Run it."}


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module", params=PROVIDERS)
async def gateway(
    request: pytest.FixtureRequest, serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer
) -> Gateway:
    settings: dict[str, Any] = PROVIDERS[request.param](model.url)
    return await serve_shared_gateway(**settings)


def call_part(name: str, arguments: str, call_id: str = "A", index: int = 0, **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function, **fields}


def stream_calls(*parts: Any, **fields: Any) -> ScriptedAnswer:
    """Stream parts of calls: a list goes into one chunk."""
    deltas = ({"tool_calls": part if isinstance(part, list) else [part]} for part in parts)
    return stream_deltas(*(delta | fields for delta in deltas), finish_reason="tool_calls")


def find_sent_calls(model: ScriptedModelServer) -> list[Any]:
    """Return the calls in the last request.

    Each must have a result with its id.
    """
    messages = model.requests[-1]["messages"]
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    assert [call["id"] for call in calls] == [m["tool_call_id"] for m in messages if m["role"] == "tool"]
    return calls


WHOLE = call_part("calculator", ARGUMENTS, extra_content=SIGNATURE)
SIGNED: dict[str, ScriptedAnswer] = {
    "in one part": stream_calls(WHOLE),
    "in the first part": stream_calls(
        call_part("calculator", "", extra_content=SIGNATURE), {"index": 0, "function": {"arguments": ARGUMENTS}}
    ),
    "in a part of its own": stream_calls(
        call_part("calculator", ARGUMENTS), {"index": 0, "extra_content": SIGNATURE, "function": {"arguments": ""}}
    ),
    "without an index": stream_calls(call_part("calculator", ARGUMENTS), {"id": "A", "extra_content": SIGNATURE}),
    "in an odd chunk": stream_calls(WHOLE, content=[], role=3),
    "in a repeated call": stream_calls(call_part("calculator", ARGUMENTS), WHOLE),
    "in a repeated call of another index": stream_calls(call_part("calculator", ARGUMENTS), WHOLE | {"index": 1}),
    "with a mended call": stream_calls(call_part("functions.calculator", ARGUMENTS + "}", extra_content=SIGNATURE)),
    "not streamed": json_answer(
        {"choices": [{"message": {"role": "assistant", "tool_calls": [WHOLE]}, "finish_reason": "tool_calls"}]}
    ),
}


@pytest.mark.parametrize("answer", SIGNED.values(), ids=SIGNED)
async def test_extra_content_of_a_call_goes_back_in_later_steps_and_turns(
    gateway: Gateway, model: ScriptedModelServer, answer: ScriptedAnswer
) -> None:
    model.script_answers(answer)
    reply = await gateway.chat_stream("Run it.", conversation_id="new")
    assert len(model.requests) == 2
    assert [call.get("extra_content") for call in find_sent_calls(model)] == [SIGNATURE]
    conversation_id = reply.get_event_data("turn.started")[0]["conversation_id"]
    model.script_answers()
    await gateway.chat_stream("And now?", conversation_id=conversation_id)
    [sent] = find_sent_calls(model)
    assert (sent["id"], sent["extra_content"]) == ("A", SIGNATURE)
    assert sent["function"] == {"name": "calculator", "arguments": ARGUMENTS}


async def test_each_of_several_calls_keeps_its_own_extra_content(gateway: Gateway, model: ScriptedModelServer) -> None:
    signed = [{"a": {"s": "1"}}, None, "any text"]
    parts = [
        call_part("calculator", f'{{"expression":"{n}"}}', f"id{n}", n, **({"extra_content": s} if s else {}))
        for n, s in enumerate(signed)
    ]
    model.script_answers(stream_calls(parts))
    await gateway.chat_stream("Run it.")
    assert [call.get("extra_content") for call in find_sent_calls(model)] == signed


async def test_call_without_extra_content_is_sent_without_it(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(stream_calls(call_part("calculator", ARGUMENTS, extra_content=None)))
    await gateway.chat_stream("Run it.")
    assert [sorted(call) for call in find_sent_calls(model)] == [["function", "id", "type"]]


def purge(call_id: str = "A", **fields: Any) -> ScriptedAnswer:
    return stream_calls(call_part("purge", '{"filter":"a"}', call_id, **fields))


async def call_client_tool(gateway: Gateway, *, is_streamed: bool, **body: Any) -> list[Any]:
    if not is_streamed:
        return (await complete(gateway, tools=[PURGE], **body))["choices"][0]["message"]["tool_calls"]
    chunks = await stream_completion(gateway, tools=[PURGE], **body)
    parts = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls") or ()]
    return [{name: value for name, value in part.items() if name != "index"} for part in parts]


async def send_back(gateway: Gateway, model: ScriptedModelServer, calls: list[Any], **body: Any) -> list[Any]:
    """Send the calls back with results; return what the model's server gets."""
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    model.script_answers()
    await complete(gateway, messages=messages, tools=[PURGE], **body)
    return find_sent_calls(model)


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_client_gets_the_extra_content_and_can_send_it_back(
    gateway: Gateway, model: ScriptedModelServer, is_streamed: bool, store: bool
) -> None:
    model.script_answers(purge(extra_content=SIGNATURE))
    calls = await call_client_tool(gateway, is_streamed=is_streamed, store=store)
    assert [call["extra_content"] for call in calls] == [SIGNATURE]
    [sent] = await send_back(gateway, model, calls, store=store)
    assert (sent["id"], sent["extra_content"]) == ("A", SIGNATURE)


async def test_extra_content_that_a_client_drops_is_restored(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(purge(extra_content=SIGNATURE))
    [call] = await call_client_tool(gateway, is_streamed=False)
    [sent] = await send_back(gateway, model, [{name: call[name] for name in ("id", "type", "function")}])
    assert (sent["id"], sent["extra_content"]) == ("A", SIGNATURE)


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
async def test_function_call_item_of_a_response_keeps_its_extra_content_and_id(
    gateway: Gateway, model: ScriptedModelServer, store: bool
) -> None:
    tools = [{"type": "function", **PURGE["function"]}]
    model.script_answers(purge("functions.purge:0", extra_content=SIGNATURE))
    response = (await gateway.post("/v1/responses", {"input": "Run it.", "tools": tools, "store": store})).body
    [item] = response["output"]
    assert item["extra_content"] == SIGNATURE
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "done"}
    body = {"input": [{"type": "message", **USER}, item, result], "tools": tools, "store": store}
    model.script_answers()
    assert (await gateway.post("/v1/responses", body)).body["status"] == "completed"
    [sent] = find_sent_calls(model)
    assert (sent["id"], sent["extra_content"]) == ("functions.purge:0", SIGNATURE)
    if store:
        model.script_answers()
        body = {"input": [result], "tools": tools, "previous_response_id": response["id"]}
        assert (await gateway.post("/v1/responses", body)).body["status"] == "completed"
        [sent] = find_sent_calls(model)
        assert (sent["id"], sent["extra_content"]) == ("functions.purge:0", SIGNATURE)


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize("own_id", ["functions.purge:0", "a", "9" * 40])
async def test_model_gets_its_own_id_of_a_clients_call_back(
    gateway: Gateway, model: ScriptedModelServer, own_id: str, store: bool
) -> None:
    model.script_answers(purge(own_id))
    calls = await call_client_tool(gateway, is_streamed=False, store=store)
    assert [call["id"] for call in await send_back(gateway, model, calls, store=store)] == [own_id]


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize("own_id", ["x" * 41, "x" * 500, ""])
async def test_other_ids_of_a_clients_call_have_at_most_40_characters(
    gateway: Gateway, model: ScriptedModelServer, own_id: str, store: bool
) -> None:
    model.script_answers(purge(own_id))
    calls = await call_client_tool(gateway, is_streamed=False, store=store)
    [sent] = await send_back(gateway, model, calls, store=store)
    assert 0 < len(sent["id"]) <= 40


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
async def test_calls_with_one_id_for_all_get_a_result_each(
    gateway: Gateway, model: ScriptedModelServer, store: bool
) -> None:
    parts = [call_part("purge", f'{{"filter":"{n}"}}', "X", n) for n in range(3)]
    model.script_answers(stream_calls(*parts))
    calls = await call_client_tool(gateway, is_streamed=False, store=store)
    ids = [call["id"] for call in await send_back(gateway, model, calls, store=store)]
    assert ids[0] == "X"
    assert len(set(ids)) == 3


async def test_own_ids_of_the_gateways_calls_go_back_in_each_step_and_turn(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    ids = ["functions.calculator:0", "functions.calculator:1", "functions.calculator:1"]
    model.script_answers(*(stream_calls(call_part("calculator", ARGUMENTS, call_id)) for call_id in ids))
    reply = await gateway.chat_stream("Run it.", conversation_id="new")
    assert [call["id"] for call in find_sent_calls(model)] == ids
    model.script_answers(stream_text("Yes."))
    conversation_id = reply.get_event_data("turn.started")[0]["conversation_id"]
    await gateway.chat_stream("And now?", conversation_id=conversation_id)
    assert [call["id"] for call in find_sent_calls(model)] == ids

"""`/v1/responses` with the SDK of OpenAI and its typed stream."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import openai
import pytest
from openai.types import responses as types
from pydantic import BaseModel

from gateway.simulator import Fault, Simulator
from tests.stack import Gateway, serve_gateway

MODEL = "openai/gpt-oss-120b"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
TOOLS: Any = {"type": "mcp", "server_label": "tools"}


@pytest.fixture
async def client(gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def create_response(client: openai.AsyncOpenAI, prompt: Any = "What is 23*19?", **options: Any) -> Any:
    return await client.responses.create(**{"model": MODEL, "input": prompt, **options})


async def read_events(stream: Any) -> list[Any]:
    return [event async for event in stream]


def get_item_types(response: Any) -> list[str]:
    return [item.type for item in response.output]


async def test_mcp_calls_are_output_items_before_the_message(client: openai.AsyncOpenAI) -> None:
    response = await create_response(client)
    assert get_item_types(response) == ["mcp_list_tools", "reasoning", "mcp_call", "reasoning", "message"]
    listed_tools, _, call, _, message = response.output
    assert (listed_tools.server_label, "calculator" in [tool.name for tool in listed_tools.tools]) == ("tools", True)
    assert (call.name, json.loads(call.arguments), call.output) == (
        "calculator",
        {"expression": "23*19"},
        "23*19 = 437",
    )
    assert call.status == message.status == "completed"
    assert "437" in response.output_text
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0


async def test_sdk_parses_every_stream_event_and_the_final_response(client: openai.AsyncOpenAI) -> None:
    events = await read_events(await create_response(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        assert type(event).__module__.startswith("openai.types.responses"), event
        assert type(event).model_fields["type"].annotation.__args__ == (event.type,)  # type: ignore[union-attr]
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    event_types = {event.type for event in events}
    assert {
        "response.mcp_list_tools.completed",
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.done",
        "response.mcp_call.completed",
        "response.reasoning_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.output_item.done",
    } <= event_types
    last_event = events[-1]
    assert last_event.type == "response.completed"
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == last_event.response.output_text
    done_items = [event.item for event in events if event.type == "response.output_item.done"]
    assert done_items == last_event.response.output
    assert await client.responses.retrieve(last_event.response.id) == last_event.response


async def test_sdk_stream_helper_builds_the_final_response(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input="What is 23*19?") as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert "437" in final.output_text


async def test_stream_resumes_after_any_event(client: openai.AsyncOpenAI) -> None:
    events = await read_events(await create_response(client, stream=True))
    response_id = events[0].response.id
    for after in (0, 7, len(events) - 2):
        resumed_events = await read_events(
            await client.responses.retrieve(response_id, stream=True, starting_after=after)
        )
        assert resumed_events == events[after + 1 :]


async def test_previous_response_is_continued_and_branched(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    first = await create_response(client, "My name is Ada.", instructions="Be kind to camels.")
    second = await create_response(client, "What is my name?", previous_response_id=first.id)
    assert "Ada" in second.output_text
    assert "mcp_list_tools" not in get_item_types(second)
    assert "camels" not in str(gateway.simulator.requests[-1])
    branch = await create_response(client, "What did I ask?", previous_response_id=first.id)
    assert "name?" not in branch.output_text
    assert branch.previous_response_id == first.id


async def test_response_echoes_the_request_fields(client: openai.AsyncOpenAI) -> None:
    options: Any = {"instructions": "Be brief.", "metadata": {"case": "7"}, "temperature": 0.5, "tools": [TOOLS]}
    response = await create_response(client, max_output_tokens=500, **options)
    stored = await client.responses.retrieve(response.id)
    for view in (response, stored):
        assert (view.instructions, view.metadata, view.temperature) == ("Be brief.", {"case": "7"}, 0.5)
        assert (view.max_output_tokens, view.tools[0].server_label) == (500, "tools")
    items = await client.responses.input_items.list(response.id)
    assert items.data[0].content[0].text == "What is 23*19?"  # type: ignore[union-attr]


async def test_client_function_call_round_trip(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    calls: Any = [
        {"name": "calculator", "arguments": {"expression": "23*19"}},
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
    ]
    gateway.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))
    first = await create_response(client, tools=[TOOLS, WEATHER])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow."}
    second = await create_response(client, [output], previous_response_id=first.id, tools=[TOOLS, WEATHER])
    assert "Snow." in second.output_text
    sent = gateway.simulator.requests[-1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool"]
    full_input = [{"role": "user", "content": "What is 23*19?"}, *(item.model_dump() for item in first.output), output]
    await create_response(client, full_input, tools=[TOOLS, WEATHER])
    assert gateway.simulator.requests[-1]["messages"] == sent


@pytest.mark.parametrize(
    ("tools", "expected_tools"),
    [
        ([TOOLS | {"allowed_tools": ["calculator"]}], {"calculator"}),
        ([TOOLS | {"allowed_tools": {"read_only": True}}], {"calculator", "list_tasks", "web_search", "fetch_page"}),
        ([WEATHER], {"get_weather"}),
    ],
)
async def test_mcp_tools_select_configured_servers(
    client: openai.AsyncOpenAI, gateway: Gateway, tools: Any, expected_tools: set[str]
) -> None:
    await create_response(client, "Hello", tools=tools)
    sent_tools = gateway.simulator.requests[-1].get("tools", [])
    assert {tool["function"]["name"] for tool in sent_tools} == expected_tools


async def test_tool_choice_can_name_an_mcp_tool(client: openai.AsyncOpenAI) -> None:
    choice = {"type": "mcp", "server_label": "tools", "name": "list_tasks"}
    response = await create_response(client, "Hello", tools=[TOOLS], tool_choice=choice)
    assert [item.name for item in response.output if item.type == "mcp_call"] == ["list_tasks"]


async def test_approved_request_continues_in_the_next_response(
    client: openai.AsyncOpenAI, db: asyncpg.Connection
) -> None:
    tool_config: Any = TOOLS | {"require_approval": {"always": {"tool_names": ["add_task"]}}}
    first = await create_response(client, "Add a task to buy milk", tools=[tool_config])
    assert get_item_types(first)[-1] == "mcp_approval_request"
    approval_request = first.output[-1]
    assert (approval_request.name, json.loads(approval_request.arguments), first.status) == (
        "add_task",
        {"title": "buy milk"},
        "completed",
    )
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0
    answer: Any = [{"type": "mcp_approval_response", "approval_request_id": approval_request.id, "approve": True}]
    events = await read_events(
        await create_response(client, answer, previous_response_id=first.id, tools=[tool_config], stream=True)
    )
    second = events[-1].response
    assert events[0].sequence_number == 0
    assert (second.id, second.previous_response_id) == (f"{first.id}_1", first.id)
    call = next(item for item in second.output if item.type == "mcp_call")
    assert (call.approval_request_id, call.status) == (approval_request.id, "completed")
    assert second.output_text
    assert await client.responses.retrieve(second.id) == second
    assert await client.responses.retrieve(first.id) == first
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1
    third = await create_response(client, "What did I ask?", previous_response_id=second.id)
    assert "milk" in third.output_text


async def test_declined_approval_fails_the_call(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    tool_config: Any = TOOLS | {"require_approval": "always"}
    first = await create_response(client, "Add a task to buy milk", tools=[tool_config])
    answer: Any = [{"type": "mcp_approval_response", "approval_request_id": first.output[-1].id, "approve": False}]
    second = await create_response(client, answer, previous_response_id=first.id)
    assert next(item for item in second.output if item.type == "mcp_call").status == "failed"
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def test_approval_is_found_in_repeated_input(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    """The Agents SDK repeats the whole input."""
    tool_config: Any = TOOLS | {"require_approval": "always"}
    question: Any = {"role": "user", "content": "Add a task to buy milk"}
    first = await create_response(client, [question], tools=[tool_config])
    echoed = [item.to_dict() for item in first.output]
    answer = {"type": "mcp_approval_response", "approval_request_id": first.output[-1].id, "approve": True}
    second = await create_response(client, [question, *echoed, answer], tools=[tool_config])
    assert second.id == f"{first.id}_1"
    assert await db.fetchval("SELECT array_agg(title) FROM tools.tasks") == ["buy milk"]
    history = [question, *echoed, answer, *(item.to_dict() for item in second.output)]
    third = await create_response(client, [*history, {"role": "user", "content": "What is 2*3?"}], tools=[TOOLS])
    assert "6" in third.output_text
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1


async def test_references_stand_for_items_of_earlier_responses(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    first = await create_response(client)
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    follow_up = [{"role": "user", "content": "What is 23*19?"}, *references, {"id": first.output[-1].id}]
    await create_response(client, [*follow_up, {"role": "user", "content": "Thanks!"}])
    sent = gateway.simulator.requests[-1]["messages"]
    assert [message["role"] for message in sent][1:] == ["user", "assistant", "tool", "assistant", "assistant", "user"]
    assert sent[4]["content"] == sent[5]["content"] == first.output_text


async def test_references_reach_each_part_of_a_turn(
    client: openai.AsyncOpenAI, gateway: Gateway, db: asyncpg.Connection
) -> None:
    tool_config: Any = TOOLS | {"require_approval": "always"}
    first = await create_response(client, "Add a task to buy milk", tools=[tool_config])
    answer: Any = [{"type": "mcp_approval_response", "approval_request_id": first.output[-1].id, "approve": True}]
    second = await create_response(client, answer, previous_response_id=first.id)
    items = [*first.output, *second.output]
    references: Any = [{"type": "item_reference", "id": item.id} for item in items if item.type != "mcp_list_tools"]
    last = f"{references[-1]['id'].rpartition('_')[0]}_999"
    await create_response(client, [*references, {"role": "user", "content": "Thanks!"}], tools=[TOOLS])
    sent = gateway.simulator.requests[-1]["messages"]
    assert "milk" in str(sent[1:-1])
    assert sent[-2]["content"] == second.output_text
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1
    with pytest.raises(openai.BadRequestError, match="send the item itself"):
        await create_response(client, [*references, {"type": "item_reference", "id": last}])


async def test_references_to_items_of_others_are_refused(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    first = await create_response(client)
    await db.execute("UPDATE turns SET owner = 'another user'")
    for item_id in (first.output[-1].id, "msg_1"):
        with pytest.raises(openai.BadRequestError, match="send the item itself") as refusal:
            await create_response(
                client, [{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": item_id}]
            )
        assert refusal.value.param == "input.1.id"


async def test_what_codex_sends_is_taken_with_a_warning(gateway: Gateway) -> None:
    shell = WEATHER | {"name": "shell"}
    body = {
        "model": MODEL,
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}], "id": "m1"},
            {"type": "additional_tools", "tools": [WEATHER | {"name": "more"}]},
        ],
        "tools": [
            shell,
            {"type": "namespace", "name": "browser", "description": "x", "tools": [WEATHER]},
            {"type": "web_search", "external_web_access": False},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
            {"type": "tool_search"},
        ],
        "tool_choice": "auto",
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"x": "y"},
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "medium", "summary": "auto"},
    }
    reply = await gateway.post("/v1/responses", body)
    assert reply.status == 200
    assert [tool["function"]["name"] for tool in gateway.simulator.requests[-1]["tools"]] == ["shell", "more"]
    async with gateway.session.post(f"{gateway.base_url}/v1/responses", json=body | {"stream": True}) as stream:
        assert "custom, namespace, tool_search, web_search" in stream.headers["X-Gateway-Warnings"]


async def test_server_is_selected_by_its_url_alone(client: openai.AsyncOpenAI, tools_url: str) -> None:
    tool: Any = {
        "type": "mcp",
        "server_label": "mine",
        "server_url": tools_url,
        "authorization": "secret",
        "headers": {},
    }
    response = await create_response(client, tools=[tool])
    assert [item.name for item in response.output if item.type == "mcp_call"] == ["calculator"]
    assert "secret" not in response.to_json()


async def test_background_response_completes_and_can_be_followed(client: openai.AsyncOpenAI) -> None:
    started = await create_response(client, background=True)
    assert started.status == "in_progress"
    events = await read_events(await client.responses.retrieve(started.id, stream=True))
    assert events[-1].response.status == "completed"
    assert (await client.responses.retrieve(started.id)).output_text == events[-1].response.output_text


async def test_cancelled_response_keeps_its_partial_text(client: openai.AsyncOpenAI, gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="stall", after_chunks=60))
    started = await create_response(client, "count to 500", background=True)
    stream = await client.responses.retrieve(started.id, stream=True)
    text = ""
    async for event in stream:
        text += event.delta if event.type == "response.output_text.delta" else ""
        if text.startswith("1 2 3"):
            break
    await stream.close()
    cancelled = await client.responses.cancel(started.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text.startswith("1 2 3")


async def test_deleted_response_is_not_found(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    response = await create_response(client)
    await client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    for table in ("turns", "turn_events", "tool_calls"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_ephemeral_response_is_not_found(client: openai.AsyncOpenAI) -> None:
    response = await create_response(client, store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_response_is_retrieved_after_its_journal_is_deleted(
    client: openai.AsyncOpenAI, db: asyncpg.Connection
) -> None:
    response = await create_response(client)
    await db.execute("DELETE FROM turn_events")
    reloaded = await client.responses.retrieve(response.id)
    shown_items = [item for item in response.output if item.type != "reasoning"]
    assert [item.type for item in reloaded.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert reloaded.output_text == response.output_text
    assert reloaded.output[1].output == shown_items[1].output  # type: ignore[union-attr]
    assert reloaded.usage == response.usage


class SumAnswer(BaseModel):
    expression: str
    value: int


async def test_structured_output_is_parsed_by_the_sdk(client: openai.AsyncOpenAI) -> None:
    parsed = await client.responses.parse(model=MODEL, input="What is 23*19?", text_format=SumAnswer)
    assert isinstance(parsed.output_parsed, SumAnswer)
    response = await create_response(client, text={"format": {"type": "json_object"}})
    assert json.loads(response.output_text)


async def test_token_limit_makes_the_response_incomplete(client: openai.AsyncOpenAI) -> None:
    response = await create_response(client, "count to 500", max_output_tokens=60)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_failure_is_a_status_before_the_first_event_and_an_event_afterwards(
    client: openai.AsyncOpenAI, gateway: Gateway
) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=401))
    with pytest.raises(openai.APIStatusError) as error_info:
        await create_response(client)
    assert (error_info.value.status_code, error_info.value.code) == (502, "model_key_refused")
    gateway.simulator.faults.add_faults(Fault(kind="cut", after_chunks=60))
    events = await read_events(await create_response(client, "count to 500", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "model_stream_broken"
    assert events[-1].response.output_text.startswith("1 2")


INVALID_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools"),
    ({"tools": [{"type": "mcp", "server_label": "unknown"}]}, "tools.0.server_label"),
    ({"tools": [TOOLS | {"server_url": "https://evil.example/mcp"}]}, "tools.0.server_url"),
    ({"tools": [TOOLS | {"server_url": "http://[::1/mcp"}]}, "tools.0.server_url"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"background": True, "store": False}, "background"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 1}}}}, "response_format"),
    ({"input": [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}]}, "input"),
]


@pytest.mark.parametrize(("body", "param"), INVALID_REQUESTS, ids=lambda value: str(value)[:60])
async def test_invalid_request_is_a_400_in_the_openai_format(
    shared_gateway: Gateway, body: dict[str, Any], param: str
) -> None:
    reply = await shared_gateway.post("/v1/responses", {"model": MODEL, "input": "Hello", **body})
    assert (reply.status, reply.body["error"]["type"]) == (400, "invalid_request_error")
    assert reply.body["error"]["param"].startswith(param)


@pytest.mark.parametrize("response_id", ["resp_x", f"resp_{'0' * 32}"])
async def test_unknown_response_is_not_found(client: openai.AsyncOpenAI, response_id: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response_id)
    with pytest.raises(openai.NotFoundError):
        await create_response(client, previous_response_id=response_id)


async def test_responses_of_other_users_are_not_found(client: openai.AsyncOpenAI, db: asyncpg.Connection) -> None:
    response = await create_response(client)
    await db.execute("UPDATE turns SET owner = 'another user'")
    for operation in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            await operation(response.id)


async def test_sdk_knows_every_output_item(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with (
        serve_gateway(database_url, simulator, tools_url) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none") as client,
    ):
        simulator.faults.add_faults(Fault(kind="unknown_tool", times=3))
        response = await create_response(client)
    sdk_types = (types.ResponseReasoningItem, types.ResponseOutputMessage)
    assert all(isinstance(item, sdk_types) or item.type.startswith("mcp_") for item in response.output)
    assert [item.server_label for item in response.output if item.type == "mcp_call"] == ["unknown"]

"""`/v1/messages` with the SDK of Anthropic."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import httpx
import pytest

from gateway.simulator import Fault, Simulator
from tests.stack import Gateway

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ANSWER_TYPES = ["thinking", "mcp_tool_use", "mcp_tool_result", "thinking", "text"]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, api_key="none", max_retries=0) as client:
        yield client


async def create_message(client: anthropic.AsyncAnthropic, content: Any = "What is 23*19?", **options: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return await client.messages.create(
        **{"model": "claude-sonnet-5", "max_tokens": 1_000, "messages": messages, **options}
    )


async def post_messages(gateway: Gateway, path: str = "", **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=60) as http:
        return await http.post(
            f"/v1/messages{path}", json={"messages": [{"role": "user", "content": "What is 23*19?"}], **body}
        )


def list_types(message: Any) -> list[str]:
    return [block.type for block in message.content]


async def test_gateway_tools_are_blocks_before_the_text(client: anthropic.AsyncAnthropic) -> None:
    message = await create_message(client)
    assert list_types(message) == ["mcp_tool_use", "mcp_tool_result", "text"]
    call, result, text = message.content
    assert (call.server_name, call.name, call.input) == ("tools", "calculator", {"expression": "23*19"})
    assert (result.tool_use_id, result.is_error) == (call.id, False)
    assert result.content == [{"type": "text", "text": "23*19 = 437"}]
    assert "437" in text.text
    assert (message.stop_reason, message.model, message.role) == ("end_turn", "openai/gpt-oss-120b", "assistant")
    assert message.usage.input_tokens > 0 < message.usage.output_tokens


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 2_000}, {"type": "adaptive"}])
async def test_reasoning_is_shown_to_whom_asks_for_it(client: anthropic.AsyncAnthropic, thinking: Any) -> None:
    message = await create_message(client, thinking=thinking)
    assert list_types(message) == ANSWER_TYPES
    assert message.content[0].thinking
    assert message.content[0].signature


async def test_sdk_builds_the_same_message_from_the_stream(client: anthropic.AsyncAnthropic) -> None:
    whole = await create_message(client, thinking={"type": "adaptive"})
    async with client.messages.stream(
        model="claude-sonnet-5",
        max_tokens=1_000,
        messages=[{"role": "user", "content": "What is 23*19?"}],
        thinking={"type": "adaptive"},
    ) as stream:
        events: list[Any] = [event async for event in stream]
        message = await stream.get_final_message()
    assert list_types(message) == list_types(whole) == ANSWER_TYPES
    assert message.content[-1].text == whole.content[-1].text  # type: ignore[union-attr]
    assert message.content[1].input == {"expression": "23*19"}  # type: ignore[union-attr]
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    read = [usage.input_tokens + usage.cache_read_input_tokens for usage in (message.usage, whole.usage)]
    assert read[0] == read[1] > 0
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == list(range(len(ANSWER_TYPES)))
    assert events[-1].type == "message_stop"


async def test_client_tools_come_alone_and_their_results_are_understood(client: anthropic.AsyncAnthropic) -> None:
    question = "What is the weather in Paris?"
    first = await create_message(client, question, tools=[WEATHER], tool_choice={"type": "any"})
    assert (list_types(first), first.stop_reason) == (["tool_use"], "tool_use")
    call = first.content[0]
    assert (call.name, isinstance(call.input, dict)) == ("get_weather", True)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 degrees"}]}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": [result]},
    ]
    second = await create_message(client, messages=messages, tools=[WEATHER])
    assert list_types(second) == ["text"]
    assert "21 degrees" in second.content[0].text


async def test_request_with_tools_gets_gateway_tools_on_request_alone(gateway: Gateway) -> None:
    toolset = {"type": "mcp_toolset", "mcp_server_name": "tools", "configs": {"add_task": {"enabled": False}}}
    own = await post_messages(gateway, tools=[WEATHER])
    both = await post_messages(gateway, tools=[WEATHER, toolset])
    header = {"x_gateway": {"tools": ["calculator"]}}
    named = await post_messages(gateway, tools=[WEATHER], **header)
    kinds = [[block["type"] for block in answer.json()["content"]] for answer in (own, both, named)]
    assert "mcp_tool_use" not in kinds[0]
    assert ["mcp_tool_use" in kind for kind in kinds[1:]] == [True, True]


async def test_conversation_with_gateway_calls_is_sent_back_whole(
    gateway: Gateway, client: anthropic.AsyncAnthropic, simulator: Simulator
) -> None:
    first = await create_message(client, thinking={"type": "adaptive"})
    echoed = [block.to_dict() for block in first.content]
    messages = [
        {"role": "user", "content": "What is 23*19?"},
        {"role": "assistant", "content": echoed},
        {"role": "user", "content": [{"type": "text", "text": "Thanks!", "cache_control": {"type": "ephemeral"}}]},
    ]
    await create_message(client, messages=messages, system=[{"type": "text", "text": "Be kind."}])
    sent = simulator.requests[-1]["messages"]
    assert [message["role"] for message in sent if message["role"] != "system"] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert "23*19 = 437" in str(sent)
    assert "Be kind." in str(sent)


async def test_errors_have_the_classes_of_the_sdk(client: anthropic.AsyncAnthropic, gateway: Gateway) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await create_message(client, model="no-such-model")
    body: Any = missing.value.body
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == (
        "error",
        "not_found_error",
        "model_not_found",
    )
    assert body["request_id"] == missing.value.request_id is not None
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0"):
        await create_message(client, [{"type": "audio", "data": "x"}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await create_message(client, max_tokens=-1)
    with pytest.raises(anthropic.BadRequestError, match="not configured"):
        await create_message(client, tools=[{"type": "mcp_toolset", "mcp_server_name": "nobody"}])


async def test_failure_in_a_stream_is_an_error_event(gateway: Gateway, client: anthropic.AsyncAnthropic) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="cut", after_chunks=60))
    shown: list[str] = []

    async def read_texts() -> None:
        messages: Any = [{"role": "user", "content": "count to 500"}]
        async with client.messages.stream(model="claude-sonnet-5", max_tokens=9_000, messages=messages) as stream:
            async for text in stream.text_stream:
                shown.append(text)  # noqa: PERF401 - the stream breaks off

    with pytest.raises(anthropic.APIStatusError) as failure:
        await read_texts()
    assert "".join(shown).startswith("1 2")
    body: Any = failure.value.body
    assert (body["error"]["type"], body["error"]["code"]) == ("api_error", "model_stream_broken")


async def test_unknown_fields_and_hosted_tools_are_taken_with_a_warning(gateway: Gateway) -> None:
    answer = await post_messages(
        gateway,
        thinking={"type": "disabled"},
        context_management={"edits": []},
        output_config={"effort": "high"},
        metadata={"user_id": "u-1"},
        tools=[{"type": "web_search_20260209", "name": "web_search", "max_uses": 3}],
        shiny_new_field={"a": 1},
    )
    assert answer.status_code == 200, answer.text
    warnings = answer.headers["X-Gateway-Warnings"]
    assert "web_search_20260209" in warnings
    assert "shiny_new_field" in warnings
    assert answer.headers["request-id"] == answer.headers["X-Request-ID"]


async def test_structured_output_follows_the_schema(client: anthropic.AsyncAnthropic) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    message = await create_message(
        client,
        "Name a fruit.",
        extra_body={
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
            "x_gateway": {"tools": "none"},
        },
    )
    assert isinstance(json.loads(message.content[-1].text)["name"], str)


async def test_images_reach_the_model(client: anthropic.AsyncAnthropic, simulator: Simulator) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}
    await create_message(client, [image, {"type": "text", "text": "What is this?"}], model="qwen/qwen3.8-27b")
    assert "data:image/png;base64,aGVsbG8=" in str(simulator.requests[-1]["messages"])


async def test_prompt_tokens_are_counted_without_a_turn(client: anthropic.AsyncAnthropic, gateway: Gateway) -> None:
    short: Any = [{"role": "user", "content": "Hi"}]
    few = await client.messages.count_tokens(model="claude-sonnet-5", messages=short)
    long: Any = [{"role": "user", "content": "word " * 4_000}]
    many = await client.messages.count_tokens(model="claude-sonnet-5", messages=long, tools=[WEATHER])
    assert 0 < few.input_tokens < many.input_tokens
    assert many.input_tokens > 4_000


async def test_models_are_listed_in_pages(client: anthropic.AsyncAnthropic) -> None:
    ids = [model.id async for model in client.models.list(limit=2)]
    assert "openai/gpt-oss-120b" in ids
    assert len(ids) == len(set(ids)) > 2
    model = await client.models.retrieve(ids[0])
    assert (model.id, model.type) == (ids[0], "model")

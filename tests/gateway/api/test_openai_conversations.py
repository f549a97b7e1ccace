"""OpenAI's conversations and the state of responses, through the SDK."""

from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from tests.stack import Gateway

MODEL = "openai/gpt-oss-120b"
NAME: Any = {"type": "message", "role": "user", "content": "My name is Ada."}


@pytest.fixture
async def client(shared_gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{shared_gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def get_texts(page: Any) -> list[str]:
    return [item.content[0].text for item in page.data if item.type == "message"]


async def test_conversation_is_created_changed_and_deleted(client: openai.AsyncOpenAI) -> None:
    created = await client.conversations.create(metadata={"topic": "math"})
    assert created.id.startswith("conv_")
    assert created.metadata == {"topic": "math"}
    changed = await client.conversations.update(created.id, metadata={"topic": "art"})
    assert (changed.id, changed.metadata, changed.created_at) == (created.id, {"topic": "art"}, created.created_at)
    assert (await client.conversations.retrieve(created.id)).metadata == {"topic": "art"}
    deleted = await client.conversations.delete(created.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(created.id)


async def test_items_of_a_conversation_reach_the_model_and_are_listed(client: openai.AsyncOpenAI) -> None:
    conversation = await client.conversations.create(items=[NAME])
    added = await client.conversations.items.create(
        conversation.id, items=[{"role": "assistant", "content": "Hello Ada."}]
    )
    assert get_texts(added) == ["Hello Ada."]
    answer = await client.responses.create(model=MODEL, input="What is my name?", conversation=conversation.id)
    assert "Ada" in answer.output_text
    assert answer.conversation is not None
    assert answer.conversation.id == conversation.id
    page = await client.conversations.items.list(conversation.id, order="asc", limit=2)
    assert (get_texts(page), page.has_more) == (["My name is Ada.", "Hello Ada."], True)
    items: list[Any] = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=1)]
    assert [item.content[0].text for item in items][:3] == ["My name is Ada.", "Hello Ada.", "What is my name?"]
    assert items[-1].content[0].text == answer.output_text
    one = await client.conversations.items.retrieve(items[0].id, conversation_id=conversation.id)
    assert one == items[0]


async def test_new_conversation_is_named_in_the_response_and_continued(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model=MODEL, input="My name is Ada.", conversation="new")
    assert first.conversation is not None
    second = await client.responses.create(
        model=MODEL, input="What is my name?", conversation={"id": first.conversation.id}
    )
    assert "Ada" in second.output_text
    assert second.conversation == first.conversation
    stored = await client.responses.retrieve(first.id)
    assert stored.conversation == first.conversation


async def test_response_that_was_not_stored_cannot_be_continued(
    client: openai.AsyncOpenAI, shared_gateway: Gateway
) -> None:
    first = await client.responses.create(model=MODEL, input="My name is Ada.", store=False)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model=MODEL, input="What is my name?", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    turn = {"messages": [{"role": "user", "content": "hi"}], "store": False}
    turn_id = (await shared_gateway.post("/api/v1/chat", turn)).body["turn_id"]
    reply = await shared_gateway.post("/api/v1/chat", {"prompt": "hi", "parent_turn_id": turn_id})
    assert reply.status == 404


async def test_input_items_are_listed_in_pages(client: openai.AsyncOpenAI) -> None:
    texts = ["one", "two", "three"]
    response = await client.responses.create(model=MODEL, input=[{"role": "user", "content": text} for text in texts])
    newest = await client.responses.input_items.list(response.id, limit=2)
    assert (get_texts(newest), newest.has_more) == (["three", "two"], True)
    rest = await client.responses.input_items.list(response.id, after=newest.data[-1].id or "")
    assert (get_texts(rest), rest.has_more) == (["one"], False)
    oldest: list[Any] = [item async for item in client.responses.input_items.list(response.id, order="asc", limit=1)]
    assert [item.content[0].text for item in oldest if item.type == "message"] == texts
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.input_items.list(response.id, after="in_unknown")
    assert caught.value.param == "after"


async def test_tokens_of_an_input_include_what_it_continues(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model=MODEL, input="word " * 1_000, conversation="new")
    assert first.conversation is not None
    alone = await client.responses.input_tokens.count(model=MODEL, input="hi")
    behind = await client.responses.input_tokens.count(model=MODEL, input="hi", previous_response_id=first.id)
    within = await client.responses.input_tokens.count(model=MODEL, input="hi", conversation=first.conversation.id)
    assert alone.object == "response.input_tokens"
    assert behind.input_tokens == within.input_tokens > alone.input_tokens + 500


async def test_path_of_groq_has_responses_and_conversations(shared_gateway: Gateway) -> None:
    url = f"{shared_gateway.base_url}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        conversation = await client.conversations.create()
        answer = await client.responses.create(model=MODEL, input="What is 23*19?", conversation=conversation.id)
        assert "437" in answer.output_text
        assert (await client.responses.retrieve(answer.id)).output_text == answer.output_text


async def test_deleted_item_is_gone_for_clients_and_models(client: openai.AsyncOpenAI, shared_gateway: Gateway) -> None:
    call: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "a quokka"}
    conversation = await client.conversations.create(items=[NAME])
    await client.conversations.items.create(
        conversation.id, items=[{"role": "user", "content": "Remember the zebra."}, call, output, NAME]
    )
    before = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert len(before) == 5
    changed = await client.conversations.items.delete(before[1].id, conversation_id=conversation.id)
    assert changed.id == conversation.id
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(before[1].id, conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.delete(before[1].id, conversation_id=conversation.id)
    await client.conversations.items.delete(before[2].id, conversation_id=conversation.id)
    after = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert [item.id for item in after] == [before[0].id, before[4].id]  # the output went with its call
    assert await client.conversations.items.retrieve(before[4].id, conversation_id=conversation.id) == after[1]
    await client.responses.create(model=MODEL, input="What is my name?", conversation=conversation.id)
    sent = str(shared_gateway.simulator.requests[-1]["messages"])
    assert "zebra" not in sent
    assert "quokka" not in sent
    assert sent.count("My name is Ada.") == 2
    found = (await shared_gateway.get("/api/v1/search?query=zebra")).body
    assert "Remember the zebra" not in str(found)


async def test_deleted_prompt_and_answer_of_a_turn_leave_nothing(
    client: openai.AsyncOpenAI, shared_gateway: Gateway
) -> None:
    answer = await client.responses.create(model=MODEL, input="Say the word okapi.", conversation="new")
    assert answer.conversation is not None
    name = answer.conversation.id
    async for item in client.conversations.items.list(name, order="asc"):
        await client.conversations.items.delete(item.id, conversation_id=name)
    assert (await client.conversations.items.list(name)).data == []
    exported = await shared_gateway.get(f"/api/v1/conversations/{name.removeprefix('conv_')}")
    assert exported.status in (200, 404)
    assert "okapi" not in str(exported.body)
    assert "okapi" not in str((await shared_gateway.get("/api/v1/search?query=okapi")).body.get("results"))
    again = await client.responses.create(model=MODEL, input="Hello again.", conversation=name)
    assert again.status == "completed"

"""`/chatkit` with the request and event types of the official SDK."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from chatkit import types
from chatkit.actions import Action
from pydantic import BaseModel, TypeAdapter

from gateway.wire.chatkit.widgets import convert_form_values
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Client, Gateway, JsonObject, Reply

EVENT: TypeAdapter[Any] = TypeAdapter(types.ThreadStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(types.ThreadItem)
APPROVAL = {"approval": "always"}


@asynccontextmanager
async def open_stream(
    client: Client, request: BaseModel, headers: dict[str, str] | None = None
) -> AsyncGenerator[AsyncGenerator[Any]]:
    url = f"{client.base_url}/chatkit"
    body = request.model_dump(mode="json", exclude_none=True)
    async with client.session.post(url, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"

        async def read() -> AsyncGenerator[Any]:
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield EVENT.validate_json(line.removeprefix(b"data: "))

        yield read()


async def stream(client: Client, request: BaseModel, headers: dict[str, str] | None = None) -> list[Any]:
    async with open_stream(client, request, headers) as events:
        return [event async for event in events]


async def ask(client: Client, request: BaseModel | JsonObject, headers: dict[str, str] | None = None) -> Reply:
    body = request if isinstance(request, dict) else request.model_dump(mode="json", exclude_none=True)
    return await client.post("/chatkit", body, headers=headers or {})


def make_input(text: str, **fields: Any) -> Any:
    content: Any = [types.UserMessageTextContent(text=text)]
    return types.UserMessageInput(
        content=content,
        attachments=[],
        inference_options=types.InferenceOptions(),
        **fields,  # type: ignore[arg-type]
    )


def create(text: str = "What is 23*19?", **fields: Any) -> types.ThreadsCreateReq:
    return types.ThreadsCreateReq(params=types.ThreadCreateParams(input=make_input(text)), **fields)


def add(thread_id: str, text: str, **fields: Any) -> types.ThreadsAddUserMessageReq:
    params = types.ThreadAddUserMessageParams(input=make_input(text), thread_id=thread_id)
    return types.ThreadsAddUserMessageReq(params=params, **fields)


def fold_items(events: list[Any]) -> dict[str, Any]:
    """Return the items that a client has after a stream."""
    items: dict[str, Any] = {}
    for event in events:
        match event.type:
            case "thread.item.added" | "thread.item.done" | "thread.item.replaced":
                items[event.item.id] = event.item
            case "thread.item.removed":
                del items[event.item_id]
            case _:
                pass
    return items


def get_thread_id(events: list[Any]) -> str:
    assert events[0].type == "thread.created"
    return events[0].thread.id


def join_deltas(events: list[Any]) -> str:
    updates = [event.update for event in events if event.type == "thread.item.updated"]
    return "".join(update.delta for update in updates if update.type.endswith("text_delta"))


def get_text(item: Any) -> str:
    return "".join(part.text for part in item.content)


async def list_items(client: Client, thread_id: str, **params: Any) -> types.Page[Any]:
    request = types.ItemsListReq(params=types.ItemsListParams(thread_id=thread_id, **params))
    reply = await ask(client, request)
    assert reply.status == 200, reply.body
    return types.Page[types.ThreadItem].model_validate(reply.body)  # type: ignore[valid-type]


async def test_new_thread_streams_message_workflow_and_answer(gateway: Gateway) -> None:
    events = await stream(gateway, create())
    kinds = [event.type for event in events]
    assert kinds[:3] == ["thread.created", "thread.item.done", "stream_options"]
    assert "thread.updated" in kinds
    items = list(fold_items(events).values())
    assert [item.type for item in items] == ["user_message", "workflow", "assistant_message"]
    [task] = items[1].workflow.tasks
    assert (task.title, task.status_indicator) == ("calculator", "complete")
    assert "23*19" in task.content
    assert get_text(items[2]) == join_deltas(events)
    assert "437" in get_text(items[2])


async def test_stored_items_are_those_of_the_stream(gateway: Gateway) -> None:
    events = await stream(gateway, create())
    thread_id = get_thread_id(events)
    events += await stream(gateway, add(thread_id, "Thank you."))
    streamed = fold_items(events)
    request = types.ThreadsGetByIdReq(params=types.ThreadGetByIdParams(thread_id=thread_id))
    thread = types.Thread.model_validate((await ask(gateway, request)).body)
    assert thread.title == "What is 23*19?"
    assert [item.id for item in thread.items.data] == list(streamed)
    for item in thread.items.data:
        fields = {"created_at", "inference_options"}
        assert item.model_dump(exclude=fields) == streamed[item.id].model_dump(exclude=fields)
    page, ids = await list_items(gateway, thread_id, limit=2), list(streamed)[::-1]
    assert ([item.id for item in page.data], page.has_more, page.after) == (ids[:2], True, ids[1])
    rest = await list_items(gateway, thread_id, limit=50, after=page.after)
    assert ([item.id for item in rest.data], rest.has_more) == (ids[2:], False)
    for after in (ids[0], ids[-1]):  # of the assistant, and of ChatKit
        oldest = await list_items(gateway, thread_id, order="asc", after=after)
        assert [item.id for item in oldest.data] == ids[::-1][ids[::-1].index(after) + 1 :]


@pytest.mark.faults
async def test_threads_are_listed_renamed_and_deleted(gateway: Gateway) -> None:
    ids = [get_thread_id(await stream(gateway, create(f"Say {n}."))) for n in range(3)]
    listing = types.ThreadsListReq(params=types.ThreadListParams(limit=2))
    page = (await ask(gateway, listing)).body
    assert ([thread["id"] for thread in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    rest = types.ThreadsListReq(params=types.ThreadListParams(after=page["after"], order="desc"))
    assert [thread["id"] for thread in (await ask(gateway, rest)).body["data"]] == ids[:1]
    ascending = types.ThreadsListReq(params=types.ThreadListParams(order="asc"))
    assert [thread["id"] for thread in (await ask(gateway, ascending)).body["data"]] == ids
    rename = types.ThreadsUpdateReq(params=types.ThreadUpdateParams(thread_id=ids[0], title="Renamed"))
    assert (await ask(gateway, rename)).body["title"] == "Renamed"
    assert (await gateway.get(f"/api/v1/conversations/{ids[0]}")).body["title"] == "Renamed"
    deletion = types.ThreadsDeleteReq(params=types.ThreadDeleteParams(thread_id=ids[0]))
    assert (await ask(gateway, deletion)).body == {}
    assert (await ask(gateway, deletion)).status == 404


@pytest.mark.faults
async def test_retry_is_a_branch_with_the_same_message(gateway: Gateway) -> None:
    events = await stream(gateway, create("Say one."))
    thread_id = get_thread_id(events)
    first = list(fold_items(events).values())
    await stream(gateway, add(thread_id, "Say two."))
    params = types.ThreadRetryAfterItemParams(thread_id=thread_id, item_id=first[0].id)
    retried = await stream(gateway, types.ThreadsRetryAfterItemReq(params=params))
    items = (await list_items(gateway, thread_id, order="asc")).data
    assert [item.id for item in items] == [first[0].id, *fold_items(retried)]
    assert items[-1].id != first[-1].id
    detail = (await gateway.get(f"/api/v1/conversations/{thread_id}")).body
    assert detail
    wrong = types.ThreadRetryAfterItemParams(thread_id=thread_id, item_id=items[-1].id)
    assert (await ask(gateway, types.ThreadsRetryAfterItemReq(params=wrong))).status == 422


def press(thread_id: str, item: Any, button: str, **payload: Any) -> types.ThreadsCustomActionReq:
    config = getattr(item.widget, button)["action"]
    action = Action(type=config.type, payload={**config.payload, **payload})
    params = types.ThreadCustomActionParams(thread_id=thread_id, item_id=item.id, action=action)
    return types.ThreadsCustomActionReq(params=params)


async def ask_for_approval(gateway: Gateway) -> tuple[str, Any]:
    events = await stream(gateway, create("Add a task to buy milk", metadata=APPROVAL))
    [widget] = [item for item in fold_items(events).values() if item.type == "widget"]
    return get_thread_id(events), widget


@pytest.mark.parametrize(("button", "outcome"), [("confirm", "ok"), ("cancel", "denied")])
async def test_widget_answers_an_approval(gateway: Gateway, button: str, outcome: str) -> None:
    thread_id, widget = await ask_for_approval(gateway)
    assert [child.type for child in widget.widget.children] == ["Text"]
    events = await stream(gateway, press(thread_id, widget, button))
    replaced = next(event.item for event in events if event.type == "thread.item.replaced")
    assert (replaced.id, replaced.widget.confirm) == (widget.id, None)
    items = (await list_items(gateway, thread_id, order="asc")).data
    [task] = next(item for item in items if item.type == "workflow").workflow.tasks
    assert f"{outcome}:" in task.content
    assert items[-1].type == "assistant_message"
    again = await stream(gateway, press(thread_id, widget, button))
    assert again[-1].type == "error"
    assert "already answered" in again[-1].message


@pytest.mark.faults
async def test_synchronous_action_answers_too(gateway: Gateway) -> None:
    thread_id, widget = await ask_for_approval(gateway)
    request = types.ThreadsSyncCustomActionReq(params=press(thread_id, widget, "confirm").params)
    assert (await ask(gateway, request)).status == 200

    async def has_ended() -> bool:
        items = (await list_items(gateway, thread_id)).data
        return items[0].type == "assistant_message"

    await eventually(has_ended)


@pytest.mark.faults
async def test_wrong_actions_are_errors(gateway: Gateway) -> None:
    thread_id, widget = await ask_for_approval(gateway)
    other_thread, other = await ask_for_approval(gateway)
    attempts = [
        press(thread_id, widget, "confirm", input_id="no uuid"),
        press(thread_id, widget, "confirm", input_id=other.widget.confirm["action"].payload["input_id"]),
        press(thread_id, widget, "confirm", action="explode"),
    ]
    unknown = press(thread_id, widget, "confirm")
    unknown.params.action = Action(type="my.own", payload={})
    for request in [*attempts, unknown]:
        events = await stream(gateway, request)
        assert events[-1].type == "error", events
        assert "internal" not in events[-1].message
    foreign = press(thread_id, widget, "confirm")
    foreign.params.item_id = other.id
    assert (await ask(gateway, foreign)).status == 404
    [waiting] = [item for item in (await list_items(gateway, other_thread)).data if item.type == "widget"]
    assert waiting.widget.confirm is not None


@pytest.mark.faults
async def test_feedback_rates_the_turn(gateway: Gateway, db: asyncpg.Connection) -> None:
    events = await stream(gateway, create())
    items = list(fold_items(events))
    for kind, rating in (("negative", "down"), ("positive", "up")):
        params = types.ItemFeedbackParams(thread_id=get_thread_id(events), item_ids=items[-1:], kind=kind)  # type: ignore[arg-type]
        assert (await ask(gateway, types.ItemsFeedbackReq(params=params))).body == {}
        assert [row[0] for row in await db.fetch("SELECT rating FROM turn_feedback")] == [rating]


@pytest.mark.faults
async def test_failure_of_the_model_is_a_public_error_event(gateway: Gateway) -> None:
    options = types.InferenceOptions(model="no-such-model")
    request = create()
    request.params.input.inference_options = options
    events = await stream(gateway, request)
    assert events[-1].type == "error"
    assert "no-such-model" in events[-1].message


@pytest.mark.faults
async def test_disconnect_cancels_the_turn(gateway: Gateway) -> None:
    gateway.simulator.pause_streams()
    try:
        async with open_stream(gateway, create()) as events:
            thread_id = (await anext(events)).thread.id
            await gateway.simulator.wait_until(lambda simulator: bool(simulator.requests))

        async def is_cancelled() -> bool:
            detail = (await gateway.get(f"/api/v1/conversations/{thread_id}")).body
            return [turn["status"] for turn in detail["turns"]] == ["cancelled"]

        await eventually(is_cancelled)
    finally:
        gateway.simulator.resume_streams()


@pytest.mark.faults
async def test_threads_of_another_user_are_not_found(keyring: Keyring) -> None:
    ada, bob = await keyring.create_key("ada"), await keyring.create_key("bob")
    viewer = await keyring.create_key("bob", role="viewer")
    gateway = keyring.gateway
    events = await stream(gateway, create("The zebra is called Zanzibar."), ada)
    thread_id, items = get_thread_id(events), list(fold_items(events))
    requests: list[BaseModel] = [
        types.ThreadsGetByIdReq(params=types.ThreadGetByIdParams(thread_id=thread_id)),
        types.ItemsListReq(params=types.ItemsListParams(thread_id=thread_id)),
        types.ThreadsUpdateReq(params=types.ThreadUpdateParams(thread_id=thread_id, title="x")),
        types.ThreadsDeleteReq(params=types.ThreadDeleteParams(thread_id=thread_id)),
        types.ItemsFeedbackReq(params=types.ItemFeedbackParams(thread_id=thread_id, item_ids=items, kind="positive")),
        types.ThreadsRetryAfterItemReq(params=types.ThreadRetryAfterItemParams(thread_id=thread_id, item_id=items[0])),
        types.ThreadsListReq(params=types.ThreadListParams(after=thread_id)),
        add(thread_id, "hello"),
    ]
    for request in requests:
        reply = await ask(gateway, request, bob)
        assert reply.status == 404, (request, reply.body)
        assert "Zanzibar" not in json.dumps(reply.body)
    own = get_thread_id(await stream(gateway, create(), bob))
    stolen = types.ItemFeedbackParams(thread_id=own, item_ids=items[1:], kind="positive")
    assert (await ask(gateway, types.ItemsFeedbackReq(params=stolen), bob)).status == 404
    assert (await ask(gateway, create(), viewer)).status == 403
    assert (await ask(gateway, requests[0], ada)).status == 200


HOSTILE: dict[str, Any] = {
    "no type": {"params": {}},
    "unknown type": {"type": "threads.explode", "params": {}},
    "params is a list": {"type": "threads.list", "params": []},
    "wrong union": {"type": "threads.create", "params": {"input": {"content": [{"type": "image"}]}}},
    "metadata": {"type": "threads.list", "params": {}, "metadata": {"approval": 7}},
    "attachment": {"type": "attachments.create", "params": {"name": "x", "size": 1, "mime_type": "text/plain"}},
    "attachment to delete": {"type": "attachments.delete", "params": {"attachment_id": "x"}},
    "audio": {"type": "input.transcribe", "params": {"audio_base64": "AAAA", "mime_type": "audio/webm"}},
    "bad audio": {"type": "input.transcribe", "params": {"audio_base64": "%", "mime_type": "audio/webm"}},
    "foreign id": {"type": "threads.get_by_id", "params": {"thread_id": "x y\u0000"}},
    "long id": {"type": "threads.get_by_id", "params": {"thread_id": "x" * 5_000}},
    "no such item": {"type": "items.list", "params": {"thread_id": "x", "after": "inp_zz_zz"}},
    "structured input": {
        "type": "threads.add_structured_input",
        "params": {"thread_id": "x", "item_id": "y", "input": {}},
    },
    "client tool": {"type": "threads.add_client_tool_output", "params": {"thread_id": "x", "result": 1}},
    "attached": {
        "type": "threads.create",
        "params": {"input": {"content": [], "attachments": ["x"], "inference_options": {}}},
    },
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_requests_are_errors_of_the_client(shared_gateway: Gateway, name: str) -> None:
    async with shared_gateway.session.post(f"{shared_gateway.base_url}/chatkit", json=HOSTILE[name]) as response:
        text = await response.text()
        assert response.status in (404, 422) or '"type":"error"' in text, (response.status, text)


@pytest.mark.faults
async def test_nul_characters_are_no_server_errors(gateway: Gateway) -> None:
    events = await stream(gateway, create("a\x00b"))
    assert events[-1].type != "error"
    thread_id = get_thread_id(events)
    items = types.ItemsListReq(params=types.ItemsListParams(thread_id=thread_id, after="x\x00"))
    feedback = types.ItemFeedbackParams(thread_id=thread_id, item_ids=["x\x00"], kind="positive")
    rename = types.ThreadUpdateParams(thread_id=thread_id, title="a\x00b")
    statuses = [
        (await ask(gateway, request)).status
        for request in (items, types.ItemsFeedbackReq(params=feedback), types.ThreadsUpdateReq(params=rename))
    ]
    assert statuses == [422, 422, 200]
    model = create()
    choice = types.ToolChoice(id="\x00")
    model.params.input.inference_options = types.InferenceOptions(model="m\x00", tool_choice=choice)
    assert (await stream(gateway, model))[-1].type == "error"


@pytest.mark.parametrize("limit", [-1, 0, 10**12])
async def test_limits_of_pages_are_bounded(shared_gateway: Gateway, limit: int) -> None:
    request = types.ThreadsListReq(params=types.ThreadListParams(limit=limit))
    assert (await ask(shared_gateway, request)).status == 200


@pytest.mark.faults
@pytest.mark.parametrize("item_id", ["usr-unknown", "x\x00"])
async def test_retry_of_an_unknown_message_is_not_found(gateway: Gateway, item_id: str) -> None:
    thread_id = get_thread_id(await stream(gateway, create()))
    retry = types.ThreadRetryAfterItemParams(thread_id=thread_id, item_id=item_id)
    assert (await ask(gateway, types.ThreadsRetryAfterItemReq(params=retry))).status == 404


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5_000])
def test_text_of_a_form_that_is_no_json_stays_a_text(text: str) -> None:
    schema = {"properties": {"tags": {"type": "array"}}}
    assert convert_form_values({"tags": text}, schema) == {"tags": text}


@pytest.mark.faults
async def test_client_tool_output_without_a_call_is_refused(gateway: Gateway) -> None:
    thread_id = get_thread_id(await stream(gateway, create()))
    params = types.ThreadAddClientToolOutputParams(thread_id=thread_id, result=1)
    assert (await ask(gateway, types.ThreadsAddClientToolOutputReq(params=params))).status == 422

"""`/a2a` with the client of the official SDK, over JSON-RPC and REST."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.client.card_resolver import parse_agent_card
from a2a.client.client import Client
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2 as types
from a2a.utils import errors as a2a_errors
from google.protobuf.json_format import MessageToDict, ParseDict

from gateway.agent.service import TurnHandle
from gateway.api.routes.a2a.task_reader import TaskReader
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Client as HttpClient
from tests.stack import Gateway, JsonObject

BINDINGS = ("JSONRPC", "HTTP+JSON")
State = types.TaskState


@asynccontextmanager
async def connect(gateway: HttpClient, binding: str = "JSONRPC", key: str | None = None) -> AsyncGenerator[Client]:
    """Connect the SDK's client by the gateway's agent card."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        config = ClientConfig(httpx_client=http, supported_protocol_bindings=[binding])
        client = await create_client(gateway.base_url, client_config=config)
        yield client


@pytest.fixture(params=["JSONRPC", pytest.param("HTTP+JSON", marks=pytest.mark.faults)])
async def client(gateway: Gateway, request: pytest.FixtureRequest) -> AsyncGenerator[Client]:
    async with connect(gateway, request.param) as client:
        yield client


def make_request(text: str = "What is 23*19?", *, parts: Any = None, **fields: Any) -> types.SendMessageRequest:
    configuration = fields.pop("configuration", {})
    metadata = fields.pop("metadata", {})
    message = {"role": "ROLE_USER", "messageId": "m1", "parts": parts or [{"text": text}], **fields}
    return ParseDict(
        {"message": message, "configuration": configuration, "metadata": metadata}, types.SendMessageRequest()
    )


async def send(client: Client, *arguments: Any, **fields: Any) -> list[types.StreamResponse]:
    return [item async for item in client.send_message(make_request(*arguments, **fields))]


async def send_whole(client: Client, *arguments: Any, **fields: Any) -> types.Task:
    """Send a message without a stream."""
    client._config.streaming = False  # type: ignore[attr-defined]
    try:
        [response] = await send(client, *arguments, **fields)
    finally:
        client._config.streaming = True  # type: ignore[attr-defined]
    return response.task


async def wait_until_completed(client: Client, task_id: str) -> None:
    async def is_completed() -> bool:
        task = await client.get_task(types.GetTaskRequest(id=task_id))
        return task.status.state == State.TASK_STATE_COMPLETED

    await eventually(is_completed)


def join_text(artifacts: Any) -> str:
    return "".join(part.text for artifact in artifacts for part in artifact.parts)


def list_events(messages: Any) -> list[JsonObject]:
    """Return the native events that messages of the agent carry."""
    parts = [part for message in messages for part in message.parts if part.HasField("data")]
    return [MessageToDict(part.data) for part in parts]


def fold_stream(responses: list[types.StreamResponse]) -> tuple[str, list[int], list[JsonObject]]:
    """Return the text, states and events of a stream."""
    texts: dict[str, str] = {}
    states, messages = [], []
    for response in responses:
        match response.WhichOneof("payload"):
            case "task":
                states.append(response.task.status.state)
                texts |= {item.artifact_id: join_text([item]) for item in response.task.artifacts}
            case "artifact_update":
                update = response.artifact_update
                before = texts.get(update.artifact.artifact_id, "") if update.append else ""
                texts[update.artifact.artifact_id] = before + join_text([update.artifact])
            case "status_update":
                states.append(response.status_update.status.state)
                if response.status_update.status.HasField("message"):
                    messages.append(response.status_update.status.message)
    return "".join(texts.values()), states, list_events(messages)


async def test_card_names_both_bindings_and_is_the_sdk_s(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=60) as http:
        response = await http.get("/.well-known/agent-card.json")
    card = parse_agent_card(response.json())
    interfaces = [(item.protocol_binding, item.url, item.protocol_version) for item in card.supported_interfaces]
    assert interfaces == [
        ("JSONRPC", f"{gateway.base_url}/a2a", "1.0"),
        ("HTTP+JSON", f"{gateway.base_url}/a2a/v1", "1.0"),
        ("JSONRPC", f"{gateway.base_url}/a2a", "0.3"),
    ]
    assert card.capabilities.streaming
    assert not card.capabilities.push_notifications
    assert [skill.id for skill in card.skills] == ["chat"]
    assert not card.security_schemes


async def test_message_is_a_task_with_text_calls_and_end(client: Client) -> None:
    task = await send_whole(client)
    assert task.status.state == State.TASK_STATE_COMPLETED
    assert "437" in join_text(task.artifacts)
    assert UUID(task.context_id)
    call, result = list_events(task.history)
    assert (call["type"], call["tool"], call["arguments"]) == ("tool.call", "calculator", {"expression": "23*19"})
    assert (result["type"], result["outcome"]) == ("tool.result", "ok")
    assert task.history[0].message_id == "m1"
    metadata = MessageToDict(task.metadata)
    assert metadata["finish_reason"] == "stop"
    assert metadata["usage"]["completion_tokens"] > 0


async def test_stream_tells_the_same_as_the_task(client: Client) -> None:
    responses = await send(client)
    assert responses[0].HasField("task")
    text, states, events = fold_stream(responses)
    task = await client.get_task(types.GetTaskRequest(id=responses[0].task.id))
    assert text == join_text(task.artifacts)
    assert events == list_events(task.history)
    assert states[0] == State.TASK_STATE_WORKING
    assert states[-1] == task.status.state == State.TASK_STATE_COMPLETED


@pytest.mark.faults
async def test_context_is_a_conversation(client: Client) -> None:
    first = await send_whole(client, "Remember the word zebra.")
    second = await send_whole(client, "Which word did I say?", contextId=first.context_id)
    own = await send_whole(client, "Hello.", contextId="my-own-context")
    assert second.context_id == first.context_id
    assert own.context_id == "my-own-context"
    listed = await client.list_tasks(types.ListTasksRequest(context_id=first.context_id))
    assert [task.id for task in listed.tasks] == [second.id, first.id]
    with pytest.raises(a2a_errors.InvalidParamsError, match="conversation"):
        await send_whole(client, contextId="0199b1c0-0000-7000-8000-000000000009")


@pytest.mark.faults
async def test_list_has_filters_and_pages(client: Client) -> None:
    ids = [(await send_whole(client, f"Say {n}.")).id for n in range(3)]
    page = await client.list_tasks(types.ListTasksRequest(page_size=2, include_artifacts=True, history_length=1))
    assert ([task.id for task in page.tasks], page.page_size, page.total_size) == (ids[:0:-1], 2, 3)
    assert all(join_text(task.artifacts) for task in page.tasks)
    assert [task.history[0].parts[0].text for task in page.tasks] == ["Say 2.", "Say 1."]
    rest = await client.list_tasks(types.ListTasksRequest(page_size=2, page_token=page.next_page_token))
    assert ([task.id for task in rest.tasks], rest.next_page_token) == (ids[:1], "")
    assert not rest.tasks[0].artifacts
    for state, count in (
        (State.TASK_STATE_COMPLETED, 3),
        (State.TASK_STATE_WORKING, 0),
        (State.TASK_STATE_REJECTED, 0),
    ):
        assert len((await client.list_tasks(types.ListTasksRequest(status=state))).tasks) == count
    since = types.ListTasksRequest()
    since.status_timestamp_after.FromJsonString("2999-01-01T00:00:00Z")
    assert not (await client.list_tasks(since)).tasks
    for request in (types.ListTasksRequest(page_size=101), types.ListTasksRequest(page_token="x")):
        with pytest.raises(a2a_errors.InvalidParamsError):
            await client.list_tasks(request)


async def test_question_is_input_required_and_a_message_answers_it(client: Client) -> None:
    options = {"metadata": {"approval": "always"}}
    asked = await send_whole(client, "Add a task to buy milk", **options)
    assert asked.status.state == State.TASK_STATE_INPUT_REQUIRED
    text, data = asked.status.message.parts
    assert text.text
    assert MessageToDict(data.data)["kind"] == "approval"
    with pytest.raises(a2a_errors.InvalidParamsError, match="yes or no"):
        await send_whole(client, "perhaps", taskId=asked.id)
    with pytest.raises(a2a_errors.InvalidParamsError, match="context"):
        await send_whole(client, "yes", taskId=asked.id, contextId="another")
    task = await send_whole(client, "yes", taskId=asked.id, contextId=asked.context_id)
    assert (task.id, task.status.state) == (asked.id, State.TASK_STATE_COMPLETED)
    outcomes = [event["outcome"] for event in list_events(task.history) if event["type"] == "tool.result"]
    assert outcomes == ["ok"]
    with pytest.raises(a2a_errors.UnsupportedOperationError, match="ended"):
        await send_whole(client, "yes", taskId=asked.id)


@pytest.mark.faults
async def test_declined_call_does_not_run_and_the_stream_goes_on(client: Client) -> None:
    asked = await send(client, "Add a task to buy milk", metadata={"approval": "always"})
    _, states, events = fold_stream(asked)
    assert states[-1] == State.TASK_STATE_INPUT_REQUIRED
    answer = {"action": "decline", "input_id": events[-1]["input_id"]}
    rest = await send(client, parts=[{"data": answer}], taskId=asked[0].task.id)
    assert rest[0].task.status.state == State.TASK_STATE_INPUT_REQUIRED
    text, states, events = fold_stream(rest)
    assert [event["type"] for event in events] == ["input.resolved", "tool.result"]
    assert (events[1]["outcome"], states[-1]) == ("denied", State.TASK_STATE_COMPLETED)
    assert text


@pytest.mark.faults
async def test_running_task_is_cancelled_once(gateway: Gateway, client: Client) -> None:
    gateway.simulator.pause_streams()
    try:
        task = await send_whole(client, configuration={"returnImmediately": True})
        assert task.status.state in (State.TASK_STATE_SUBMITTED, State.TASK_STATE_WORKING)
        with pytest.raises(a2a_errors.UnsupportedOperationError, match="asked nothing"):
            await send_whole(client, "more", taskId=task.id)
        cancelled = await client.cancel_task(types.CancelTaskRequest(id=task.id))
        assert cancelled.status.state == State.TASK_STATE_CANCELED
    finally:
        gateway.simulator.resume_streams()
    with pytest.raises(a2a_errors.TaskNotCancelableError):
        await client.cancel_task(types.CancelTaskRequest(id=task.id))
    with pytest.raises(a2a_errors.UnsupportedOperationError):
        [item async for item in client.subscribe(types.SubscribeToTaskRequest(id=task.id))]


@pytest.mark.faults
async def test_task_that_ends_while_a_subscription_begins_is_not_streamed_twice(
    gateway: Gateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_turn = TaskReader.find_turn

    async def find_before_the_end(self: TaskReader, task_id: str) -> TurnHandle:
        turn = await find_turn(self, task_id)
        gateway.simulator.resume_streams()
        await wait_until_completed(client, task_id)
        return turn

    gateway.simulator.pause_streams()
    task = await send_whole(client, configuration={"returnImmediately": True})
    monkeypatch.setattr(TaskReader, "find_turn", find_before_the_end)
    with pytest.raises(a2a_errors.UnsupportedOperationError):
        [item async for item in client.subscribe(types.SubscribeToTaskRequest(id=task.id))]


@pytest.mark.faults
@pytest.mark.parametrize("binding", BINDINGS)
async def test_another_worker_answers_and_streams_a_running_task(workers: list[Gateway], binding: str) -> None:
    prompt = "Write about " + "rivers and lakes and " * 60
    async with connect(workers[0], binding) as first, connect(workers[1], binding) as second:
        workers[0].simulator.pause_streams()
        stream = first.send_message(make_request(prompt))
        task_id = (await anext(stream)).task.id
        running = await second.get_task(types.GetTaskRequest(id=task_id))
        assert running.status.state in (State.TASK_STATE_SUBMITTED, State.TASK_STATE_WORKING)
        subscription = second.subscribe(types.SubscribeToTaskRequest(id=task_id))
        followed = [await anext(subscription)]
        workers[0].simulator.resume_streams()
        followed += [item async for item in subscription]
        rest = [item async for item in stream]
        task = await second.get_task(types.GetTaskRequest(id=task_id))
    assert followed[0].task.id == task_id
    text, states, _ = fold_stream(followed)
    assert text == fold_stream(rest)[0] == join_text(task.artifacts)
    assert states[-1] == State.TASK_STATE_COMPLETED


@pytest.mark.faults
async def test_task_of_a_worker_that_stops_goes_on_at_another(workers: list[Gateway]) -> None:
    async with connect(workers[0]) as first, connect(workers[1]) as second:
        stream = first.send_message(make_request("count to 300"))
        task_id = (await anext(stream)).task.id
        await anext(stream)
        workers[0].simulator.pause_streams()
        await workers[0].state.stop(0)
        with pytest.raises(a2a_errors.InternalError, match="Subscribe to the task again"):
            [item async for item in stream]
        workers[0].simulator.resume_streams()
        followed = [item async for item in second.subscribe(types.SubscribeToTaskRequest(id=task_id))]
        task = await second.get_task(types.GetTaskRequest(id=task_id))
    text, states, _ = fold_stream(followed)
    assert states[-1] == State.TASK_STATE_COMPLETED
    assert text == join_text(task.artifacts)
    assert " ".join(map(str, range(1, 301))) in text


@pytest.mark.faults
async def test_question_is_answered_at_another_worker(workers: list[Gateway]) -> None:
    async with connect(workers[0]) as first, connect(workers[1]) as second:
        asked = await send_whole(first, "Add a task to buy milk", metadata={"approval": "always"})
        rest = await send(second, "yes", taskId=asked.id)
    text, states, _ = fold_stream(rest)
    assert (states[-1], bool(text)) == (State.TASK_STATE_COMPLETED, True)


@pytest.mark.faults
@pytest.mark.parametrize("binding", BINDINGS)
async def test_tasks_of_another_user_are_not_found(keyring: Keyring, binding: str) -> None:
    await keyring.create_key("ada")
    await keyring.create_key("bob")
    gateway = keyring.gateway
    async with (
        connect(gateway, binding, keyring.secrets["ada"]) as ada,
        connect(gateway, binding, keyring.secrets["bob"]) as bob,
    ):
        assert (await bob.get_extended_agent_card(types.GetExtendedAgentCardRequest())).skills[1:]
        asked = await send_whole(ada, "Add a task to buy milk", metadata={"approval": "always"})
        attempts = (
            lambda: bob.get_task(types.GetTaskRequest(id=asked.id)),
            lambda: bob.cancel_task(types.CancelTaskRequest(id=asked.id)),
            lambda: send_whole(bob, "yes", taskId=asked.id),
            lambda: send(bob, "yes", taskId=asked.id),
            lambda: anext(bob.subscribe(types.SubscribeToTaskRequest(id=asked.id))),
            lambda: bob.get_task(types.GetTaskRequest(id="no-id")),
            lambda: bob.create_task_push_notification_config(
                types.TaskPushNotificationConfig(task_id=asked.id, url="http://127.0.0.1:9/x")
            ),
        )
        for attempt in attempts:
            with pytest.raises(a2a_errors.TaskNotFoundError):
                await attempt()
        with pytest.raises(a2a_errors.InvalidParamsError):
            await send_whole(bob, contextId=asked.context_id)
        assert not (await bob.list_tasks(types.ListTasksRequest())).tasks
        assert not (await bob.list_tasks(types.ListTasksRequest(context_id=asked.context_id))).tasks
        waiting = await ada.get_task(types.GetTaskRequest(id=asked.id))
        assert waiting.status.state == State.TASK_STATE_INPUT_REQUIRED


@pytest.mark.faults
async def test_methods_of_json_rpc_need_the_permission_of_their_routes(keyring: Keyring) -> None:
    await keyring.create_key("reader", role="viewer")
    await keyring.create_key("tools", scopes=("tools",))
    async with connect(keyring.gateway, key=keyring.secrets["reader"]) as client:
        assert (await client.list_tasks(types.ListTasksRequest())).total_size == 0
        with pytest.raises(A2AClientError, match="403"):
            await send_whole(client)
    async with connect(keyring.gateway, key=keyring.secrets["tools"]) as client:
        with pytest.raises(A2AClientError, match="403"):
            await client.list_tasks(types.ListTasksRequest())


@pytest.mark.faults
async def test_card_of_a_closed_gateway_names_its_credentials(keyring: Keyring) -> None:
    async with httpx.AsyncClient(base_url=keyring.gateway.base_url, timeout=60) as http:
        card = parse_agent_card((await http.get("/.well-known/agent-card.json")).json())
        assert (await http.get("/a2a/v1/tasks")).status_code == 401
    assert set(card.security_schemes) == {"bearer", "apiKey"}
    assert [skill.id for skill in card.skills] == ["chat"]


PARTS: dict[str, tuple[Any, str]] = {
    "url": ([{"url": "http://127.0.0.1:9/secret.png", "mediaType": "image/png"}], "not fetched"),
    "binary": ([{"raw": "AAEC", "mediaType": "application/zip"}], "cannot be read"),
    "not text": ([{"raw": "/w==", "mediaType": "text/plain"}], "UTF-8"),
    "empty part": ([{"metadata": {"a": 1}}], "one of text"),
    "no parts": ([], "Validation failed"),
    "two in one": ([{"text": "a", "data": 1}], "Invalid params|oneof|parse"),
    "part is no object": (["a"], "one of text"),
    "huge text": ([{"text": "x" * 1_000_001}], "at most"),
    "infinite": ([{"data": {"a": 1e999}}], "finite|JSON"),
    "deep": ([{"data": json.loads("[" * 90 + "]" * 90)}], "Invalid params|deep|parse"),
}


@pytest.mark.parametrize("name", PARTS)
async def test_unreadable_parts_are_errors_of_the_client(shared_gateway: Gateway, name: str) -> None:
    parts, reason = PARTS[name]
    message = {"role": "ROLE_USER", "messageId": "1", "parts": parts}
    body = json.dumps({"message": message}).replace("Infinity", "1e999")
    rpc = f'{{"jsonrpc": "2.0", "id": 7, "method": "%s", "params": {body}}}'
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=shared_gateway.base_url, headers=headers, timeout=60) as http:
        for path, content in (
            ("/a2a/v1/message:send", body),
            ("/a2a/v1/message:stream", body),
            ("/a2a", rpc % "SendMessage"),
            ("/a2a", rpc % "SendStreamingMessage"),
        ):
            response = await http.post(path, content=content)
            assert response.status_code in ((200, 422) if path == "/a2a" else (400, 422)), response.text
            error = response.json()["error"]
            assert httpx.codes.is_client_error(response.status_code) or error["code"] in (-32600, -32602, -32005)
            assert any(word in response.text for word in reason.split("|")), response.text
    assert "Traceback" not in response.text


HOSTILE: dict[str, Any] = {
    "a batch": [{"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}],
    "no method": {"jsonrpc": "2.0", "id": 1},
    "an old method": {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}},
    "another version": {"jsonrpc": "1.0", "id": 1, "method": "ListTasks"},
    "params is a text": {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": "x"},
    "id is an object": {"jsonrpc": "2.0", "id": {"a": 1}, "method": "ListTasks"},
    "history below zero": {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"historyLength": -1}},
    "no such state": {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"status": "NO_STATE"}},
    "time out of range": {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "ListTasks",
        "params": {"statusTimestampAfter": "9999-99-99T00:00:00Z"},
    },
    "agent's role": {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "SendMessage",
        "params": {"message": {"role": "ROLE_AGENT", "messageId": "1", "parts": [{"text": "x"}]}},
    },
    "bad option": {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "SendMessage",
        "params": {
            "message": {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": "x"}]},
            "metadata": {"approval": {"a": 1}},
        },
    },
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_rpc_requests_are_errors_of_the_client(shared_gateway: Gateway, name: str) -> None:
    reply = await shared_gateway.post("/a2a", HOSTILE[name])
    if reply.status == 200 and "error" not in reply.body:
        assert name in ("no such state", "id is an object"), reply.body
    else:
        assert (reply.status == 422) or reply.body["error"]["code"] in (-32600, -32601, -32602), reply.body


@pytest.mark.faults
async def test_nul_characters_are_no_server_errors(client: Client) -> None:
    nul = "a\x00b"
    parts = [{"text": nul}, {"data": {nul: nul}}, {"raw": "AGE=", "mediaType": "text/plain", "filename": nul}]
    task = await send_whole(client, parts=parts, messageId=nul, metadata={"system": nul})
    assert task.status.state == State.TASK_STATE_COMPLETED
    assert len((await client.list_tasks(types.ListTasksRequest())).tasks) == 1
    with pytest.raises(a2a_errors.InvalidParamsError):
        await send_whole(client, contextId=nul)
    with pytest.raises(a2a_errors.TaskNotFoundError):
        await client.get_task(types.GetTaskRequest(id="a%00b"))
    with pytest.raises((a2a_errors.InvalidParamsError, A2AClientError), match="model"):
        await send_whole(client, metadata={"model": nul})


@pytest.mark.faults
async def test_nul_characters_in_ids_of_push_configs_are_no_server_errors(gateway: Gateway) -> None:
    turn = (await gateway.chat("Hello.")).body["turn_id"]
    configs = f"{gateway.base_url}/a2a/v1/tasks/{turn}/pushNotificationConfigs"
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await http.get(f"{configs}/a%00b")).status_code == 404
        assert (await http.delete(f"{configs}/a%00b")).status_code == 400


@pytest.mark.parametrize(
    "query", ["pageSize=x", "pageSize=0", "historyLength=-1", "status=9", "statusTimestampAfter=x"]
)
async def test_wrong_queries_of_lists_are_errors_of_the_client(shared_gateway: Gateway, query: str) -> None:
    reply = await shared_gateway.get(f"/a2a/v1/tasks?{query}")
    assert reply.status == 400, reply.body


@pytest.mark.faults
async def test_files_with_text_and_data_reach_the_model(gateway: Gateway) -> None:
    parts = [
        {"raw": "emVicmE=", "mediaType": "text/plain", "filename": "word.txt"},
        {"data": {"answer": 42}},
        {"text": "Repeat this."},
    ]
    async with connect(gateway) as client:
        await send_whole(client, parts=parts)
    content = gateway.simulator.requests[-1]["messages"][-1]["content"]
    assert content == 'word.txt\n\nzebra\n\n{"answer":42.0}\n\nRepeat this.'


@pytest.mark.faults
async def test_missing_extra_is_named(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(("a2a.", "gateway.api.routes.a2a.handler."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "a2a", None)
    reply = await gateway.post("/a2a", {"jsonrpc": "2.0", "id": 1, "method": "ListTasks"})
    assert (reply.status, reply.body["error"]["code"]) == (501, "extra_not_installed")
    assert "mcp-agent-gateway[a2a]" in reply.body["error"]["message"]


@pytest.mark.faults
def test_sdks_of_the_faces_are_not_imported_at_the_start() -> None:
    program = (
        "import sys, gateway.app; print(sorted({'a2a', 'chatkit', 'agents', 'google.protobuf'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"

"""A2A 0.3 over JSON-RPC, with the client of the SDK."""

import json
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.client.card_resolver import A2ACardResolver
from a2a.compat.v0_3 import types as types_v03
from a2a.compat.v0_3.jsonrpc_transport import CompatJsonRpcTransport
from a2a.types import a2a_pb2 as types
from a2a.utils import errors as a2a_errors

from tests.auth_helpers import Keyring
from tests.gateway.api.test_a2a import State, fold_stream, send, send_whole
from tests.gateway.api.test_webhooks import Receiver, hooked, receiver
from tests.stack import Gateway, JsonObject

pytestmark = pytest.mark.faults
__all__ = ["hooked", "receiver"]


async def connect_legacy(gateway_url: str, http: httpx.AsyncClient) -> Any:
    """Connect the client to the interface of 0.3 alone."""
    card = await A2ACardResolver(http, gateway_url).get_agent_card()
    for interface in [item for item in card.supported_interfaces if item.protocol_version != "0.3"]:
        card.supported_interfaces.remove(interface)
    client = await create_client(card, client_config=ClientConfig(httpx_client=http))
    assert isinstance(client._transport, CompatJsonRpcTransport)  # type: ignore[attr-defined]
    return client


def make_rpc(method: str, params: Any) -> JsonObject:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def make_message(text: str, **fields: Any) -> JsonObject:
    parts = [{"kind": "text", "text": text}]
    return {"kind": "message", "role": "user", "messageId": "m1", "parts": parts, **fields}


async def test_card_is_one_of_0_3_too(gateway: Gateway) -> None:
    reply = await gateway.get("/.well-known/agent-card.json")
    card = types_v03.AgentCard.model_validate(reply.body)
    assert (card.url, card.preferred_transport, card.protocol_version) == (f"{gateway.base_url}/a2a", "JSONRPC", "0.3")
    assert card.capabilities.streaming
    assert card.supports_authenticated_extended_card


async def test_legacy_client_streams_asks_answers_and_cancels(gateway: Gateway) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        client = await connect_legacy(gateway.base_url, http)
        text, states, events = fold_stream(await send(client))
        assert "437" in text
        assert states[-1] == State.TASK_STATE_COMPLETED
        assert [event["type"] for event in events] == ["tool.call", "tool.result"]
        asked = await send_whole(client, "Add a task to buy milk", metadata={"approval": "always"})
        assert asked.status.state == State.TASK_STATE_INPUT_REQUIRED
        rest = await send(client, "yes", taskId=asked.id)
        assert fold_stream(rest)[1][-1] == State.TASK_STATE_COMPLETED
        got = await client.get_task(types.GetTaskRequest(id=asked.id))
        assert got.status.state == State.TASK_STATE_COMPLETED
        with pytest.raises(a2a_errors.TaskNotCancelableError):
            await client.cancel_task(types.CancelTaskRequest(id=asked.id))
        with pytest.raises(a2a_errors.TaskNotFoundError):
            await client.get_task(types.GetTaskRequest(id="no-id"))
        card = await client.get_extended_agent_card(types.GetExtendedAgentCardRequest())
        assert "calculator" in [skill.id for skill in card.skills]


async def test_legacy_stream_marks_its_last_event(gateway: Gateway) -> None:
    message = make_message("Add a task to buy milk", metadata={"approval": "always"})
    async with gateway.session.post(
        f"{gateway.base_url}/a2a", json=make_rpc("message/stream", {"message": message})
    ) as response:
        assert response.content_type == "text/event-stream"
        lines = [line for line in (await response.text()).splitlines() if line.startswith("data: ")]
    results = [
        types_v03.SendStreamingMessageSuccessResponse.model_validate_json(line.removeprefix("data: ")).result
        for line in lines
    ]
    finals = [item.final for item in results if isinstance(item, types_v03.TaskStatusUpdateEvent)]
    assert (finals[-1], any(finals[:-1])) == (True, False)
    assert isinstance(results[0], types_v03.Task)


async def test_running_legacy_task_is_followed_and_cancelled(gateway: Gateway) -> None:
    gateway.simulator.pause_streams()
    try:
        async with httpx.AsyncClient(timeout=60) as http:
            client = await connect_legacy(gateway.base_url, http)
            task = await send_whole(client, configuration={"returnImmediately": True})
            stream = client.subscribe(types.SubscribeToTaskRequest(id=task.id))
            assert (await anext(stream)).task.id == task.id
            cancelled = await client.cancel_task(types.CancelTaskRequest(id=task.id))
            assert cancelled.status.state == State.TASK_STATE_CANCELED
            rest = [item async for item in stream]
            assert rest[-1].status_update.status.state == State.TASK_STATE_CANCELED
    finally:
        gateway.simulator.resume_streams()


async def test_legacy_client_sets_push_notifications(hooked: Gateway, receiver: Receiver) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        client = await connect_legacy(hooked.base_url, http)
        task = await send_whole(client)
        config = types.TaskPushNotificationConfig(task_id=task.id, id="mine", url=f"{receiver.url}/hook")
        await client.create_task_push_notification_config(config)
        listed = await client.list_task_push_notification_configs(
            types.ListTaskPushNotificationConfigsRequest(task_id=task.id)
        )
        assert [item.id for item in listed.configs] == ["mine"]
        with pytest.raises(a2a_errors.InvalidParamsError):
            await client.create_task_push_notification_config(
                types.TaskPushNotificationConfig(task_id=task.id, url="http://example.com/x")
            )
        await client.delete_task_push_notification_config(
            types.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
        )


async def test_legacy_requests_need_a_key_and_the_task_of_its_owner(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    await keyring.create_key("bob")
    await keyring.create_key("reader", role="viewer")
    url = keyring.gateway.base_url
    async with httpx.AsyncClient(timeout=60) as http:
        response = await http.post(f"{url}/a2a", json=make_rpc("message/stream", {"message": make_message("Hello.")}))
        assert response.status_code == 401
    headers = {name: {"Authorization": f"Bearer {secret}"} for name, secret in keyring.secrets.items()}
    async with (
        httpx.AsyncClient(headers=headers["ada"], timeout=60) as ada_http,
        httpx.AsyncClient(headers=headers["bob"], timeout=60) as bob_http,
        httpx.AsyncClient(headers=headers["reader"], timeout=60) as reader_http,
    ):
        ada, bob = await connect_legacy(url, ada_http), await connect_legacy(url, bob_http)
        asked = await send_whole(ada, "Add a task to buy milk", metadata={"approval": "always"})
        for attempt in (
            lambda: bob.get_task(types.GetTaskRequest(id=asked.id)),
            lambda: bob.cancel_task(types.CancelTaskRequest(id=asked.id)),
            lambda: send_whole(bob, "yes", taskId=asked.id),
            lambda: send(bob, "yes", taskId=asked.id),
            lambda: anext(bob.subscribe(types.SubscribeToTaskRequest(id=asked.id))),
        ):
            with pytest.raises(a2a_errors.TaskNotFoundError):
                await attempt()
        for method in ("message/send", "message/stream"):
            rpc = make_rpc(method, {"message": make_message("Hello.")})
            assert (await reader_http.post(f"{url}/a2a", json=rpc)).status_code == 403


HOSTILE: dict[str, Any] = {
    "no params": None,
    "params is a list": [],
    "no message": {},
    "a message of the agent": {"message": make_message("x") | {"role": "agent"}},
    "an unknown part": {"message": make_message("x") | {"parts": [{"kind": "video", "url": "x"}]}},
    "bytes that are none": {
        "message": make_message("x")
        | {"parts": [{"kind": "file", "file": {"bytes": "AAAAA", "mimeType": "text/plain"}}]}
    },
    "a file at a URL": {
        "message": make_message("x") | {"parts": [{"kind": "file", "file": {"uri": "http://127.0.0.1:9/x"}}]}
    },
    "metadata with a bad option": {"message": make_message("x", metadata={"approval": {"a": 1}})},
    "deep data": {
        "message": make_message("x") | {"parts": [{"kind": "data", "data": {"a": json.loads("[" * 90 + "]" * 90)}}]}
    },
    "a huge text": {"message": make_message("x" * 1_000_001)},
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ["message/send", "message/stream"])
async def test_hostile_legacy_requests_are_errors_of_the_client(
    shared_gateway: Gateway, method: str, name: str
) -> None:
    reply = await shared_gateway.post("/a2a", make_rpc(method, HOSTILE[name]))
    assert reply.status in (200, 422), reply.body
    error = reply.body["error"]
    assert reply.status == 422 or error["code"] in (-32600, -32602, -32005), error
    assert "binascii" not in json.dumps(error)
    assert len(json.dumps(error)) < 20_000


async def test_legacy_method_with_a_later_version_is_refused(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.post("/a2a", make_rpc("tasks/get", {"id": "x"}), headers={"A2A-Version": "1.0"})
    assert reply.body["error"]["code"] == -32602

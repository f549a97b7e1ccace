"""Push notifications of A2A: delivery, credentials and the policy of their URLs."""

import asyncpg
import pytest
from a2a.types import a2a_pb2 as types
from a2a.utils import errors as a2a_errors
from google.protobuf.json_format import ParseDict

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_a2a import connect, send_whole
from tests.gateway.api.test_webhooks import KEYS, Receiver, hooked, receiver, serve, verify
from tests.stack import Gateway, JsonObject

pytestmark = pytest.mark.faults
__all__ = ["hooked", "receiver"]
APPROVAL = {"approval": "always"}


def list_states(receiver: Receiver) -> list[tuple[str, str]]:
    updates: list[JsonObject] = [message["statusUpdate"] for message in receiver.messages]
    for update in updates:
        ParseDict(update, types.TaskStatusUpdateEvent())
    return [(update["taskId"], update["status"]["state"]) for update in updates]


async def test_push_notifications_carry_token_and_credentials(
    hooked: Gateway, receiver: Receiver, db: asyncpg.Connection
) -> None:
    config = {
        "url": f"{receiver.url}/hook",
        "token": "secret-token",
        "authentication": {"scheme": "Bearer", "credentials": "secret-credentials"},
    }
    async with connect(hooked) as client:
        asked = await send_whole(
            client, "Add a task to rest", metadata=APPROVAL, configuration={"taskPushNotificationConfig": config}
        )
        await eventually(lambda: len(receiver.received) == 1)
        task = await send_whole(client, "yes", taskId=asked.id)
        await eventually(lambda: len(receiver.received) == 2)
        listed = await client.list_task_push_notification_configs(
            types.ListTaskPushNotificationConfigsRequest(task_id=task.id)
        )
    assert list_states(receiver) == [
        (asked.id, "TASK_STATE_INPUT_REQUIRED"),
        (asked.id, "TASK_STATE_COMPLETED"),
    ]
    assert receiver.messages[0]["statusUpdate"]["contextId"] == asked.context_id
    headers, body = receiver.received[0]
    assert headers["x-a2a-notification-token"] == "secret-token"
    assert headers["authorization"] == "Bearer secret-credentials"
    assert verify(headers, body, KEYS[0])
    assert [(item.token, item.authentication.credentials) for item in listed.configs] == [("secret-token", "")]
    stored = await db.fetch("SELECT p::text FROM push_configs p UNION ALL SELECT m::text FROM webhook_messages m")
    assert stored
    assert not any("secret-" in row[0] for row in stored)


async def test_push_config_of_an_ended_task_is_told_at_once_until_it_is_deleted(
    hooked: Gateway, receiver: Receiver
) -> None:
    async with connect(hooked, "HTTP+JSON") as client:
        task = await send_whole(client)
        config = types.TaskPushNotificationConfig(task_id=task.id, id="mine", url=f"{receiver.url}/hook")
        created = await client.create_task_push_notification_config(config)
        got = await client.get_task_push_notification_config(
            types.GetTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
        )
        assert (created.id, got.url) == ("mine", config.url)
        await eventually(lambda: len(receiver.received) == 1)
        await client.delete_task_push_notification_config(
            types.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
        )
        with pytest.raises(a2a_errors.TaskNotFoundError):
            await client.get_task_push_notification_config(
                types.GetTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
            )
    assert list_states(receiver) == [(task.id, "TASK_STATE_COMPLETED")]


async def test_push_urls_follow_the_policy_of_webhooks(
    database_url: str, simulator: Simulator, tools_url: str, receiver: Receiver, db: asyncpg.Connection
) -> None:
    async with serve(database_url, simulator, tools_url, receiver, webhook_private_targets=()) as gateway:
        async with connect(gateway) as client:
            task = await send_whole(client)
            refused = [
                types.TaskPushNotificationConfig(task_id=task.id, url=url)
                for url in ("http://example.com/x", "file:///etc/passwd", "http://user:pass@127.0.0.1/x", "")
            ]
            refused.append(
                types.TaskPushNotificationConfig(task_id=task.id, url=f"{receiver.url}/hook", token="a\r\nX-Evil: 1")
            )
            for config in refused:
                with pytest.raises(a2a_errors.InvalidParamsError):
                    await client.create_task_push_notification_config(config)
                assert (await gateway.get("/a2a/v1/tasks")).body["totalSize"] == 1
            permitted = types.TaskPushNotificationConfig(task_id=task.id, url=f"{receiver.url}/hook")
            await client.create_task_push_notification_config(permitted)

        async def has_been_tried() -> bool:
            return await db.fetchval("SELECT count(*) FROM webhook_messages WHERE error IS NOT NULL") == 1

        await eventually(has_been_tried)
    assert not receiver.received


async def test_number_of_push_configs_is_bounded(hooked: Gateway, receiver: Receiver) -> None:
    async with connect(hooked) as client:
        asked = await send_whole(client, "Add a task to rest", metadata=APPROVAL)
        for number in range(17):
            config = types.TaskPushNotificationConfig(task_id=asked.id, id=str(number), url=f"{receiver.url}/{number}")
            if number < 16:
                await client.create_task_push_notification_config(config)
            else:
                with pytest.raises(a2a_errors.InvalidParamsError, match="at most 16"):
                    await client.create_task_push_notification_config(config)

"""Tasks of A2A that wait for a sign-in."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from a2a.types import a2a_pb2 as types
from google.protobuf.json_format import MessageToDict

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_a2a import State, connect, fold_stream, list_events, send, send_whole, wait_until_completed
from tests.gateway.api.test_a2a_push import list_states
from tests.gateway.api.test_sign_in import Browser, get_connected_server, protected_server
from tests.gateway.api.test_webhooks import Receiver, make_settings, receiver
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, find_free_port, serve_gateway

pytestmark = pytest.mark.faults
__all__ = ["protected_server", "receiver"]


@asynccontextmanager
async def serve_vault(
    database_url: str, simulator: Simulator, server: OAuthMcpServer, directory: Path, **settings: Any
) -> AsyncGenerator[Gateway]:
    """Serve a gateway whose MCP server wants a sign-in."""
    port = find_free_port()
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"vault": {"url": server.url, "share": "user"}}}))
    settings |= {"gateway_public_url": f"http://127.0.0.1:{port}", "gateway_data_dir": directory, "mcp_config": file}
    async with serve_gateway(database_url, simulator, None, port=port, **settings) as gateway:
        await eventually(lambda: get_connected_server(gateway))
        yield gateway


async def test_sign_in_is_auth_required_and_the_task_goes_on_after_it(
    database_url: str, simulator: Simulator, protected_server: OAuthMcpServer, receiver: Receiver, tmp_path: Path
) -> None:
    settings = make_settings(receiver)
    async with (
        serve_vault(database_url, simulator, protected_server, tmp_path, **settings) as gateway,
        connect(gateway) as client,
    ):
        push = {"taskPushNotificationConfig": {"url": f"{receiver.url}/hook"}}
        _, states, events = fold_stream(await send(client, "call vault_sign_in {}", configuration=push))
        assert states[-1] == State.TASK_STATE_AUTH_REQUIRED
        assert (events[-1]["type"], events[-1]["kind"]) == ("input.required", "authorization")
        waiting = types.ListTasksRequest(status=State.TASK_STATE_AUTH_REQUIRED)

        async def list_waiting() -> list[types.Task]:
            return list((await client.list_tasks(waiting)).tasks)

        [listed] = await eventually(list_waiting)
        assert listed.status.state == State.TASK_STATE_AUTH_REQUIRED
        asking = types.ListTasksRequest(status=State.TASK_STATE_INPUT_REQUIRED)
        assert not (await client.list_tasks(asking)).tasks
        task = await client.get_task(types.GetTaskRequest(id=listed.id))
        assert MessageToDict(task.status.message.parts[1].data)["url"] == events[-1]["url"]
        await eventually(lambda: receiver.received)
        status, _ = await Browser(gateway.session).sign_in(events[-1]["url"])
        assert status == 200
        await wait_until_completed(client, task.id)
        done = await client.get_task(types.GetTaskRequest(id=task.id))
        assert [event["outcome"] for event in list_events(done.history) if event["type"] == "tool.result"] == ["ok"]
        await eventually(lambda: len(receiver.received) == 2)
        assert list_states(receiver) == [
            (task.id, "TASK_STATE_AUTH_REQUIRED"),
            (task.id, "TASK_STATE_COMPLETED"),
        ]


async def test_sign_in_is_declined_by_a_message(
    database_url: str, simulator: Simulator, protected_server: OAuthMcpServer, tmp_path: Path
) -> None:
    async with (
        serve_vault(database_url, simulator, protected_server, tmp_path) as gateway,
        connect(gateway, "HTTP+JSON") as client,
    ):
        asked = await send_whole(client, "call vault_sign_in {}")
        assert asked.status.state == State.TASK_STATE_AUTH_REQUIRED
        task = await send_whole(client, "no", taskId=asked.id)
        assert task.status.state == State.TASK_STATE_COMPLETED
        assert [event["outcome"] for event in list_events(task.history) if event["type"] == "tool.result"] == ["denied"]

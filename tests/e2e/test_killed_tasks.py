"""Tasks of A2A and threads of ChatKit whose workers are killed."""

import aiohttp
import pytest
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2 as types

from tests.e2e.cluster import Cluster
from tests.eventually import eventually
from tests.gateway.api.test_a2a import connect, fold_stream, join_text, make_request
from tests.gateway.api.test_chatkit import create, get_text, list_items, open_stream

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
LEASE = {"HEARTBEAT_SECONDS": "0.5", "HEARTBEAT_TIMEOUT_SECONDS": "4"}
NUMBERS = " ".join(map(str, range(1, 301)))


async def test_task_of_a_killed_worker_is_followed_to_its_end_at_another(cluster: Cluster) -> None:
    async with (
        cluster.run_worker(**LEASE) as first,
        cluster.run_worker(**LEASE) as second,
        connect(second) as client,
        connect(first, "HTTP+JSON") as lost,
    ):
        stream = lost.send_message(make_request("count to 300"))
        task_id = (await anext(stream)).task.id
        while not (await anext(stream)).HasField("artifact_update"):
            pass
        subscription = client.subscribe(types.SubscribeToTaskRequest(id=task_id))
        snapshot = await anext(subscription)
        first.kill()
        with pytest.raises(A2AClientError):
            [item async for item in stream]
        followed = [snapshot, *[item async for item in subscription]]
        task = await client.get_task(types.GetTaskRequest(id=task_id))
    assert task.status.state == types.TaskState.TASK_STATE_COMPLETED
    text, states, _ = fold_stream(followed)
    assert NUMBERS in text
    assert text == join_text(task.artifacts)
    assert states[-1] == types.TaskState.TASK_STATE_COMPLETED


async def test_thread_of_a_killed_worker_is_read_at_another(cluster: Cluster) -> None:
    async with cluster.run_worker(**LEASE) as first, cluster.run_worker(**LEASE) as second:
        async with open_stream(first, create("count to 300")) as events:
            thread_id = (await anext(events)).thread.id
            while (await anext(events)).type != "thread.item.updated":
                pass
            first.kill()
            with pytest.raises(aiohttp.ClientError):
                [event async for event in events]

        async def has_answer() -> bool:
            items = (await list_items(second, thread_id)).data
            return items[0].type == "assistant_message" and NUMBERS in get_text(items[0])

        await eventually(has_answer, timeout_seconds=120)

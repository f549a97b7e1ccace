"""Legacy MCP sessions of a worker that is frozen."""

import asyncio
from typing import Any

from tests.e2e.cluster import Cluster, Worker
from tests.effect_server import serve_effects
from tests.eventually import eventually
from tests.gateway.test_mcp_session_forwarding import INITIALIZE_REQUEST, LIST_REQUEST, MCP_HEADERS

REQUESTS = 150
"""More than the socket of a frozen process accepts."""
Answer = tuple[int, str | None, Any]


async def send(worker: Worker, session: dict[str, str], body: Any, method: str = "POST") -> Answer:
    """Send a request; return its status, `Retry-After` and body."""
    async with worker.session.request(
        method, f"{worker.base_url}/mcp", json=body, headers=MCP_HEADERS | session
    ) as response:
        is_error = response.content_type == "application/json"
        return response.status, response.headers.get("Retry-After"), await response.json() if is_error else None


async def open_session(worker: Worker) -> dict[str, str]:
    async with worker.session.post(f"{worker.base_url}/mcp", json=INITIALIZE_REQUEST, headers=MCP_HEADERS) as response:
        return {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}


def make_payment(order: str) -> Any:
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "pay", "arguments": {"order": order}}}


async def test_requests_of_a_frozen_worker_s_session_are_refused_in_time_and_never_run(cluster: Cluster) -> None:
    async with (
        serve_effects() as effects,
        cluster.run_worker(MCP_SERVER_URL=effects.url) as frozen,
        cluster.run_worker(MCP_SERVER_URL=effects.url) as other,
    ):
        session = await open_session(frozen)
        await eventually(lambda: is_served(other, session))
        frozen.freeze()
        async with asyncio.timeout(60):  # the limit is 5 seconds, which this machine may not keep
            answers = await asyncio.gather(
                *(send(other, session, make_payment(f"lost-{number}")) for number in range(REQUESTS)),
                send(other, session, make_payment("x" * 900_000)),
                send(other, session, None, "GET"),
                send(other, session, None, "DELETE"),
            )
            refusals = {(status, wait, body["error"]["code"]) for status, wait, body in answers}
            assert refusals == {(503, "5", "session_unavailable")}
            assert (await other.chat("What is 2+2?")).status == 200
            assert await is_served(other, await open_session(other))
        frozen.thaw()
        await eventually(lambda: is_served(other, session))
        status, _, _ = await send(other, session, make_payment("paid"))
        assert status == 200
        await eventually(lambda: effects.payments.total())
    assert effects.payments == {"paid": 1}


async def is_served(worker: Worker, session: dict[str, str]) -> bool:
    return (await send(worker, session, LIST_REQUEST))[0] == 200

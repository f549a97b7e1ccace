"""Traces of the whole stack in Arize Phoenix: `make real-servers` installs it."""

import os
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.simulator import Simulator
from tests.e2e.running_stack import START_SECONDS
from tests.e2e.traced_turn import CALLER_SPAN, PROMPT, TRACE, run_interrupted_turn
from tests.eventually import eventually
from tests.stack import find_free_port

PHOENIX = Path(__file__).resolve().parents[2] / ".real" / "telemetry" / "bin" / "phoenix"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PHOENIX.exists(), reason="needs `make real-servers`: Arize Phoenix"),
]
SPANS = "/v1/projects/default/spans"


@dataclass
class Phoenix:
    """A running Phoenix, and a client of its API."""

    url: str
    session: aiohttp.ClientSession

    async def read_spans(self) -> list[dict[str, Any]]:
        """Return the spans of the caller's trace, the oldest first."""
        async with self.session.get(f"{self.url}{SPANS}", params={"trace_id": TRACE, "limit": 1000}) as response:
            if response.status == 404:  # the project comes with its first span
                return []
            assert response.status == 200, await response.text()
            return sorted((await response.json())["data"], key=lambda span: span["start_time"])


@pytest.fixture
async def phoenix(tmp_path: Path) -> AsyncGenerator[Phoenix]:
    port, grpc_port = find_free_port(), find_free_port()
    environment = os.environ | {
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    output = tmp_path / "output"
    with output.open("wb") as out:
        process = subprocess.Popen([PHOENIX, "serve"], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}"

            async def is_ready() -> bool:
                assert process.poll() is None, output.read_text()
                try:
                    async with session.get(f"{url}/healthz") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(is_ready, timeout_seconds=START_SECONDS)
            yield Phoenix(url, session)
    finally:
        process.terminate()
        process.wait(30)


async def test_interrupted_turn_is_one_trace_in_phoenix(phoenix: Phoenix, simulator: Simulator) -> None:
    async def has_arrived() -> bool:
        names = [span["name"] for span in await phoenix.read_spans()]
        return names.count("invoke_agent agent-gateway") == 2 and sum(name.startswith("tools/") for name in names) == 4

    await run_interrupted_turn(phoenix.url, simulator, has_arrived)
    spans = await phoenix.read_spans()
    by_id = {span["context"]["span_id"]: span for span in spans}

    def list_ancestors(span: dict[str, Any]) -> list[str]:
        parent = by_id.get(span["parent_id"])
        return [] if parent is None else [parent["name"], *list_ancestors(parent)]

    def find(name: str) -> list[dict[str, Any]]:
        return [span for span in spans if span["name"].startswith(name)]

    assert {span["context"]["trace_id"] for span in spans} == {TRACE}
    (request,) = find("POST /api/v1/chat")
    assert request["parent_id"] == CALLER_SPAN
    turns = find("invoke_agent")
    assert [list_ancestors(turn) for turn in turns] == [[request["name"]]] * 2
    assert [turn["attributes"]["gateway.outcome"] for turn in turns] == ["waiting", "completed"]
    fallbacks = [[event["name"] for event in span["events"]] for span in find("chat ")]
    assert ["gateway.retry", "gateway.fallback"] in fallbacks
    for tool in ("calculator", "delete_task"):
        client, server = find(f"tools/call {tool}")
        assert server["parent_id"] == client["context"]["span_id"]  # the MCP server's span is below ours
        assert list_ancestors(client) == [f"execute_tool {tool}", turns[0]["name"], request["name"]]
    assert find("wait approval")
    assert PROMPT not in repr(spans)

"""`docs/api.md`: its tables list every route, and its curl commands work."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from gateway.simulator import Simulator
from gateway.store.api_keys import NewKey
from tests.stack import Gateway, serve_gateway

DOCUMENT = (Path(__file__).parent.parent.parent.parent / "docs" / "api.md").read_text()
ROWS = re.findall(r"^\| `(\w+) (/[^`]*)` \| [^|]* \| `(curl .*)` \|$", DOCUMENT, re.MULTILINE)
REQUEST = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/embeddings",'
    ' "body": {"model": "nomic-embed-text-v1_5", "input": "hello"}}'
)

EXPECTED_REFUSALS = {
    "/approve": b"has not changed",
    "/sign-in": b"its entry contains the credentials",
    ":subscribe": b"The task has ended",
    "/pushNotificationConfigs": b"Push Notification is not supported",
    "/pushNotificationConfigs/{push_id}": b"no such push notification config",
}
"""Error text of the documented commands that fail.

The key is the end of the command's path.
"""


def test_api_document_lists_every_route(gateway_routes: set[tuple[str, str]]) -> None:
    listed_routes = {(method, path) for method, path, line in ROWS if "curl http://127.0.0.1:8001" not in line}
    assert listed_routes == gateway_routes


@pytest.fixture
def gateway_routes() -> set[tuple[str, str]]:
    from gateway.app import create_app
    from gateway.config import Settings

    settings = Settings(
        _env_file=None, database_url="postgresql://x/y", groq_api_key="x", mcp_server_url="http://x/mcp"
    )  # type: ignore[call-arg,arg-type]
    paths = create_app(settings).openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    """A gateway with every route, and without rate limits."""
    settings = {"upstream_files": True, "rate_limit_requests": 1_000_000}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as running:
        yield running


async def create_revocable_key(gateway: Gateway) -> tuple[dict[str, str], str]:
    """Create a key to revoke, and an admin key for curl.

    A gateway with keys requires authentication. Returns the variables of the document and the options of curl.
    """
    created, _ = await gateway.state.keys.create_key(NewKey("ada"), by="test")
    _, secret = await gateway.state.keys.create_key(NewKey("local", role="admin"), by="test")
    return {"KEY": str(created.id)}, f"-H 'X-API-Key: {secret}'"


async def create_resources(gateway: Gateway) -> dict[str, str]:
    """Create a resource for every variable of the document."""
    turn = (await gateway.chat("What is 23*19?", conversation_id="new")).body
    waiting_turn = (await gateway.chat("Add a task to rest", approval="always")).body
    response = (await gateway.post("/v1/responses", {"input": "What is 23*19?"})).body
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", REQUEST, filename="requests.jsonl")
    async with gateway.session.post(f"{gateway.base_url}/v1/files", data=form) as uploaded:
        file = (await uploaded.json())["id"]
    batch = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return {
        "FILE": file,
        "BATCH": (await gateway.post("/v1/batches", batch)).body["id"],
        "TURN": turn["turn_id"],
        "CONVERSATION": turn["conversation_id"],
        "ITEM": f"in_{UUID(turn['turn_id']).hex}_0",
        "RESPONSE": response["id"],
        "WAITING": waiting_turn["turn_id"],
        "INPUT": waiting_turn["inputs"][0]["input_id"],
    }


@pytest.mark.faults
@pytest.mark.timeout(240)  # some fifty curl processes, one after the other
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_every_curl_line_works(gateway: Gateway, open_tools_url: str, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text(REQUEST)
    tools = open_tools_url.removesuffix("/mcp")
    answers: dict[tuple[str, str], str] = {}
    option, variables = "", dict[str, str]()
    for method, path, line in sorted(ROWS, key=lambda row: row[1].startswith("/api/v1/keys")):
        if path.startswith("/api/v1/keys"):
            variables, option = await create_revocable_key(gateway)
        else:
            variables = await create_resources(gateway)
        command = line.replace("http://127.0.0.1:8000", gateway.base_url).replace("http://127.0.0.1:8001", tools)
        process = await asyncio.create_subprocess_shell(
            command.replace("curl ", f"curl -sS --fail-with-body {option} ", 1),
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        expected = next((message for suffix, message in EXPECTED_REFUSALS.items() if path.endswith(suffix)), b"")
        assert process.returncode == 0 or (expected and expected in output), (line, output.decode())
        answers[method, path] = output.decode()
    assert "437" in answers["POST", "/stream"]
    assert answers["POST", "/api/v1/chat/stream"].endswith("data: [DONE]\n\n")
    assert json.loads(answers["POST", "/tools/call"]) == {"result": "5*9 = 45"}
    exported: Any = json.loads(next(tmp_path.glob("conversation-*.json")).read_text())
    assert exported["turns"]

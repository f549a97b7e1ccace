"""`docs/api.md`: its tables hold every route, and its curl lines work."""

import asyncio
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.store.api_keys import NewKey
from tests.stack import Gateway

DOCUMENT = (Path(__file__).parent.parent.parent.parent / "docs" / "api.md").read_text()
ROWS = re.findall(r"^\| `(\w+) (/[^`]*)` \| [^|]* \| `(curl .*)` \|$", DOCUMENT, re.MULTILINE)

REFUSED = {"/approve": b"has not changed", "/sign-in": b"its entry contains the credentials"}
"""What a line of which the document says that it is refused is told."""


def test_api_document_lists_every_route(gateway_routes: set[tuple[str, str]]) -> None:
    of_gateway = {(method, path) for method, path, line in ROWS if "curl http://127.0.0.1:8001" not in line}
    assert of_gateway == gateway_routes


@pytest.fixture
def gateway_routes() -> set[tuple[str, str]]:
    from gateway.app import create_app
    from gateway.config import Settings

    settings = Settings(
        _env_file=None, database_url="postgresql://x/y", groq_api_key="x", mcp_server_url="http://x/mcp"
    )  # type: ignore[call-arg,arg-type]
    paths = create_app(settings).openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


async def key(gateway: Gateway) -> tuple[dict[str, str], str]:
    """A key to revoke; and the option with which curl calls from now on, for somebody who asks for one is there."""
    made, _ = await gateway.state.keys.create(NewKey("ada"), by="test")
    _, secret = await gateway.state.keys.create(NewKey("local", role="admin"), by="test")
    return {"KEY": str(made.id)}, f"-H 'X-API-Key: {secret}'"


async def ids(gateway: Gateway) -> dict[str, str]:
    """Something for every variable of the document."""
    turn = (await gateway.chat("What is 23*19?", conversation_id="new")).body
    waiting = (await gateway.chat("Add a task to rest", approval="always")).body
    response = (await gateway.post("/v1/responses", {"input": "What is 23*19?"})).body
    return {
        "TURN": turn["turn_id"],
        "CONVERSATION": turn["conversation_id"],
        "RESPONSE": response["id"],
        "WAITING": waiting["turn_id"],
        "INPUT": waiting["inputs"][0]["input_id"],
    }


@pytest.mark.timeout(240)  # some fifty curl processes, one after the other
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_every_curl_line_works(gateway: Gateway, tools_url: str, tmp_path: Path) -> None:
    tools = tools_url.removesuffix("/mcp")
    answers: dict[tuple[str, str], str] = {}
    option, known = "", dict[str, str]()
    for method, path, line in sorted(ROWS, key=lambda row: row[1].startswith("/api/v1/keys")):
        if path.startswith("/api/v1/keys"):
            known, option = await key(gateway)
        else:
            known = await ids(gateway)
        there = line.replace("http://127.0.0.1:8000", gateway.base_url).replace("http://127.0.0.1:8001", tools)
        process = await asyncio.create_subprocess_shell(
            there.replace("curl ", f"curl -sS --fail-with-body {option} ", 1),
            cwd=tmp_path,
            env=os.environ | known,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        expected = next((told for end, told in REFUSED.items() if path.endswith(end)), b"")
        assert process.returncode == 0 or (expected and expected in out), (line, out.decode())
        answers[method, path] = out.decode()
    assert "437" in answers["POST", "/stream"]
    assert answers["POST", "/api/v1/chat/stream"].endswith("data: [DONE]\n\n")
    assert json.loads(answers["POST", "/tools/call"]) == {"result": "5*9 = 45"}
    exported: Any = json.loads(next(tmp_path.glob("conversation-*.json")).read_text())
    assert exported["turns"]

"""Schemathesis over the OpenAPI document: whatever is sent, no server error and no answer that is not declared.

It is not asked about laxity (numbers that come as text are taken) nor about rules that no schema can tell (a date that
is past is refused): `negative_data_rejection` and `positive_data_acceptance`.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.stack import Gateway, serve_gateway

LAX = "negative_data_rejection,positive_data_acceptance"


@pytest.mark.parametrize(("caller", "examples"), [("admin", 2), ("nobody", 1)])
async def test_generated_requests_cause_no_server_error_or_undeclared_response(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path, caller: str, examples: int
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_enabled=False) as gateway:
        ring = Keyring(gateway)
        await ring.make("ada", role="admin")
        options = [] if caller == "nobody" else ["--header", f"X-API-Key: {ring.secrets['ada']}"]
        code, told = await schemathesis(gateway, tmp_path, *options, "--max-examples", str(examples))
        assert code == 0, told


HALF = r"\ud800"
CHAT = r'{"messages": [{"role": "user", "content": %s}]}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/chat", CHAT % f'"{HALF}"'),
        ("/v1/chat/completions", CHAT % f'[{{"type": "text", "text": "{HALF}"}}]'),
        ("/v1/responses", f'{{"input": "x", "metadata": {{"{HALF}": "x"}}}}'),
        ("/stream", f'{{"prompt": "x{HALF}"}}'),
        ("/api/v1/tools/calculator", f'{{"expression": "{HALF}"}}'),
        ("/api/v1/mcp/prompts/plan_day", f'{{"{HALF}": "x"}}'),
        ("/api/v1/mcp/servers", f'{{"name": "a", "url": "http://127.0.0.1:9/mcp", "deny": ["{HALF}"]}}'),
        ("/mcp", f'{{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {{"a": "{HALF}"}}}}'),
    ],
)
async def test_lone_surrogate_is_rejected_as_a_client_error(standing: Gateway, path: str, body: str) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    url = f"{standing.base_url}{path}"
    raw = body.replace(HALF, "\ud800")
    halves = [body.encode(), body.encode("utf-16"), *(raw.encode(c, "surrogatepass") for c in ("utf-8", "utf-16"))]
    for half in halves:
        async with standing.session.post(url, data=half, headers=headers) as response:
            assert response.status in (400, 422), half
    whole = body.replace(HALF, r"\ud83d\ude00")
    async with standing.session.post(url, data=whole, headers=headers) as response:
        assert response.status < 500
        assert "not valid JSON" not in await response.text()
    assert {server.state for server in standing.state.toolbox.servers() if server.name == "tools"} == {"up"}


async def test_nul_character_is_replaced(gateway: Gateway) -> None:
    metadata = {"nul": "a\x00b", "text": "c\\u0000d"}
    response = (await gateway.post("/v1/responses", {"input": "Hello", "metadata": metadata})).body
    kept = (await gateway.get(f"/v1/responses/{response['id']}")).body
    assert kept["metadata"] == {"nul": "a\ufffdb", "text": "c\\u0000d"}
    assert (await gateway.get("/api/v1/usage?user=%00")).status == 422


async def schemathesis(gateway: Gateway, directory: Path, *options: str) -> tuple[int, str]:
    """Its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{gateway.base_url}/openapi.json",
        "--seed",
        "20261121",
        "--phases",
        "examples,fuzzing",
        "--checks",
        "all",
        "--exclude-checks",
        LAX,
        "--warnings",
        "off",
        "--no-shrink",
        "--request-timeout",
        "5",
        "--generation-database",
        "none",
        *options,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode or 0, out.decode()

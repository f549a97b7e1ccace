"""Real hosts that sign in at a real authorization server.

They know the address of `/mcp` alone.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, async_playwright
from pydantic import SecretStr
from starlette.responses import PlainTextResponse

from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from tests.e2e.authorization_server import (
    AuthorizationServer,
    run_authorization_server,
    run_host,
    sign_in_by_hand,
    visit_printed_addresses,
)
from tests.e2e.node import NODE, NODE_22, require_node
from tests.eventually import eventually
from tests.gateway_console.running_console import CHROMIUM, needs_chromium
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway

pytestmark = require_node("oidc-provider")
CLAUDE_CODE = "@anthropic-ai/claude-code-linux-x64"
BIN = NODE / "node_modules" / ".bin"


@asynccontextmanager
async def serve_protected_gateway(
    server: AuthorizationServer, database_url: str, simulator: Simulator, tools_url: str, **settings: Any
) -> AsyncGenerator[Gateway]:
    """Serve a gateway that takes the tokens of an authorization server."""
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    defaults: dict[str, Any] = {
        "jwt_issuer": server.issuer,
        "jwt_audience": f"{address}/mcp",
        "jwt_scope_claim": "scope",
        "jwt_leeway_seconds": 0,
        "gateway_public_url": address,
    }
    async with serve_gateway(database_url, simulator, tools_url, port=port, **defaults | settings) as gateway:
        yield gateway


@pytest.fixture
async def authorization_server() -> AsyncGenerator[AuthorizationServer]:
    async with run_authorization_server() as server:
        yield server


@pytest.fixture
async def protected_gateway(
    authorization_server: AuthorizationServer, database_url: str, simulator: Simulator, tools_url: str
) -> AsyncGenerator[Gateway]:
    async with serve_protected_gateway(authorization_server, database_url, simulator, tools_url) as gateway:
        yield gateway


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_typescript_sdk_signs_in_and_refreshes_an_expired_token(
    protected_gateway: Gateway, authorization_server: AuthorizationServer, era: str
) -> None:
    await authorization_server.send_command("lifetime", 2)
    steps = ["list", "add", "expire", "tasks", *(["end"] if era == "legacy" else [])]
    url = f"{protected_gateway.base_url}/mcp"
    output = await run_host(authorization_server, str(NODE_22), str(NODE / "mcp_sign_in.mjs"), url, era, *steps)
    result = json.loads(output.splitlines()[-1])
    assert "calculator" in result["tools"]
    assert (result["signIns"], result["refreshes"] >= 1) == (1, True)
    assert "Buy milk" in result["texts"][-1]
    assert era != "legacy" or result["ended"] == 404
    assert {entry["audience"] for entry in await authorization_server.read_log("issued")} == {url}
    assert not await authorization_server.read_log("error")


async def test_typescript_sdk_signs_in_again_for_a_missing_scope(
    protected_gateway: Gateway, authorization_server: AuthorizationServer
) -> None:
    await authorization_server.send_command("grant", "history")
    command = (str(NODE_22), str(NODE / "mcp_sign_in.mjs"), f"{protected_gateway.base_url}/mcp", "legacy", "calculate")
    result = json.loads((await run_host(authorization_server, *command)).splitlines()[-1])
    assert result["signIns"] == 2
    assert "45" in result["texts"][0]
    scopes = [set(entry["issued"].split()) for entry in await authorization_server.read_log("issued")]
    assert "tools" not in scopes[0]
    assert "tools" in scopes[1]


async def test_typescript_sdk_gets_a_token_for_a_toolset(
    authorization_server: AuthorizationServer, database_url: str, simulator: Simulator, tools_url: str
) -> None:
    key = "the-key-of-the-administrator"
    async with serve_protected_gateway(
        authorization_server, database_url, simulator, tools_url, api_key=SecretStr(key)
    ) as gateway:
        toolset = {"name": "sums", "tools": ["calculator"]}
        created = await gateway.post("/api/v1/toolsets", toolset, headers={"X-API-Key": key})
        assert created.status == 201
        url = f"{gateway.base_url}/mcp/sums"
        for address in (url, f"{url}/"):
            command = (str(NODE_22), str(NODE / "mcp_sign_in.mjs"), address, "auto", "list", "calculate")
            result = json.loads((await run_host(authorization_server, *command)).splitlines()[-1])
            assert result["tools"] == ["calculator"]
            assert "45" in result["texts"][0]
    assert {entry["audience"] for entry in await authorization_server.read_log("issued")} == {url}


async def test_keys_rotate_while_hosts_have_sessions(
    protected_gateway: Gateway, authorization_server: AuthorizationServer
) -> None:
    url = f"{protected_gateway.base_url}/mcp"
    before = await sign_in_by_hand(authorization_server, url)
    assert (await protected_gateway.get("/api/v1/tools", headers=before)).status == 200
    await authorization_server.send_command("rotate")
    after = await sign_in_by_hand(authorization_server, url)

    async def is_accepted() -> bool:  # keys are fetched every five seconds at most
        await asyncio.sleep(0.1)  # far below the rate limit
        return (await protected_gateway.get("/api/v1/tools", headers=after)).status == 200

    await eventually(is_accepted)
    assert (await protected_gateway.get("/api/v1/tools", headers=before)).status == 401


async def test_token_for_another_resource_is_of_no_use(
    protected_gateway: Gateway, authorization_server: AuthorizationServer
) -> None:
    others = "https://others.example/mcp"
    foreign = await sign_in_by_hand(authorization_server, others)
    for path in ("/mcp", "/api/v1/tools"):
        assert (await protected_gateway.post(path, {}, headers=foreign)).status == 401
    assert {entry["audience"] for entry in await authorization_server.read_log("issued")} == {others}
    id_token = await sign_in_by_hand(authorization_server, None, scope="openid", token="id_token")
    assert (await protected_gateway.post("/mcp", {}, headers=id_token)).status == 401


@require_node("mcp-remote")
async def test_mcp_remote_signs_in_for_a_stdio_host(
    protected_gateway: Gateway, authorization_server: AuthorizationServer, tmp_path: Path
) -> None:
    url = f"{protected_gateway.base_url}/mcp"
    remote = StdioServerParameters(
        command="node",
        args=[str(BIN / "mcp-remote"), url, str(find_free_port())],
        env={"MCP_REMOTE_CONFIG_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    for sign_ins in (1, 1):  # the second host finds the token
        read_end, write_end = os.pipe()
        visits = asyncio.create_task(visit_printed_addresses(authorization_server, read_end, "ada"))
        with os.fdopen(write_end, "w") as errors:
            async with asyncio.timeout(90), Client(stdio_client(remote, errlog=errors)) as host:
                result = await host.call_tool("calculator", {"expression": "5*9"})
                assert result.structured_content == {"expression": "5*9", "result": 45}
        await visits
        assert len(await authorization_server.read_log("registered")) == sign_ins
    assert {entry["user"] for entry in await authorization_server.read_log("issued")} == {"ada"}


@require_node("@modelcontextprotocol/inspector")
async def test_inspector_signs_in_and_keeps_its_token(
    protected_gateway: Gateway, authorization_server: AuthorizationServer, tmp_path: Path
) -> None:
    target = ("--cli", f"{protected_gateway.base_url}/mcp", "--transport", "http", "--format", "json", "-q")
    call = ("--method", "tools/call", "--tool-name", "calculator", "--tool-args-json", '{"expression": "5*9"}')
    callback = f"http://127.0.0.1:{find_free_port()}/oauth/callback"
    for options in (("--callback-url", callback), ("--stored-auth-only",)):
        command = (str(BIN / "mcp-inspector"), *target, *options, *call)
        output = await run_host(authorization_server, *command, HOME=str(tmp_path), MCP_INSPECTOR_SECRET_STORE="file")
        result = json.loads(output.splitlines()[-1])["result"]
        assert result["structuredContent"] == {"expression": "5*9", "result": 45}
    assert len(await authorization_server.read_log("registered")) == 1


@needs_chromium
@require_node("@modelcontextprotocol/inspector")
async def test_inspector_signs_in_from_its_page(
    protected_gateway: Gateway, authorization_server: AuthorizationServer, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{find_free_port()}"
    settings = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "MCP_INSPECTOR_SECRET_STORE": "file"}
    settings |= {"MCP_AUTO_OPEN_ENABLED": "false", "CLIENT_PORT": url.rpartition(":")[2]}
    settings |= {"MCP_SANDBOX_PORT": str(find_free_port()), "MCP_INSPECTOR_API_TOKEN": "token-of-the-tests"}
    target = ("--transport", "http", "--server-url", f"{protected_gateway.base_url}/mcp")
    inspector = await asyncio.create_subprocess_exec(str(BIN / "mcp-inspector"), "--web", *target, env=settings)
    try:
        await eventually(partial(is_listening, url))
        async with open_page() as page:
            await page.goto(f"{url}?MCP_INSPECTOR_API_TOKEN=token-of-the-tests")
            await page.get_by_role("switch").first.dispatch_event("click")
            await page.get_by_placeholder("Enter any login").fill("ada")
            await page.get_by_placeholder("and password").fill("any")
            await page.get_by_role("button", name="Sign-in").click()
            await page.get_by_role("button", name="Continue").click()
            await page.get_by_text("Authentication succeeded.").wait_for()
            await page.get_by_text("Tools", exact=True).first.click()
            await page.get_by_text("calculator").first.wait_for()
    finally:
        inspector.terminate()
        await inspector.wait()
    assert [entry["user"] for entry in await authorization_server.read_log("issued")] == ["ada"]


PAGE_SCRIPT = """async ([gateway, token]) => {
  const accept = 'application/json, text/event-stream'
  const plain = { 'Content-Type': 'application/json', Accept: accept, 'MCP-Protocol-Version': '2025-11-25' }
  const headers = { ...plain, Authorization: token }
  const clientInfo = { name: 'page', version: '1' }
  const params = { protocolVersion: '2025-11-25', capabilities: {}, clientInfo }
  const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'initialize', params })
  const refused = await fetch(`${gateway}/mcp`, { method: 'POST', headers: plain, body })
  const challenge = refused.headers.get('WWW-Authenticate')
  const url = challenge.match(/resource_metadata="([^"]+)"/)[1]
  const metadata = await (await fetch(url, { headers: { 'MCP-Protocol-Version': '2025-11-25' } })).json()
  const opened = await fetch(`${gateway}/mcp`, { method: 'POST', headers, body })
  const session = { ...headers, 'Mcp-Session-Id': opened.headers.get('Mcp-Session-Id') }
  const ended = await fetch(`${gateway}/mcp`, { method: 'DELETE', headers: session })
  const gone = await fetch(`${gateway}/mcp`, { method: 'POST', headers: session, body })
  return [refused.status, metadata.resource, opened.status, ended.status, gone.status]
}"""


@needs_chromium
@pytest.mark.parametrize("is_allowed", [True, False])
async def test_page_of_another_origin_reads_the_challenge_if_cors_allows_it(
    authorization_server: AuthorizationServer, database_url: str, simulator: Simulator, tools_url: str, is_allowed: bool
) -> None:
    async with (
        serve_asgi(PlainTextResponse("a page")) as origin,
        serve_protected_gateway(
            authorization_server, database_url, simulator, tools_url, cors_origins=origin if is_allowed else ""
        ) as gateway,
        open_page() as page,
    ):
        token = (await sign_in_by_hand(authorization_server, f"{gateway.base_url}/mcp"))["Authorization"]
        await page.goto(origin)
        called = page.evaluate(PAGE_SCRIPT, [gateway.base_url, token])
        if is_allowed:
            assert await called == [401, f"{gateway.base_url}/mcp", 200, 200, 404]
        else:
            with pytest.raises(PlaywrightError, match="Failed to fetch"):
                await called


async def is_listening(url: str) -> bool:
    """Return whether a server answers at a URL."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url):
            return True
    except aiohttp.ClientConnectorError:
        return False


@asynccontextmanager
async def open_page() -> AsyncGenerator[Page]:
    """Open a page in Chromium that reaches this machine only."""
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield await browser.new_page()
        await browser.close()


@require_node(CLAUDE_CODE)
async def test_claude_code_signs_in_and_calls_a_tool(
    authorization_server: AuthorizationServer, database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> None:
    key = "the-key-of-the-model-for-claude-code"
    claude = str(NODE / "node_modules" / CLAUDE_CODE / "claude")
    quiet = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY")
    async with serve_protected_gateway(
        authorization_server, database_url, simulator, tools_url, api_key=SecretStr(key)
    ) as gateway:

        async def run_claude(*arguments: str) -> str:
            settings = {"ANTHROPIC_BASE_URL": gateway.base_url, "ANTHROPIC_AUTH_TOKEN": key}
            settings |= {"HOME": str(tmp_path), **dict.fromkeys(quiet, "1")}
            return await run_host(authorization_server, claude, *arguments, cwd=tmp_path, **settings)

        await run_claude("mcp", "add", "--transport", "http", "gateway", f"{gateway.base_url}/mcp")
        assert "Needs authentication" in await run_claude("mcp", "list")
        await run_claude("mcp", "login", "gateway")
        assert "Connected" in await run_claude("mcp", "list")
        tool = "mcp__gateway__calculator"
        for prompt, name, arguments in (
            ("Multiply", "ToolSearch", {"query": f"select:{tool}"}),
            ("Tool loaded.", tool, {"expression": "5*9"}),
        ):
            call = {"name": name, "arguments": json.dumps(arguments)}
            simulator.faults.add_faults(Fault(kind="tool_calls", calls=[call], match=prompt))
        output = await run_claude(
            *("-p", "Multiply 5 by 9.", "--output-format", "stream-json", "--verbose", "--allowedTools", tool)
        )
        assert json.loads(output.splitlines()[-1])["is_error"] is False
        last_messages = [request["messages"][-1]["content"] for request in simulator.requests]
        assert '{"expression":"5*9","result":45}' in last_messages
    assert {entry["user"] for entry in await authorization_server.read_log("issued")} == {"ada"}

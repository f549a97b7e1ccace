"""Sign-in pages, approvals and questions belong to the user who began them."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from gateway.mcp_client.oauth import sign_in
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}
STATE = "the state of Ada's question"
FORM = {"type": "object", "properties": {"sure": {"type": "boolean"}}}


def create_asking_app() -> Any:
    mcp: MCPServer[Any] = MCPServer("asking", log_level="ERROR")

    @mcp.tool(structured_output=False)
    async def wipe(ctx: Context[Any]) -> Any:
        """Wipe after asking; the state says whose question it was."""
        if ctx.request_state == STATE and ctx.input_responses:
            return "wiped for Ada"
        params = ElicitRequestFormParams(message="Sure?", requested_schema=FORM)
        return InputRequiredResult(input_requests={"sure": ElicitRequest(params=params)}, request_state=STATE)

    return mcp.streamable_http_app()


@pytest.fixture
async def keyring(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[Keyring]:
    """A gateway with two users, a protected server and an asking one."""
    port, own_port = find_free_port(), find_free_port()
    vault = OAuthMcpServer(port)
    file = tmp_path / "mcp.json"
    async with serve_asgi(vault.create_app(), port), serve_asgi(create_asking_app()) as asking:
        servers = {"vault": {"url": vault.url, "share": "user"}, "asking": {"url": f"{asking}/mcp"}}
        file.write_text(json.dumps({"mcpServers": servers}))
        settings = {
            "mcp_config": file,
            "gateway_data_dir": tmp_path,
            "gateway_public_url": f"http://127.0.0.1:{own_port}",
        }
        async with serve_gateway(database_url, simulator, None, port=own_port, **settings) as gateway:
            keyring = Keyring(gateway)
            for owner in ("ada", "mallory"):
                await keyring.create_key(owner)
            yield keyring


async def submit(gateway: Gateway, url: str, key: str | None = None, **headers: str) -> tuple[int, str]:
    """Submit the form of a sign-in page.

    Return the status and the address that it leads to.
    """
    form = {} if key is None else {"credential": key}
    async with gateway.session.post(url, data=form, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers.get("Location", "")


async def begin_sign_in(keyring: Keyring, owner: str) -> str:
    reply = await keyring.post(owner, "/api/v1/mcp/servers/vault/sign-in", {})
    assert reply.status == 200, reply.body
    return reply.body["url"]


async def test_user_cannot_be_made_to_sign_in_for_another_user(keyring: Keyring) -> None:
    """Mallory sends Ada the link, to get Ada's account at the server."""
    gateway, url = keyring.gateway, await begin_sign_in(keyring, "mallory")
    async with gateway.session.get(url) as response:
        assert 'type="password"' in await response.text()
    assert await submit(gateway, url, keyring.secrets["ada"]) == (403, "")
    assert await submit(gateway, url, **keyring.headers("ada")) == (403, "")
    for key in (None, "", "agw_unknown", "x" * 100_000):
        assert await submit(gateway, url, key) == (401, "")
    assert (await gateway.state.audit.list_entries(action="login.granted", limit=1)).items == []


async def test_user_signs_in_with_the_own_key_in_the_form_or_from_a_proxy(keyring: Keyring) -> None:
    gateway = keyring.gateway
    for options in ({"key": keyring.secrets["ada"]}, keyring.headers("ada")):
        status, location = await submit(gateway, await begin_sign_in(keyring, "ada"), **options)
        assert (status, "/authorize?" in location) == (303, True)


async def test_sign_ins_of_a_user_leave_room_for_others(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "MAX_USER_SIGN_INS", 2)
    monkeypatch.setattr(sign_in, "_MAX_SIGN_INS", 3)
    gateway = keyring.gateway
    for _ in range(4):  # the user's oldest one ends
        assert (await submit(gateway, await begin_sign_in(keyring, "mallory"), keyring.secrets["mallory"]))[0] == 303
    assert (await submit(gateway, await begin_sign_in(keyring, "ada"), keyring.secrets["ada"]))[0] == 303


async def test_sign_in_of_a_turn_belongs_to_its_user(keyring: Keyring) -> None:
    gateway = keyring.gateway
    await eventually(lambda: gateway.state.toolbox.find_tool("vault_sign_in"))
    body = {"messages": [{"role": "user", "content": "call vault_sign_in {}"}]}
    stream = gateway.session.post(
        f"{gateway.base_url}/api/v1/chat/stream", json=body, headers=keyring.headers("mallory")
    )
    async with stream as response:
        lines = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: {")]
    (question,) = [event for event in lines if event.get("kind") == "authorization"]
    turn_id = response.headers["X-Turn-Id"]
    assert await submit(gateway, question["url"], keyring.secrets["ada"]) == (403, "")
    answer = {"input_id": question["input_id"], "action": "accept", "content": {}}
    assert (await keyring.post("ada", f"/api/v1/turns/{turn_id}/input", answer)).status == 404
    assert (await submit(gateway, question["url"], keyring.secrets["mallory"]))[0] == 303


async def call_wipe(keyring: Keyring, owner: str, **params: Any) -> Any:
    """Call the asking tool at `/mcp`, with protocol 2026-07-28."""
    name = "asking_wipe"
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": name, "arguments": {}, "_meta": META, **params},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": name,
        **keyring.headers(owner),
    }
    async with keyring.gateway.session.post(
        f"{keyring.gateway.base_url}/mcp", json=message, headers=headers
    ) as response:
        text = await response.text()
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return json.loads(lines[-1] if lines else text)


async def test_question_at_mcp_is_answered_only_by_its_user(keyring: Keyring) -> None:
    await eventually(lambda: keyring.gateway.state.toolbox.find_tool("asking_wipe"))
    asked = (await call_wipe(keyring, "ada"))["result"]
    state = asked["requestState"]
    assert STATE not in state
    answer = {"inputResponses": {"sure": {"action": "accept", "content": {"sure": True}}}}
    for forged in (
        state[:-4] + "AAAA",
        state + "x",
        state + "=",
        "x" + state,
        f" {state}",
        STATE,
        "\u00e9",
    ):
        assert "error" in await call_wipe(keyring, "ada", requestState=forged, **answer)
    assert (await call_wipe(keyring, "mallory", requestState=state, **answer))["error"]["code"] == -32602
    result = (await call_wipe(keyring, "ada", requestState=state, **answer))["result"]
    assert result["content"][0]["text"] == "wiped for Ada"

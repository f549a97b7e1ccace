"""Names of MCP servers that a key may not use."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import serve_asgi, serve_gateway

HIDDEN, MISSING = "hidden-hr", "missing-x"
"""A server outside the keys' allow list, and an unknown one."""


@pytest.fixture
async def keyring(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[Keyring]:
    """A gateway with keys for one of its two servers."""
    file = tmp_path / "mcp.json"
    async with serve_asgi(TrialServer().create_app()) as open_url, serve_asgi(TrialServer().create_app()) as hidden_url:
        servers = {"open": {"url": f"{open_url}/mcp"}, HIDDEN: {"url": f"{hidden_url}/mcp"}}
        file.write_text(json.dumps({"mcpServers": servers}))
        async with serve_gateway(database_url, simulator, None, mcp_config=file, gateway_data_dir=tmp_path) as gateway:
            await eventually(lambda: gateway.state.toolbox.find_tool("hidden-hr_echo"))
            keyring = Keyring(gateway)
            await keyring.create_key("user", servers=("open",))
            await keyring.create_key("admin", role="admin", servers=("open",))
            await keyring.create_key("root", role="admin")
            yield keyring


def list_requests(name: str) -> list[tuple[str, str, Any]]:
    """List requests that name a server: method, path and body."""
    tool = {"type": "mcp", "server_label": name, "server_url": "http://127.0.0.1:9/mcp"}
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    choice = {"type": "function", "function": {"name": f"{name}_echo"}}
    return [
        ("POST", "/v1/responses", {"input": "Hello", "tools": [tool]}),
        ("POST", "/v1/responses", {"input": "Hello", "tools": [{"type": "mcp", "server_label": name}]}),
        ("POST", "/v1/responses", {"input": "Hello", "tool_choice": {"type": "mcp", "server_label": name}}),
        ("POST", "/v1/chat/completions", {**chat, "tool_choice": choice}),
        ("POST", "/api/v1/chat", {**chat, "tool_choice": choice}),
        ("POST", f"/api/v1/tools/{name}_echo", {"text": "hi"}),
        ("GET", f"/api/v1/mcp/resources/read?uri=trial://greeting&server={name}", None),
        ("POST", f"/api/v1/mcp/prompts/{name}_greet", {}),
        ("POST", f"/api/v1/mcp/servers/{name}/sign-in", {}),
        ("DELETE", f"/api/v1/mcp/servers/{name}/sign-in", None),
        ("POST", "/api/v1/mcp/servers", {"name": name, "url": "http://127.0.0.1:9/mcp"}),
        ("PATCH", f"/api/v1/mcp/servers/{name}", {"disabled": True}),
        ("PATCH", f"/api/v1/mcp/servers/{name}", {"url": "http://127.0.0.1:9/mcp"}),
        ("PUT", f"/api/v1/mcp/servers/{name}", {"url": "http://127.0.0.1:9/mcp"}),
        ("DELETE", f"/api/v1/mcp/servers/{name}", None),
        ("POST", f"/api/v1/mcp/servers/{name}/tools/echo/approve", {}),
        ("POST", f"/api/v1/mcp/servers/{name}/instructions/approve", {}),
    ]


async def send(keyring: Keyring, owner: str, method: str, path: str, body: Any) -> tuple[int, str]:
    url = f"{keyring.gateway.base_url}{path}"
    headers = keyring.headers(owner)
    async with keyring.gateway.session.request(method, url, json=body, headers=headers) as response:
        return response.status, await response.text()


def get_error(text: str) -> Any:
    """Return the error of an answer without the id of its request."""
    error = json.loads(text or "{}").get("error") or {}
    return {name: value for name, value in error.items() if name != "request_id"}


@pytest.mark.parametrize("owner", ["user", "admin"])
async def test_answers_do_not_tell_whether_a_forbidden_server_exists(keyring: Keyring, owner: str) -> None:
    for hidden_request, missing_request in zip(list_requests(HIDDEN), list_requests(MISSING), strict=True):
        status, text = await send(keyring, owner, *hidden_request)
        missing_status, missing_text = await send(keyring, owner, *missing_request)
        assert status == missing_status, (hidden_request, text, missing_text)
        assert get_error(text.replace(HIDDEN, MISSING)) == get_error(missing_text), hidden_request
        assert HIDDEN not in missing_text
    servers = (await keyring.get("root", "/api/v1/mcp/servers")).body["servers"]
    assert {server["name"]: server["state"] for server in servers} == {"open": "up", HIDDEN: "up"}


async def test_lists_contain_only_servers_of_the_key(keyring: Keyring) -> None:
    lists = ("/api/v1/tools", "/api/v1/mcp/servers", "/api/v1/mcp/prompts", "/api/v1/mcp/resources")
    for path in (*lists, "/ready", "/"):
        for owner in ("user", "admin"):
            status, text = await send(keyring, owner, "GET", path, None)
            assert (status, HIDDEN in text) == (200, False)
        assert HIDDEN in (await send(keyring, "root", "GET", path, None))[1]

"""Names of tools that are stored in keys, settings, requests and approvals."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.stack import Gateway, serve_asgi, serve_gateway

TOOLS = {"a": ["b_c", "x"], "a_b": ["c", "d"]}
Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


def answer_with(server: str) -> Callable[..., Any]:
    return lambda params, _request: {"content": [{"type": "text", "text": f"{server} {params['name']}"}]}


class World:
    """Two servers whose names overlap, and a file."""

    def __init__(self, file: Path, urls: dict[str, str]) -> None:
        self.file = file
        self._urls = urls

    def configure(self, *names: str, **entry: Any) -> None:
        self.file.write_text(json.dumps({"mcpServers": {name: {"url": self._urls[name], **entry} for name in names}}))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        urls: dict[str, str] = {}
        for name, tools in TOOLS.items():
            server = RawServer(*map(make_raw_tool, tools), tools__call=answer_with(name))
            urls[name] = f"{await stack.enter_async_context(serve_asgi(server))}/mcp"
        urls["away"] = "http://127.0.0.1:9/mcp"
        yield World(tmp_path / "mcp.json", urls)


@pytest.fixture
def serve(database_url: str, simulator: Simulator, world: World, tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serve_world(**settings: Any) -> AsyncGenerator[Gateway]:
        own = {"mcp_config": world.file, "gateway_data_dir": tmp_path, **settings}
        async with serve_gateway(database_url, simulator, None, **own) as gateway:
            await eventually(lambda: all(s.state == "up" for s in gateway.state.toolbox.list_server_statuses()))
            yield gateway

    return serve_world


async def list_tools(keyring: Keyring, owner: str) -> dict[str, str]:
    return {tool["name"]: tool["server"] for tool in (await keyring.get(owner, "/api/v1/tools")).body["tools"]}


async def test_names_of_the_last_release_stay_valid_for_their_own_tools(serve: Serve, world: World) -> None:
    world.configure("a", "a_b")
    async with serve() as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        await keyring.create_key("ada", tools=("a_b_d",))
        new_name = next(name for name in await list_tools(keyring, "root") if name.startswith("a_b_d_"))
        assert await list_tools(keyring, "ada") == {new_name: "a_b"}
        for name in ("a_b_d", new_name):
            reply = await keyring.post("ada", f"/api/v1/tools/{name}", {})
            assert (reply.body["tool"], reply.body["content"][0]["text"]) == (new_name, "a_b d")
        chat = await keyring.chat("ada", f"call {new_name} {{}}", tools=["a_b_d"])
        assert "a_b d" in chat.body["response"], chat.body
        assert (await keyring.post("ada", "/api/v1/tools/a_b_c", {})).status == 404
        async with (
            httpx2.AsyncClient(headers=keyring.headers("ada"), timeout=30) as http,
            Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http)) as host,
        ):
            assert (await host.call_tool("a_b_d", {})).content[0].text == "a_b d"  # type: ignore[union-attr]
            with pytest.raises(MCPError, match="Unknown tool"):
                await host.call_tool("a_b_c", {})


async def test_denied_name_of_the_last_release_stays_denied(serve: Serve, world: World) -> None:
    world.configure("a", "a_b")
    async with serve(tools_deny=("a_b_d",)) as gateway:
        tools = (await gateway.get("/api/v1/tools")).body["tools"]
        assert {(tool["server"], tool["name"][:5]) for tool in tools} == {
            ("a", "a_b_c"),
            ("a", "a_x"),
            ("a_b", "a_b_c"),
        }
        assert (await gateway.post("/api/v1/tools/a_b_d", {})).status == 404


async def test_approved_call_runs_at_its_own_server_although_the_name_is_another_s_now(
    serve: Serve, world: World
) -> None:
    world.configure("a_b", approval="always")
    async with serve() as gateway:
        reply = await gateway.chat_stream("call a_b_c {}", tools=["a_b_c"])
        turn, question = reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]
        world.configure("a", "a_b", approval="always")

        def get_server() -> str | None:
            spec = gateway.state.toolbox.find_tool("a_b_c")
            return spec and spec.server

        await eventually(lambda: get_server() == "a", timeout_seconds=30)
        answer = {"input_id": question["input_id"], "action": "accept"}
        assert (await gateway.post(f"/api/v1/turns/{turn}/input", answer)).status == 200
        events = await read_turn_events(gateway, turn)
        results = [event.data for event in events if event.type == "tool.result"]
        assert "a b_c" not in str(results), results
        assert results[0]["content"][0]["text"] == "a_b c", results

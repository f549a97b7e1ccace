"""Private answers of MCP servers, and the header that names the user."""

import base64
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.requests import Request

from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

USERS = ("ada", "bob", "ada", "bob")
CACHEABLE = {"ttlMs": 600_000}


@asynccontextmanager
async def connect_host(gateway: Gateway, headers: dict[str, str], mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def get_token_user(request: Request) -> str:
    payload = request.headers["authorization"].split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]


def make_mail_server(scope: str, get_user: Callable[[Request], str] = get_token_user) -> RawServer:
    """A server whose answers name the user, and may be cached."""

    def answer(make: Callable[[str], dict[str, Any]]) -> Callable[[Any, Request], dict[str, Any]]:
        return lambda _params, request: {**CACHEABLE, "cacheScope": scope, **make(get_user(request))}

    return RawServer(
        make_raw_tool("whoami"),
        resources__list=answer(lambda user: {"resources": [{"uri": "me://inbox", "name": f"inbox of {user}"}]}),
        resources__templates__list=answer(
            lambda user: {"resourceTemplates": [{"uriTemplate": "me://{id}", "name": f"mail of {user}"}]}
        ),
        resources__read=answer(lambda user: {"contents": [{"uri": "me://inbox", "text": f"secrets of {user}"}]}),
        prompts__list=answer(lambda user: {"prompts": [{"name": "p", "description": f"prompt of {user}"}]}),
        tools__call=lambda _params, request: {"content": [{"type": "text", "text": get_user(request)}]},
    )


@pytest.mark.parametrize("scope", ["private", "public"])
async def test_cacheable_answers_reach_only_the_user_who_asked(
    database_url: str, simulator: Simulator, tmp_path: Path, scope: str
) -> None:
    servers = {"mail": (make_mail_server(scope), {"identity": "gateway"})}
    async with serve_raw(database_url, simulator, tmp_path, servers) as gateway:
        keyring = Keyring(gateway)
        for user in ("ada", "bob"):
            await keyring.create_key(user)
        for user in USERS:
            reply = await keyring.get(user, "/api/v1/mcp/resources/read?server=mail&uri=me://inbox")
            assert reply.body["contents"][0]["text"] == f"secrets of {user}"
            listed = (await keyring.get(user, "/api/v1/mcp/resources")).body
            assert listed["resources"][0]["name"] == f"inbox of {user}"
            assert listed["templates"][0]["name"] == f"mail of {user}"
            prompts = (await keyring.get(user, "/api/v1/mcp/prompts")).body["prompts"]
            assert prompts[0]["description"] == f"prompt of {user}"
            async with connect_host(gateway, keyring.headers(user)) as host:
                assert (await host.read_resource("me://inbox")).contents[0].text == f"secrets of {user}"  # type: ignore[union-attr]
                assert (await host.list_resources()).resources[0].name == f"inbox of {user}"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_header_of_a_host_reaches_the_server_with_every_kind_of_request(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    server = make_mail_server("private", lambda request: request.headers.get("x-user", "nobody"))
    servers = {"mail": (server, {"identity": "header:X-User"})}
    async with serve_raw(database_url, simulator, tmp_path, servers) as gateway:
        for user in USERS:
            async with connect_host(gateway, {"X-User": user}, mode) as host:
                assert (await host.call_tool("mail_whoami", {})).content[0].text == user  # type: ignore[union-attr]
                assert (await host.read_resource("me://inbox")).contents[0].text == f"secrets of {user}"  # type: ignore[union-attr]
                assert (await host.list_prompts()).prompts[0].description == f"prompt of {user}"
        async with connect_host(gateway, {}, mode) as host:
            assert (await host.call_tool("mail_whoami", {})).content[0].text == "nobody"  # type: ignore[union-attr]
        async with connect_host(gateway, {"X-User": "ada"}, mode) as host:
            simulator.faults.add_faults(Fault(kind="tool_calls", match="who?", calls=[{"name": "mail_whoami"}]))
            await host.call_tool("ask_agent", {"prompt": "who?"})
    assert server.count("tools/call") == len(USERS) + 2
    assert "ada" in json.dumps(simulator.requests[-1])


async def test_server_gets_required_defaults_from_every_caller(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    unit = {"type": "string", "default": "C"}
    schema = {"type": "object", "properties": {"unit": unit}, "required": ["unit"]}
    server = RawServer(make_raw_tool("weather", inputSchema=schema))
    async with serve_raw(database_url, simulator, tmp_path, {"s": (server, {})}) as gateway:
        await gateway.post("/api/v1/tools/s_weather", {})
        async with connect_host(gateway, {}) as host:
            await host.call_tool("s_weather", {})
        simulator.faults.add_faults(Fault(kind="tool_calls", match="weather?", calls=[{"name": "s_weather"}]))
        assert (await gateway.chat("weather?")).status == 200
    calls = [params["arguments"] for method, params in server.calls if method == "tools/call"]
    assert calls == [{"unit": "C"}] * 3

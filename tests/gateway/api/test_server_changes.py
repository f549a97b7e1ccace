"""Changes of MCP servers that were added at run time."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_mcp_servers import has_tool, send_request
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.stack import Gateway, Reply, serve_asgi, serve_gateway
from tests.tools_server.conftest import serve_web

NOWHERE = "http://127.0.0.1:9/mcp"
CLIENT = {"client_id": "gateway", "client_secret": "geheim1", "scope": "read"}


@pytest.fixture
async def trial_url() -> AsyncGenerator[str]:
    async with serve_asgi(TrialServer().create_app()) as url:
        yield f"{url}/mcp"


def get_server(reply: Reply, name: str) -> dict[str, Any]:
    return next(server for server in reply.body["servers"] if server["name"] == name)


async def test_added_server_takes_oauth_identity_and_as_tools(gateway: Gateway, trial_url: str) -> None:
    body = {"name": "a", "url": trial_url, "identity": "gateway", "as_tools": ["resources", "prompts"]}
    created = await send_request(gateway, "POST", body=body)
    assert created.status == 201, created.body
    await eventually(lambda: has_tool(gateway, "a_list_resources") and has_tool(gateway, "a_get_prompt"))
    created = await send_request(gateway, "POST", body={"name": "b", "url": NOWHERE, "oauth": CLIENT})
    server = get_server(created, "b")
    assert server["oauth"] == {
        "client_id": "gateway",
        "has_secret": True,
        "token_endpoint_auth_method": None,
        "scope": "read",
    }
    assert "geheim1" not in json.dumps(created.body)
    server = get_server(created, "a")
    assert (server["identity"], server["as_tools"]) == ("gateway", ["resources", "prompts"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"identity": "header:Authorization"}, "identity"),
        ({"identity": "header:COOKIE"}, "identity"),
        ({"identity": "header:X-Api-Key"}, "identity"),
        ({"identity": "me"}, "identity"),
        ({"oauth_hosts": ["10.0.0.1"]}, "oauth_hosts"),
        ({"audience": "http://tools.test/mcp"}, "audience"),
        ({"as_tools": ["everything"]}, "as_tools.0"),
        ({"oauth": {"client_secret": "geheim1"}}, "oauth.client_id"),
        ({"oauth": {"client_id": "c", "hosts": []}}, "oauth.hosts"),
    ],
)
async def test_field_that_the_api_does_not_take_is_refused_by_name(
    shared_gateway: Gateway, fields: dict[str, Any], param: str
) -> None:
    for method, path, body in (
        ("POST", "", {"name": "x", "url": NOWHERE, **fields}),
        ("PUT", "/x", {"url": NOWHERE, **fields}),
    ):
        reply = await send_request(shared_gateway, method, path, body)
        assert (reply.status, reply.body["error"]["param"]) == (422, param), reply.body
        assert "geheim1" not in str(reply.body)


async def test_changed_server_is_changed_on_all_workers_and_after_a_restart(
    workers: list[Gateway], trial_url: str, database_url: str, simulator: Simulator
) -> None:
    first, second = workers
    body = {"name": "extra", "url": NOWHERE, "headers": {"X-A": "geheim2", "X-B": "geheim3"}, "timeout": 5}
    assert (await send_request(first, "POST", body=body)).status == 201
    patch = {"url": trial_url, "headers": {"X-A": "new", "X-B": None}, "deny": ["crash"], "timeout": None}
    changed = await send_request(second, "PATCH", "/extra", patch)
    assert changed.status == 200, changed.body
    server = get_server(changed, "extra")
    assert (server["headers"], server["deny"], server["timeout"]) == (["X-A"], ["crash"], None)
    await eventually(lambda: has_tool(first, "extra_echo") and has_tool(second, "extra_echo"))
    assert not has_tool(first, "extra_crash")
    assert (await send_request(first, "PUT", "/extra", {"url": trial_url, "prefix": "other"})).status == 200
    await eventually(lambda: has_tool(second, "other_crash") and not has_tool(second, "extra_echo"))
    server = get_server(await send_request(second, "GET"), "extra")
    assert (server["headers"], server["deny"], server["prefix"]) == ([], [], "other")
    async with serve_gateway(database_url, simulator, None) as restarted:
        await eventually(lambda: has_tool(restarted, "other_crash"))


async def test_changes_of_different_fields_at_once_are_all_kept(workers: list[Gateway]) -> None:
    assert (await send_request(workers[0], "POST", body={"name": "extra", "url": NOWHERE})).status == 201
    await eventually(lambda: workers[1].state.registry.get_source("extra"))
    patches: list[dict[str, Any]] = [
        {"deny": ["a"]},
        {"timeout": 7},
        {"headers": {"X-A": "1"}},
        {"headers": {"X-B": "2"}},
        {"disabled": True},
    ]
    replies = await asyncio.gather(
        *(send_request(workers[number % 2], "PATCH", "/extra", patch) for number, patch in enumerate(patches))
    )
    assert [reply.status for reply in replies] == [200] * len(patches)
    server = get_server(await send_request(workers[0], "PATCH", "/extra", {"share": "user"}), "extra")
    assert (server["deny"], server["timeout"], sorted(server["headers"])) == (["a"], 7, ["X-A", "X-B"])
    assert (server["state"], server["share"]) == ("disabled", "user")


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({}, "headers"),
        ({"headers": {"X-A": "new"}}, "headers"),
        ({"headers": None}, "oauth.client_secret"),
        ({"headers": {"X-A": "new", "X-B": None}, "oauth": {"client_id": "other"}}, "oauth.client_secret"),
    ],
)
async def test_stored_secrets_are_not_sent_to_another_origin(
    gateway: Gateway, patch: dict[str, Any], param: str
) -> None:
    seen: list[str] = []

    async def record(request: web.Request) -> web.Response:
        seen.append(str(dict(request.headers)))
        return web.Response(status=500)

    body = {"name": "extra", "url": NOWHERE, "headers": {"X-A": "geheim2", "X-B": "geheim3"}, "oauth": CLIENT}
    assert (await send_request(gateway, "POST", body=body)).status == 201
    async with serve_web(record) as address:
        reply = await send_request(gateway, "PATCH", "/extra", {"url": f"{address}/mcp", **patch})
        assert (reply.status, reply.body["error"]["param"]) == (422, param)
        assert "geheim" not in str(reply.body)
        given = {"headers": {"X-A": "new", "X-B": None}, "oauth": {"client_secret": None}}
        assert (await send_request(gateway, "PATCH", "/extra", {"url": f"{address}/mcp", **given})).status == 200
        await eventually(lambda: seen)
    assert not any("geheim" in headers for headers in seen)
    same_origin = await send_request(gateway, "PATCH", "/extra", {"url": f"{address}/other"})
    assert get_server(same_origin, "extra")["headers"] == ["X-A"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/tools", {"deny": ["*"]}, 409),
        ("PUT", "/tools", {"url": NOWHERE}, 409),
        ("PATCH", "/nobody", {"deny": ["*"]}, 404),
        ("PUT", "/nobody", {"url": NOWHERE}, 404),
        ("PUT", "/nobody", {"name": "somebody", "url": NOWHERE}, 422),
        ("PATCH", "/tools", {}, 422),
        ("PATCH", "/tools", {"disabled": None}, 422),
    ],
)
async def test_change_that_is_not_possible_is_refused(
    shared_gateway: Gateway, method: str, path: str, body: dict[str, Any], status: int
) -> None:
    reply = await send_request(shared_gateway, method, path, body)
    assert reply.status == status, reply.body


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({"url": None}, "url"),
        ({"url": "ftp://x"}, "url"),
        ({"timeout": 0}, "timeout"),
        ({"identity": "header:cookie"}, "identity"),
        ({"approval": "sometimes"}, "approval"),
        ({"command": "rm"}, "command"),
        ({"oauth": {"scope": "read"}}, "oauth.client_id"),
    ],
)
async def test_invalid_change_is_a_422_that_names_the_field(
    gateway: Gateway, patch: dict[str, Any], param: str
) -> None:
    assert (await send_request(gateway, "POST", body={"name": "extra", "url": NOWHERE})).status == 201
    reply = await send_request(gateway, "PATCH", "/extra", patch)
    assert (reply.status, reply.body["error"]["param"]) == (422, param), reply.body


async def test_server_with_another_encryption_key_is_replaced_but_not_patched(
    database_url: str, simulator: Simulator, trial_url: str, tmp_path: Path
) -> None:
    async with serve_gateway(database_url, simulator, None, gateway_data_dir=tmp_path) as gateway:
        body = {"name": "extra", "url": trial_url, "headers": {"X-Secret": "geheim"}}
        assert (await send_request(gateway, "POST", body=body)).status == 201
    async with serve_gateway(database_url, simulator, None, gateway_data_dir=tmp_path / "other") as gateway:
        await eventually(lambda: gateway.state.registry.get_source("extra"))
        assert (await send_request(gateway, "PATCH", "/extra", {"deny": ["x"]})).status == 409
        assert (await send_request(gateway, "PUT", "/extra", {"url": trial_url})).status == 200
        await eventually(lambda: has_tool(gateway, "extra_echo"))


async def test_names_of_servers_follow_the_order_in_which_they_were_added(
    workers: list[Gateway], trial_url: str, database_url: str, simulator: Simulator
) -> None:
    """A later server marks names within an earlier one's prefix."""
    for name, prefix in (("zoo", "a"), ("ant", "a_b"), ("bee", "a")):
        body = {"name": name, "url": trial_url, "prefix": prefix}
        assert (await send_request(workers[0], "POST", body=body)).status == 201

    def list_names(gateway: Gateway) -> dict[str, str] | None:
        specs = gateway.state.toolbox.list_specs()
        names = {spec.server: spec.name for spec in specs if spec.tool == "echo"}
        return names if {"zoo", "ant", "bee"} <= names.keys() else None

    names = await eventually(lambda: list_names(workers[0]))
    assert names is not None
    assert names["zoo"] == "a_echo"
    assert names["ant"].startswith("a_b_echo_")
    assert names["bee"].startswith("a_echo_")
    assert await eventually(lambda: list_names(workers[1])) == names
    assert (await send_request(workers[1], "PATCH", "/zoo", {"deny": ["crash"]})).status == 200
    assert (await send_request(workers[1], "PATCH", "/zoo", {"disabled": True})).status == 200
    assert (await send_request(workers[1], "PATCH", "/zoo", {"disabled": False})).status == 200
    await eventually(lambda: list_names(workers[0]) == names and list_names(workers[1]) == names)
    async with serve_gateway(database_url, simulator, None) as restarted:
        assert await eventually(lambda: list_names(restarted)) == names

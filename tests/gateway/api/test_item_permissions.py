"""Allow and deny lists of tools, applied to resources, prompts and completions."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mcp import MCPError
from mcp.types import PromptReference, ResourceTemplateReference

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway, serve_asgi, serve_gateway

ALL = {"prompts": {"plan_day"}, "templates": {"tasks://{status}"}}
NOTHING: dict[str, set[str]] = {"prompts": set(), "templates": set()}


async def list_items_over_rest(keyring: Keyring, owner: str) -> dict[str, set[str]]:
    prompts = (await keyring.get(owner, "/api/v1/mcp/prompts")).body["prompts"]
    templates = (await keyring.get(owner, "/api/v1/mcp/resources")).body["templates"]
    return {
        "prompts": {prompt["name"] for prompt in prompts},
        "templates": {template["uriTemplate"] for template in templates},
    }


async def read_everything(keyring: Keyring, owner: str) -> dict[str, set[str]]:
    """Try each way to an item; return the items that were reached.

    REST and /mcp must agree.
    """
    listed = await list_items_over_rest(keyring, owner)
    reached: dict[str, set[str]] = {"prompts": set(), "templates": set()}
    if (await keyring.post(owner, "/api/v1/mcp/prompts/plan_day", {})).status == 200:
        reached["prompts"].add("plan_day")
    paths = [f"/api/v1/mcp/resources/read?uri=tasks://pending{query}" for query in ("", "&server=tools")]
    statuses = {(await keyring.get(owner, path)).status for path in paths}
    assert len(statuses) == 1
    if statuses == {200}:
        reached["templates"].add("tasks://{status}")
    for mode in ("legacy", "2026-07-28"):
        async with connect_mcp_client(keyring.gateway, keyring.headers(owner), mode) as client:
            assert {prompt.name for prompt in (await client.list_prompts()).prompts} == listed["prompts"]
            templates = (await client.list_resource_templates()).resource_templates
            assert {template.uri_template for template in templates} == listed["templates"]
            status = {"name": "status", "value": "p"}
            attempts: list[tuple[Any, str, str]] = [
                (client.get_prompt("plan_day"), "prompts", "plan_day"),
                (client.read_resource("tasks://pending"), "templates", "tasks://{status}"),
                (
                    client.complete(ResourceTemplateReference(type="ref/resource", uri="tasks://{status}"), status),
                    "templates",
                    "tasks://{status}",
                ),
                (client.complete(PromptReference(type="ref/prompt", name="plan_day"), status), "prompts", "plan_day"),
            ]
            for attempt, kind, name in attempts:
                if name in reached[kind]:
                    await attempt
                else:
                    with pytest.raises(MCPError):
                        await attempt
    assert reached == listed
    return reached


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, ALL),
        (("*",), ALL),
        (("calculator",), NOTHING),
        ((), NOTHING),
        (("calculator", "plan_*"), {**NOTHING, "prompts": {"plan_day"}}),
        (("tasks://*",), {**NOTHING, "templates": {"tasks://{status}"}}),
    ],
    ids=str,
)
async def test_allow_list_of_a_key_covers_resources_prompts_and_completions(
    keyring: Keyring, tools: tuple[str, ...] | None, expected: dict[str, set[str]]
) -> None:
    await keyring.create_key("ada", tools=tools)
    assert await read_everything(keyring, "ada") == expected


@pytest.mark.parametrize(
    ("deny", "expected"),
    [
        (("tools/*",), NOTHING),
        (("plan_day",), {**NOTHING, "templates": {"tasks://{status}"}}),
        (("tasks://*",), {**NOTHING, "prompts": {"plan_day"}}),
        (("tools/add_task",), ALL),
    ],
    ids=str,
)
async def test_denied_resources_and_prompts_are_unavailable_to_admins(
    database_url: str, simulator: Simulator, tools_url: str, deny: tuple[str, ...], expected: dict[str, set[str]]
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, tools_deny=deny) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        assert await read_everything(keyring, "root") == expected


OTHER_SPELLINGS = (
    "docs://public/../secret",
    "docs://public/%2e%2e/secret",
    "DOCS://secret",
    "docs://%73ecret",
    "docs://./secret",
)


@pytest.mark.parametrize("lists", ["key", "entry", "deny"])
async def test_other_spellings_of_a_uri_do_not_lead_past_a_list(
    database_url: str, simulator: Simulator, tmp_path: Path, lists: str
) -> None:
    template = {"uriTemplate": "{+any}", "name": "any"}
    server = RawServer(
        make_raw_tool("t"),
        resources__list={"resources": []},
        resources__templates__list={"resourceTemplates": [template]},
        resources__read=lambda params, _: {"contents": [{"uri": params["uri"], "text": "read"}]},
    )
    entry = {"deny": ["docs://secret"]} if lists == "entry" else {}
    deny = ("docs/docs://secret",) if lists == "deny" else ()
    async with serve_raw(database_url, simulator, tmp_path, {"docs": (server, entry)}, tools_deny=deny) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada", tools=("{+any}", "docs://public/*", "docs://b%20c") if lists == "key" else None)
        for uri in ("docs://public/x", "docs://public/x%20y/", "docs://b%20c"):
            for query in ("", "&server=docs"):
                path = f"/api/v1/mcp/resources/read?uri={quote(uri, safe='')}{query}"
                assert ((await keyring.get("ada", path)).status, uri) == (200, uri)
        for uri in ("docs://secret", *OTHER_SPELLINGS):
            for query in ("", "&server=docs"):
                path = f"/api/v1/mcp/resources/read?uri={quote(uri, safe='')}{query}"
                assert ((await keyring.get("ada", path)).status, uri) == (404, uri)
        async with connect_mcp_client(gateway, keyring.headers("ada"), "auto") as client:
            for uri in OTHER_SPELLINGS:
                with pytest.raises(MCPError):
                    await client.read_resource(uri)
        assert not [params for method, params in server.calls if method == "resources/read" and "secret" in str(params)]


@pytest.fixture
async def two_servers(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> AsyncGenerator[Gateway]:
    """A gateway before servers with equal names of items."""
    async with AsyncExitStack() as stack:
        trial = await stack.enter_async_context(serve_asgi(TrialServer().create_app()))
        other = await stack.enter_async_context(serve_asgi(TrialServer().create_app()))
        entries = {
            "first": {"url": f"{trial}/mcp", "prefix": ""},
            "second": {"url": f"{other}/mcp", "prefix": ""},
            "unlisted": {"url": f"{other}/mcp", "allow": [], "as_tools": ["resources", "prompts"]},
        }
        (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": entries}))
        yield await stack.enter_async_context(
            serve_gateway(database_url, simulator, None, mcp_config=tmp_path / "mcp.json")
        )


async def test_items_come_only_from_permitted_servers_with_equal_names(two_servers: Gateway) -> None:
    keyring = Keyring(two_servers)
    await keyring.create_key("root", role="admin")
    await keyring.create_key("ada", servers=("second",))
    body = (await keyring.get("root", "/api/v1/mcp/resources")).body
    servers = {item["server"] for item in (*body["resources"], *body["templates"])}
    servers |= {item["server"] for item in (await keyring.get("root", "/api/v1/mcp/prompts")).body["prompts"]}
    assert servers == {"first", "second"}
    prompts = (await keyring.get("ada", "/api/v1/mcp/prompts")).body["prompts"]
    assert {prompt["server"] for prompt in prompts} == {"second"}
    [uri, *_] = [item["uri"] for item in body["resources"]]
    for server, status in (("unlisted", 404), ("first", 200), ("second", 200)):
        reply = await keyring.get("root", f"/api/v1/mcp/resources/read?uri={uri}&server={server}")
        assert (server, reply.status) == (server, status)
    assert (await keyring.get("ada", f"/api/v1/mcp/resources/read?uri={uri}&server=first")).status == 404

"""Names of tools when servers come and go."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from gateway.config import Settings
from gateway.domain.messages import Principal
from gateway.mcp_client.server_config import load_servers
from gateway.mcp_client.tool_names import ExposedNames, make_exposed_name
from gateway.ports.servers import ServerConfig
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.stack import serve_asgi

CONFIGS = [
    ("a", None),
    ("a_b", None),
    ("a.b", None),
    ("a_b_c", None),
    ("plain", ""),
    ("twin", "a"),
    ("other plain", ""),
    ("long", "a_b_c_" + "x" * 58),
]
ITEMS = ("c", "b_c", "b.c", "a_b_c", "b_c_d", "c_d", "ask_agent", "x" * 70, "x" * 70 + ".", "ünï", "c" * 300)


def make_config(name: str, prefix: str | None) -> ServerConfig:
    return ServerConfig(name=name, url="http://127.0.0.1:9/mcp", prefix=prefix)


def list_orders() -> Iterator[list[tuple[str, str | None]]]:
    for number, order in enumerate(permutations(CONFIGS)):
        if number % 997 == 0:
            yield list(order)


def test_each_name_is_one_servers_also_if_a_tool_imitates_another() -> None:
    for order in list_orders():
        configs = [make_config(name, prefix) for name, prefix in order]
        names = ExposedNames(configs)
        imitations = [names.get_name(config, item) for config in configs for item in ITEMS]
        owners: dict[str, str] = {}
        for config in configs:
            prefix = config.name if config.prefix is None else config.prefix
            starts = ("", f"{prefix}_") if prefix else ("",)
            copied = [name.removeprefix(start) for start in starts for name in imitations if name.startswith(start)]
            for item in (*ITEMS, *copied):
                name = names.get_name(config, item)
                assert len(name) <= 64
                assert owners.setdefault(name, config.name) == config.name, (order, name)
                assert name not in ("ask_agent", "find_tools", "batch", "run_python")


def test_first_server_and_those_of_other_prefixes_keep_their_names() -> None:
    configs = [make_config(name, prefix) for name, prefix in [("plain", ""), ("a", None), ("a_b", None), ("b", None)]]
    names = ExposedNames(configs)
    kept = {(0, "search"): "search", (1, "b_c"): "a_b_c", (1, "x"): "a_x", (3, "c"): "b_c"}
    assert {(number, item): names.get_name(configs[number], item) for number, item in kept} == kept
    assert names.get_name(configs[0], "a_x") != "a_x"
    assert names.get_name(configs[2], "c").startswith("a_b_c_")
    assert ExposedNames(configs[:3]).get_name(configs[2], "c") == names.get_name(configs[2], "c")


@pytest.mark.parametrize("away", ["a", "a_b"])
async def test_name_never_leads_to_another_server_while_one_is_away(away: str) -> None:
    tools = {"a": ["b_c", "x"], "a_b": ["c", "d"]}
    async with AsyncExitStack() as stack:
        configs: list[ServerConfig] = []
        for name, own_tools in tools.items():
            url = await stack.enter_async_context(serve_asgi(RawServer(*map(make_raw_tool, own_tools))))
            configs.append(ServerConfig(name=name, url=f"{url}/mcp"))
        async with connect_toolbox(*configs) as toolbox:
            everything = {spec.name: spec.server for spec in toolbox.list_specs()}
            assert everything["a_b_c"] == "a"
            assert len(everything) == 4
            old_name = make_exposed_name("a_b", "a_b", "d")
            marked = next(name for name in everything if name.startswith("a_b_d_"))
            assert toolbox.find_tool(old_name) is toolbox.find_tool(marked)
            toolbox.reconcile([config.model_copy(update={"disabled": config.name == away}) for config in configs])
            remaining = await eventually(lambda: {spec.name: spec.server for spec in toolbox.list_specs()})
            assert remaining == {name: server for name, server in everything.items() if server != away}
            if away == "a":
                assert toolbox.find_tool("a_b_c") is None
                assert toolbox.find_tool(old_name) is None  # "a" may have a tool of this name now


async def test_former_names_stay_valid_in_allow_lists_for_their_own_server_only() -> None:
    tools = {"a": ["b_c", "x"], "a_b": ["c", "d"]}
    async with AsyncExitStack() as stack:
        configs: list[ServerConfig] = []
        for name, own_tools in tools.items():
            url = await stack.enter_async_context(serve_asgi(RawServer(*map(make_raw_tool, own_tools))))
            configs.append(ServerConfig(name=name, url=f"{url}/mcp"))
        async with connect_toolbox(*configs) as toolbox:

            def list_permitted(*names: str) -> set[tuple[str, str]]:
                principal = Principal("ada", tools=names)
                return {(spec.server, spec.tool) for spec in toolbox.list_specs() if principal.can_use_tool(spec)}

            assert list_permitted("a_b_c") == {("a", "b_c")}
            assert list_permitted(make_exposed_name("a_b", "a_b", "c", True)) == {("a_b", "c")}
            assert list_permitted("a_b_d") == {("a_b", "d")}
            assert list_permitted("a_b_*") == {("a", "b_c"), ("a_b", "c"), ("a_b", "d")}


async def test_tools_prompts_and_resources_of_equal_names_are_all_reachable(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    def make_server(name: str) -> RawServer:
        return RawServer(
            make_raw_tool("ask_agent"),
            tools__call={"content": [{"type": "text", "text": name}]},
            resources__list={"resources": [{"uri": "x://one", "name": "one"}]},
            resources__templates__list={"resourceTemplates": [{"uriTemplate": "x://by/{id}", "name": "by"}]},
            resources__read=lambda params, _request: {
                "contents": [{"uri": params["uri"], "text": f"{name} {params['uri']}"}]
            },
            prompts__list={"prompts": [{"name": "p"}]},
            prompts__get={"messages": [{"role": "user", "content": {"type": "text", "text": name}}]},
        )

    servers: dict[str, tuple[RawServer, dict[str, Any]]] = {
        name: (make_server(name), {"prefix": ""}) for name in ("one", "two")
    }
    async with serve_raw(database_url, simulator, tmp_path, servers) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        await keyring.create_key("narrow", servers=("two",))
        async with (
            httpx2.AsyncClient(headers=keyring.headers("root"), timeout=30) as http,
            Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http)) as host,
        ):
            names = [tool.name for tool in (await host.list_tools()).tools]
            assert len(set(names)) == len(names) == 3
            answers = [(await host.call_tool(name, {})).content[0].text for name in names if name != "ask_agent"]  # type: ignore[union-attr]
            assert answers == ["one", "two"]
            prompts = [prompt.name for prompt in (await host.list_prompts()).prompts]
            texts = [(await host.get_prompt(name)).messages[0].content.text for name in prompts]  # type: ignore[union-attr]
            assert texts == ["one", "two"]
            uris = [str(resource.uri) for resource in (await host.list_resources()).resources]
            assert uris[0] == "x://one"
            contents = [(await host.read_resource(uri)).contents[0] for uri in uris]
            assert [content.text for content in contents] == ["one x://one", "two x://one"]  # type: ignore[union-attr]
            assert [str(content.uri) for content in contents] == uris
            templates = [
                template.uri_template for template in (await host.list_resource_templates()).resource_templates
            ]
            expanded = [template.replace("{id}", "7") for template in templates]
            texts = [(await host.read_resource(uri)).contents[0].text for uri in expanded]  # type: ignore[union-attr]
            assert texts == ["one x://by/7", "two x://by/7"]
        async with (
            httpx2.AsyncClient(headers=keyring.headers("narrow"), timeout=30) as http,
            Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http)) as host,
        ):
            assert (await host.read_resource(uris[1])).contents[0].text == "two x://one"  # type: ignore[union-attr]
            with pytest.raises(MCPError):
                await host.read_resource(uris[1].replace("two", "one"))


async def test_entry_that_cannot_be_used_still_reserves_its_names(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    entry = {"url": "http://127.0.0.1:9/mcp", "prefix": "x", "headers": {"A": "${NOT_SET}"}}
    file.write_text(json.dumps({"mcpServers": {"a": entry, "x_y": {"url": "http://127.0.0.1:9/mcp"}}}))
    broken, other = load_servers(Settings(_env_file=None, mcp_config=file), {})  # type: ignore[call-arg]
    working, _ = load_servers(Settings(_env_file=None, mcp_config=file), {"NOT_SET": "1"})  # type: ignore[call-arg]
    assert broken.fault
    assert not working.fault
    assert ExposedNames([broken, other]).get_name(other, "c") == ExposedNames([working, other]).get_name(other, "c")

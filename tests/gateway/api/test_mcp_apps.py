"""MCP Apps: pages of servers, and tools that only pages call."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from mcp import MCPError

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.gateway.api.test_private_answers import connect_host
from tests.gateway.mcp_client.raw_server import JsonObject, RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

URI = "ui://show/View%20one.html?x=ü#top"
HTML = (
    "<!doctype html>\r\n<p>caf\u00e9 \u200b\u202e zero\u2060width \x1b[31m</p>\t\n"
    "<script>1 < 2 && '\\u0041'</script>  \n"
)
MIME_TYPE = "text/html;profile=mcp-app"
PAGE_META = {"ui": {"csp": {"connectDomains": ["https://a.example"]}, "prefersBorder": True}}


def make_app_server(name: str) -> RawServer:
    def read(params: JsonObject, _request: Any) -> JsonObject | None:
        part = {"uri": params["uri"], "mimeType": MIME_TYPE, "text": f"{name}: {HTML}", "_meta": PAGE_META}
        return {"contents": [part]} if params["uri"] == URI else None

    ui = {"resourceUri": URI}
    return RawServer(
        make_raw_tool("show", _meta={"ui": ui, "ui/resourceUri": URI, "keep": [1]}),
        make_raw_tool("reload", _meta={"ui": {**ui, "visibility": ["app"]}}),
        make_raw_tool("both", _meta={"ui": {"visibility": ["model", "app"]}}),
        make_raw_tool("hidden", _meta={"openai/visibility": "private"}),
        resources__list={"resources": []},  # a page need not be listed
        resources__read=read,
    )


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[Gateway]:
    """A gateway with two servers whose pages share a URI."""
    servers = {name: (make_app_server(name), {}) for name in ("one", "two")}
    servers["two"] = (servers["two"][0], {"allow": ["show", "reload", "both", "hidden"]})
    async with serve_raw(database_url, simulator, tmp_path, servers) as gateway:
        yield gateway


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_host_reads_each_page_of_a_tool_byte_for_byte(gateway: Gateway, mode: str) -> None:
    async with connect_host(gateway, {}, mode) as host:
        tools = {tool.name: tool.meta or {} for tool in (await host.list_tools()).tools}
        assert tools["one_show"] == {"ui": {"resourceUri": URI}, "ui/resourceUri": URI, "keep": [1]}
        uris = [tools[f"{name}_show"]["ui"]["resourceUri"] for name in ("one", "two")]
        assert tools["two_show"] == {"ui": {"resourceUri": uris[1]}, "ui/resourceUri": uris[1], "keep": [1]}
        assert uris[1].startswith("ui://")
        for name, uri in zip(("one", "two"), uris, strict=True):
            part = (await host.read_resource(uri)).contents[0]
            shown = part.model_dump(mode="json", by_alias=True, exclude_none=True)
            assert shown == {"uri": uri, "mimeType": MIME_TYPE, "text": f"{name}: {HTML}", "_meta": PAGE_META}
        with pytest.raises(MCPError):
            await host.read_resource("ui://show/other.html")


async def test_tools_of_pages_are_offered_to_hosts_but_not_to_models(gateway: Gateway) -> None:
    async with connect_host(gateway, {}) as host:
        tools = {tool.name: tool.meta or {} for tool in (await host.list_tools()).tools}
        assert tools["one_reload"]["ui"]["visibility"] == ["app"]
        assert (await host.call_tool("one_reload", {})).content[0].text == "reload"  # type: ignore[union-attr]
    await gateway.chat("Hello", tools=["one_show", "one_both", "one_reload", "one_hidden"])
    await gateway.chat("Hello")
    hidden = {f"{server}_{tool}" for server in ("one", "two") for tool in ("reload", "hidden")}
    for request in list(gateway.simulator.requests)[-2:]:
        offered = {tool["function"]["name"] for tool in request["tools"]}
        assert {"one_show", "one_both"} <= offered
        assert offered.isdisjoint(hidden)


async def test_caller_of_a_tool_may_read_its_page(gateway: Gateway) -> None:
    keyring = Keyring(gateway)
    await keyring.create_key("root", role="admin")
    await keyring.create_key("ada", tools=["two_show"])
    async with connect_host(gateway, keyring.headers("ada")) as host:
        (tool,) = [tool for tool in (await host.list_tools()).tools if tool.name != "ask_agent"]
        uri = (tool.meta or {})["ui"]["resourceUri"]
        assert (await host.read_resource(uri)).contents[0].text == f"two: {HTML}"  # type: ignore[union-attr]
        with pytest.raises(MCPError):
            await host.read_resource(URI)  # the page of a tool that the key may not use

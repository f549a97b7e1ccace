"""Tests that `/mcp` delivers what it declares to hosts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mcp.types import PromptListChangedNotification, ResourceListChangedNotification

from gateway.simulator import Simulator
from tests.gateway.api.test_list_changes import announce_until_received
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.gateway.test_mcp_endpoint import connect_host

KINDS = {"prompts": PromptListChangedNotification, "resources": ResourceListChangedNotification}


def make_server(*, modern: bool) -> RawServer:
    server = RawServer(
        make_raw_tool("t"), modern=modern, prompts__list={"prompts": []}, resources__list={"resources": []}
    )
    declared = {"listChanged": True}
    server.capabilities = {"tools": declared, "resources": declared, "prompts": declared}
    return server


@pytest.mark.parametrize("modern", [True, False], ids=["modern-server", "legacy-server"])
async def test_announced_changes_of_prompts_and_resources_reach_hosts(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = make_server(modern=modern)
    received: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        for kind, notification in KINDS.items():
            if isinstance(message, notification):
                received.put_nowait(kind)

    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_host(gateway, "legacy", message_handler=on_message) as legacy,
        connect_host(gateway, "auto") as current,
        current.listen(prompts_list_changed=True, resources_list_changed=True) as changes,
        asyncio.timeout(50),
    ):
        await legacy.list_prompts()
        events = aiter(changes)
        for kind in KINDS:
            await announce_until_received(received, kind, lambda kind=kind: server.notify(kind))  # type: ignore[misc]
            while kind not in type(await anext(events)).__name__.lower():
                pass


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_handshake_declares_what_is_delivered(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    server = make_server(modern=True)
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_host(gateway, mode) as host,
    ):
        capabilities = host.server_capabilities
        assert capabilities.resources is not None
        assert capabilities.resources.subscribe is False
        lists = (capabilities.tools, capabilities.resources, capabilities.prompts)
        assert [declared and declared.list_changed for declared in lists] == [True, True, True]
        assert (capabilities.logging is not None, capabilities.completions is not None) == (True, True)
        if mode == "auto":
            async with host.listen(tools_list_changed=True, resource_subscriptions=["r://a"]) as changes:
                assert changes.honored.tools_list_changed is True
                assert changes.honored.resource_subscriptions is None
    metas = [params["_meta"] for method, params in server.calls if method == "tools/list"]
    as_client = metas[0]["io.modelcontextprotocol/clientCapabilities"]
    assert set(as_client) == {"elicitation", "extensions"}  # it answers no sampling and has no roots

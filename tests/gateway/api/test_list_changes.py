"""Changes of a server's lists reach the hosts that they concern."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged
from mcp.types import PromptListChangedNotification, ResourceListChangedNotification

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw

KINDS: dict[type[object], str] = {
    PromptsListChanged: "prompts",
    PromptListChangedNotification: "prompts",
    ResourcesListChanged: "resources",
    ResourceListChangedNotification: "resources",
}
eras = pytest.mark.parametrize("modern", [True, False], ids=["modern-server", "legacy-server"])


async def announce_until_received(queue: asyncio.Queue[str], kind: str, announce: Callable[[], None]) -> list[str]:
    """Announce until a host is notified; return earlier notifications.

    The host's stream may open late.
    """
    earlier: list[str] = []
    while True:
        announce()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while (received := await queue.get()) != kind:
                    earlier.append(received)
                return earlier


class Hosts:
    """Hosts of both protocol eras for one user, and their notifications."""

    def __init__(self) -> None:
        self.legacy: asyncio.Queue[str] = asyncio.Queue()
        self.current: asyncio.Queue[str] = asyncio.Queue()

    async def connect(self, url: str, headers: dict[str, str], stack: AsyncExitStack) -> None:
        async def on_message(message: Any) -> None:
            if (kind := KINDS.get(type(message))) is not None:
                self.legacy.put_nowait(kind)

        async def connect(mode: str, **options: Any) -> Client:
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=30))
            return await stack.enter_async_context(
                Client(streamable_http_client(url, http_client=http), mode=mode, **options)
            )

        legacy, current = await connect("legacy", message_handler=on_message), await connect("auto")
        await legacy.list_tools()
        listening = current.listen(resources_list_changed=True, prompts_list_changed=True)
        changes = await stack.enter_async_context(listening)

        async def read() -> None:
            async for change in changes:
                self.current.put_nowait(KINDS[type(change)])

        task = asyncio.create_task(read())
        stack.callback(task.cancel)

    async def announce_to_both(self, kind: str, announce: Callable[[], None]) -> list[str]:
        """Announce until both hosts are notified; return earlier notifications."""
        queues = (self.legacy, self.current)
        return [other for queue in queues for other in await announce_until_received(queue, kind, announce)]


@eras
async def test_changes_of_a_personal_server_reach_no_host_of_another_user(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = RawServer(make_raw_tool("t"), modern=modern)
    server.capabilities = {kind: {"listChanged": True} for kind in ("tools", "resources", "prompts")}
    entry = {"identity": "gateway", "share": "user"}
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, entry)}) as gateway,
        AsyncExitStack() as stack,
        asyncio.timeout(50),
    ):
        await eventually(lambda: len(server.streams) == 1)
        keyring, users, streams = Keyring(gateway), {"ada": Hosts(), "bob": Hosts()}, dict[str, Any]()
        for user, hosts in users.items():
            headers = await keyring.create_key(user)
            await hosts.connect(f"{gateway.base_url}/mcp", headers, stack)
            await eventually(lambda: len(server.streams) == len(streams) + 2)
            streams[user] = server.streams[-1]

        def announce(user: str, kind: str) -> None:
            streams[user].put_nowait({"method": f"notifications/{kind}/list_changed"})

        await users["ada"].announce_to_both("resources", lambda: announce("ada", "resources"))
        assert await users["bob"].announce_to_both("prompts", lambda: announce("bob", "prompts")) == []
        assert "prompts" not in await users["ada"].announce_to_both("resources", lambda: announce("ada", "resources"))


@eras
async def test_changes_of_a_shared_server_reach_the_hosts_of_all_users(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = RawServer(make_raw_tool("t"), modern=modern)
    server.capabilities = {kind: {"listChanged": True} for kind in ("tools", "resources", "prompts")}
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        AsyncExitStack() as stack,
        asyncio.timeout(50),
    ):
        keyring = Keyring(gateway)
        for user in ("ada", "bob"):
            hosts = Hosts()
            await hosts.connect(f"{gateway.base_url}/mcp", await keyring.create_key(user), stack)
            for kind in ("resources", "prompts"):
                await hosts.announce_to_both(kind, lambda kind=kind: server.notify(kind))  # type: ignore[misc]

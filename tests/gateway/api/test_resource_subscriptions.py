"""Tests that updates of single resources reach subscribed hosts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp.types import ResourceUpdatedNotification

from gateway.api.mcp import resource_subscriptions
from gateway.mcp_client.server_items import watches
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import Gateway

A, B = "r://a", "r://b"
SUBSCRIBE, UNSUBSCRIBE = "resources/subscribe", "resources/unsubscribe"
eras = pytest.mark.parametrize("modern", [True, False], ids=["modern-server", "legacy-server"])


def make_server(*, modern: bool, **answers: Any) -> RawServer:
    items = [{"uri": uri, "name": uri} for uri in (A, B)]
    accepted = {} if modern else {"resources__subscribe": {}, "resources__unsubscribe": {}}
    server = RawServer(
        make_raw_tool("t"), modern=modern, resources__list={"resources": items}, **{**accepted, **answers}
    )
    server.capabilities = {"tools": {}, "resources": {"subscribe": True}}
    return server


@asynccontextmanager
async def connect_legacy(gateway: Gateway) -> AsyncGenerator[tuple[Client, asyncio.Queue[str]]]:
    """A legacy host, and the URIs that it is told."""
    updated: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            updated.put_nowait(message.params.uri)

    async with connect_host(gateway, "legacy", message_handler=on_message) as host:
        assert host.server_capabilities.resources is not None
        assert host.server_capabilities.resources.subscribe is True
        yield host, updated


async def announce_until_told(server: RawServer, updated: asyncio.Queue[str], uri: str) -> None:
    """Announce updates until a legacy host is told one.

    Its stream may not be open yet.
    """
    while True:
        server.notify_updated(uri)
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while await updated.get() != uri:
                    pass
                return


def list_watched(server: RawServer) -> set[str]:
    """URIs that a modern server was asked to listen to."""
    asked = [params["notifications"] for method, params in server.calls if method == "subscriptions/listen"]
    return {uri for wanted in asked for uri in wanted.get("resourceSubscriptions") or ()}


@eras
async def test_updates_reach_the_hosts_that_subscribed(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = make_server(modern=modern)
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_legacy(gateway) as (legacy, updated),
        connect_legacy(gateway) as (_, not_updated),
        connect_host(gateway, "auto") as current,
        asyncio.timeout(50),
    ):
        own_streams = len(await eventually(lambda: server.streams))
        await legacy.session.subscribe_resource(A)
        async with current.listen(resource_subscriptions=[A, "r://unknown"]) as changes:
            assert changes.honored.resource_subscriptions == [A]
            await announce_until_told(server, updated, A)
            assert await anext(aiter(changes)) == ResourceUpdated(A)
            server.notify_updated(B)
            await announce_until_told(server, updated, f"{A}/part")
            assert await anext(aiter(changes)) == ResourceUpdated(A)
        await legacy.session.unsubscribe_resource(A)
        assert not_updated.empty()
        if modern:
            await eventually(lambda: len(server.streams) == own_streams)
        else:
            await eventually(lambda: server.count(UNSUBSCRIBE) == 1)
        while not updated.empty():
            assert updated.get_nowait() != B
        await legacy.session.subscribe_resource(B)
        await announce_until_told(server, updated, B)


@eras
async def test_subscriptions_end_with_the_session(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = make_server(modern=modern)
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway:
        own_streams = len(await eventually(lambda: server.streams))
        async with connect_legacy(gateway) as (host, _), asyncio.timeout(50):
            await host.session.subscribe_resource(A)
            await host.session.subscribe_resource(A)
            await host.session.subscribe_resource(B)
            if modern:
                assert len(server.streams) - own_streams == 2
        if modern:
            await eventually(lambda: len(server.streams) == own_streams)
        else:
            await eventually(lambda: server.count(UNSUBSCRIBE) == 2)


async def test_subscriptions_of_sessions_users_and_workers_are_bounded(
    database_url: str, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource_subscriptions, "MAX_SESSION_SUBSCRIPTIONS", 1)
    monkeypatch.setattr(watches, "MAX_USER_WATCHES", 2)
    monkeypatch.setattr(watches, "MAX_WATCHES", 3)
    server = make_server(modern=False)
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway:
        keyring = Keyring(gateway)
        for owner in ("ada", "bob"):
            await keyring.create_key(owner)
        ada, bob = keyring.headers("ada"), keyring.headers("bob")
        async with (
            connect_mcp_client(gateway, ada, "legacy") as first,
            connect_mcp_client(gateway, ada, "legacy") as second,
            connect_mcp_client(gateway, ada, "legacy") as third,
            connect_mcp_client(gateway, bob, "legacy") as fourth,
            connect_mcp_client(gateway, bob, "legacy") as fifth,
            asyncio.timeout(50),
        ):
            await first.session.subscribe_resource(A)
            with pytest.raises(MCPError, match="A session may subscribe to 1"):
                await first.session.subscribe_resource(B)
            await second.session.subscribe_resource(A)
            with pytest.raises(MCPError, match="You watch 2 resources"):
                await third.session.subscribe_resource(A)
            await fourth.session.subscribe_resource(A)
            with pytest.raises(MCPError, match="Too many resources"):
                await fifth.session.subscribe_resource(A)
            await fourth.session.unsubscribe_resource(A)
            await fifth.session.subscribe_resource(A)
        await eventually(lambda: server.count(UNSUBSCRIBE) == 1)  # the last of four subscribers has left


async def test_listen_streams_of_a_user_leave_room_for_others(
    database_url: str, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource_subscriptions, "MAX_USER_LISTEN_STREAMS", 1)
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (make_server(modern=False), {})}) as gateway:
        keyring = Keyring(gateway)
        first = await keyring.create_key("ada")
        second = await keyring.create_key("ada")
        async with (
            connect_mcp_client(gateway, first, "auto") as host,
            connect_mcp_client(gateway, second, "auto") as refused,
            connect_mcp_client(gateway, await keyring.create_key("bob"), "auto") as other,
            asyncio.timeout(50),
        ):
            async with host.listen(resource_subscriptions=[A]):
                with pytest.raises(MCPError, match="You have 1 listen streams"):
                    async with refused.listen(resource_subscriptions=[A]):
                        pass
                async with other.listen(resource_subscriptions=[A]) as changes:
                    assert changes.honored.resource_subscriptions == [A]

            async def has_room() -> bool:
                with suppress(MCPError):
                    async with refused.listen(resource_subscriptions=[A]):
                        return True
                return False

            await eventually(has_room)


async def test_caller_who_may_not_read_a_resource_may_not_watch_it(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = make_server(modern=False)
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada", tools=["raw_t"])
        async with connect_mcp_client(gateway, keyring.headers("ada"), "legacy") as host:
            with pytest.raises(MCPError, match="No connected server has the resource"):
                await host.session.subscribe_resource(A)
        async with (
            connect_mcp_client(gateway, keyring.headers("ada"), "auto") as host,
            host.listen(resource_subscriptions=[A]) as changes,
        ):
            assert not changes.honored.resource_subscriptions
        assert server.count(SUBSCRIBE) == 0


async def test_refused_subscription_is_an_error_of_the_host(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = make_server(modern=False, resources__subscribe=None)  # not found
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_legacy(gateway) as (host, _),
    ):
        with pytest.raises(MCPError, match="Method not found"):
            await host.session.subscribe_resource(A)
        with pytest.raises(MCPError, match="No connected server"):
            await host.session.subscribe_resource("r://unknown")


async def test_subscription_survives_a_cut_stream(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    server = make_server(modern=True)
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_legacy(gateway) as (host, updated),
        asyncio.timeout(50),
    ):
        await host.session.subscribe_resource(A)
        await announce_until_told(server, updated, A)
        server.cut_streams()
        assert await updated.get() == A  # it may have changed meanwhile
        await announce_until_told(server, updated, A)
        assert list_watched(server) == {A}


async def test_subscription_survives_a_new_session_of_a_legacy_server(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = make_server(modern=False)
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_legacy(gateway) as (host, updated),
        asyncio.timeout(50),
    ):
        await host.session.subscribe_resource(A)
        await announce_until_told(server, updated, A)
        server.forgets_session = True
        await host.call_tool("raw_t", {})  # in the session that has the subscription
        await eventually(lambda: server.count(SUBSCRIBE) == 2)
        await announce_until_told(server, updated, A)


async def test_flood_of_updates_is_paced_and_joined(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    server = make_server(modern=False)
    async with (
        serve_raw(database_url, simulator, tmp_path, {"raw": (server, {})}) as gateway,
        connect_legacy(gateway) as (host, updated),
        asyncio.timeout(50),
    ):
        await host.session.subscribe_resource(A)
        await announce_until_told(server, updated, A)
        for number in range(2_000):
            server.notify_updated(f"{A}/{number}" if number % 2 else A)
        server.notify_updated(f"{A}#last")
        received: list[str] = []
        while f"{A}#last" not in received and A not in received[-1:]:
            received.append(await updated.get())
        assert len(received) <= 400

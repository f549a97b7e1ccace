"""Roots of hosts, entries and the setting for MCP servers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import CreateMessageResult, ElicitRequestParams, ElicitResult, ListRootsResult, Root, TextContent

from gateway.config import Settings
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_questions import get_only_event
from tests.gateway.api.test_sampling import ROOT, eras, serve_sampling
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway

host_eras = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["modern-host", "legacy-host"])
DEFAULT = "file:///srv/default"


class RootsHost:
    """A host whose directory changes."""

    def __init__(self, *roots: str, **fields: Any) -> None:
        self.roots = roots
        self.fields = fields
        self.asked = 0

    async def list_roots(self, _context: Any) -> ListRootsResult:
        self.asked += 1
        return ListRootsResult(roots=[Root.model_validate({"uri": root, **self.fields}) for root in self.roots])


@asynccontextmanager
async def connect_roots_host(gateway: Gateway, mode: str, host: RootsHost, **options: Any) -> AsyncGenerator[Client]:
    async with connect_host(gateway, mode, list_roots_callback=host.list_roots, **options) as client:
        yield client


async def show(client: Client, tool: str = "show_roots") -> str:
    return get_text(await client.call_tool(f"s_{tool}", {}))


async def wait_until_shown(client: Client, remembered: str) -> None:
    """Wait until the server remembers these roots for the client's session."""

    async def is_shown() -> bool:
        return await show(client, "show_remembered") == remembered

    await eventually(is_shown)


@eras
@host_eras
async def test_server_sees_the_roots_of_the_calling_host_alone(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, mode: str
) -> None:
    entry = {"roots": [ROOT]}
    async with serve_sampling(database_url, simulator, tmp_path, modern, entry) as sampled, AsyncExitStack() as stack:
        hosts = [RootsHost(f"file:///home/host{number}") for number in range(3)]
        clients = [await stack.enter_async_context(connect_roots_host(sampled.gateway, mode, host)) for host in hosts]
        assert await show(clients[0]) == hosts[0].roots[0]
        for _ in range(2):
            seen = await asyncio.gather(*map(show, clients))
            assert seen == [host.roots[0] for host in hosts]
        plain = await stack.enter_async_context(connect_host(sampled.gateway, mode))
        assert await show(plain) == ROOT
        reply = await sampled.call("show_roots")
        assert get_only_event(reply.events, "tool.result")["content"][0]["text"] == ROOT
        assert all(host.asked for host in hosts)


@pytest.mark.faults
@host_eras
async def test_server_that_remembers_roots_knows_those_of_its_host(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, False, {"roots": [ROOT]}) as sampled:
        hosts = [RootsHost("file:///home/ada"), RootsHost("file:///home/bob")]
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connect_roots_host(sampled.gateway, mode, host)) for host in hosts
            ]
            for client, host in zip(clients, hosts, strict=True):
                await wait_until_shown(client, host.roots[0])
            if mode == "legacy":
                hosts[0].roots = ("file:///home/ada/other",)
                await clients[0].send_roots_list_changed()  # pyright: ignore[reportDeprecated]
                await wait_until_shown(clients[0], hosts[0].roots[0])
                assert await show(clients[1], "show_remembered") == "file:///home/bob"


@eras
@host_eras
async def test_setting_has_the_roots_for_entries_and_callers_without_roots(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, mode: str
) -> None:
    async with (
        serve_sampling(database_url, simulator, tmp_path, modern, {}, mcp_roots=(DEFAULT,)) as sampled,
        connect_host(sampled.gateway, mode) as plain,
        connect_roots_host(sampled.gateway, mode, RootsHost(ROOT)) as rooted,
    ):
        assert await show(plain) == DEFAULT
        assert await show(rooted) == ROOT
        direct = await sampled.gateway.post("/api/v1/tools/s_show_roots", {})
        assert direct.body["content"][0]["text"] == DEFAULT
        reply = await sampled.call("show_roots")
        assert get_only_event(reply.events, "tool.result")["content"][0]["text"] == DEFAULT


async def test_entry_with_an_empty_list_has_no_roots(database_url: str, simulator: Simulator, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"roots": []}
    async with serve_sampling(database_url, simulator, tmp_path, True, entry, mcp_roots=(DEFAULT,)) as sampled:
        reply = await sampled.call("show_roots")
        assert get_only_event(reply.events, "tool.result")["outcome"] == "error"


@host_eras
async def test_roots_of_the_setting_join_answers_of_the_host(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    async def elicit(_context: Any, _params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={})

    async def sample(_context: Any, _params: Any) -> CreateMessageResult:
        return CreateMessageResult(role="assistant", content=TextContent(text="sampled"), model="m")

    async with (
        serve_sampling(database_url, simulator, tmp_path, True, {"protocol": "2026-07-28"}, mcp_roots=(DEFAULT,)) as s,
        connect_host(s.gateway, mode, elicitation_callback=elicit, sampling_callback=sample) as client,
    ):
        assert await show(client, "ask_both") == f"accept sampled {DEFAULT}"


HOSTILE: dict[str, Any] = {
    "hundreds": RootsHost(*(f"file:///home/{number}" for number in range(150))),
    "giant-name": RootsHost(ROOT, name="n" * 100_000),
    "giant-uri": RootsHost("file:///" + "u" * 100_000),
}


@eras
@host_eras
@pytest.mark.parametrize("hostile", HOSTILE)
async def test_hostile_roots_of_a_host_reach_no_server(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, mode: str, hostile: str
) -> None:
    async with (
        serve_sampling(database_url, simulator, tmp_path, modern, {"roots": [ROOT]}) as sampled,
        connect_roots_host(sampled.gateway, mode, HOSTILE[hostile]) as client,
        connect_roots_host(sampled.gateway, mode, RootsHost("file:///home/ok"), headers={"X-Other": "1"}) as other,
    ):
        try:
            result = await client.call_tool("s_show_roots", {})
        except MCPError as error:
            text = str(error)
        else:
            assert result.is_error
            text = get_text(result)
        assert len(text) < 1_000
        assert "/home" not in text
        assert ROOT not in text
        assert await show(other) == "file:///home/ok"


@pytest.mark.faults
@eras
async def test_legacy_host_that_lists_no_roots_in_time_does_not_hold_the_server(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.mcp_client.connection.roots.HOST_SECONDS", 0.5)
    monkeypatch.setattr("gateway.api.mcp.host.ROOTS_SECONDS", 0.5)
    released = asyncio.Event()

    async def never(_context: Any) -> ListRootsResult:
        await released.wait()
        return ListRootsResult(roots=[])

    async with (
        serve_sampling(database_url, simulator, tmp_path, modern, {}) as sampled,
        connect_host(sampled.gateway, "legacy", list_roots_callback=never) as client,
        asyncio.timeout(20),
    ):
        with contextlib.suppress(MCPError):  # the server's own error
            assert (await client.call_tool("s_show_roots", {})).is_error
        released.set()


@pytest.mark.faults
async def test_sessions_of_a_host_with_roots_end_with_the_host(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    async with serve_sampling(database_url, simulator, tmp_path, False, {}) as sampled:
        for number in range(3):
            async with connect_roots_host(sampled.gateway, "legacy", RootsHost(f"file:///home/{number}")) as client:
                await show(client)
        pool = sampled.gateway.state.toolbox
        while hasattr(pool, "_toolbox"):
            pool = pool._toolbox
        await eventually(lambda: len(pool._pool._open) == 1)


def test_setting_reads_a_list_and_refuses_other_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_ROOTS", f"{ROOT}, {DEFAULT}")
    assert Settings().mcp_roots == (ROOT, DEFAULT)
    monkeypatch.setenv("MCP_ROOTS", "https://example.com/")
    with pytest.raises(ValueError, match="mcp_roots"):
        Settings()

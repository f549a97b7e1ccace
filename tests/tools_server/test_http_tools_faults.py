"""Defined tools while connections, names, keys and processes change."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from mcp import Client

from tests.eventually import eventually
from tests.tools_server.conftest import connect, serve_tools, serve_web, text_of
from tests.tools_server.definitions import Api, DefinitionClient, open_client, serve_api
from tools_server.http_tools import catalog

pytestmark = pytest.mark.faults
OLD_KEY, NEW_KEY, SECRET_VALUE = "the-old-key-of-the-tests", "the-new-key-of-the-tests", "sk-of-the-rotation"
PRIVATE = {"tools_private_targets": ("127.0.0.1:*",)}


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


async def list_names(client: Client) -> set[str]:
    return {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}


async def call(defining: DefinitionClient, tool: str, /, **values: Any) -> Any:
    async with connect(defining.address, "auto") as client:
        return await client.call_tool(tool, values)


async def test_change_during_a_lost_listener_is_seen_after_the_reconnect(
    database_url: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change the table without a notification.

    So only the reload of a new listener can show it.
    """
    monkeypatch.setattr(catalog, "_POLL_SECONDS", 3_600)
    async with (
        serve_tools(database_url=database_url, tools_encryption_key=OLD_KEY) as address,
        open_client(address) as defining,
        connect(address, "auto") as client,
    ):
        await defining.define("first", "https://x.example/")
        assert "first" in await list_names(client)
        draft = json.dumps({"name": "second", "description": "d", "url": "https://x.example/"})
        await db.execute(
            "INSERT INTO tools.http_tools (name, draft, origin, published, published_origin, revision, "
            "published_revision, updated_by) VALUES ('second', $1::json, 'https://x.example', $1::json, "
            "'https://x.example', 1, 1, 'ada')",
            draft,
        )
        assert "second" not in await list_names(client)

        async def has_lost_listener() -> bool:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            listeners = "(query ILIKE 'listen%' OR query = 'SELECT 1') AND pid <> pg_backend_pid()"
            return await db.fetchval(f"{query} AND {listeners}") > 0

        await eventually(has_lost_listener)

        async def is_listed() -> bool:
            return "second" in await list_names(client)

        await eventually(is_listed)
        await defining.send("DELETE", "/second")  # the new listener hears of it

        async def is_gone() -> bool:
            return not await is_listed()

        await eventually(is_gone)


async def test_secret_is_used_while_its_key_is_replaced(database_url: str, api: Api) -> None:
    async with (
        serve_tools(database_url=database_url, tools_encryption_key=OLD_KEY, **PRIVATE) as address,
        open_client(address) as defining,
    ):
        headers, secrets = {"X-Key": "{secret.key}"}, {"key": SECRET_VALUE}
        await defining.define("old", f"{api.url}/a", headers=headers, secrets=secrets)
    rotated = {"tools_encryption_key": NEW_KEY, "tools_encryption_old_keys": (OLD_KEY,)}
    async with (
        serve_tools(database_url=database_url, **rotated, **PRIVATE) as address,
        open_client(address) as defining,
    ):
        assert not (await call(defining, "old")).is_error
        await defining.send("PATCH", "/old", {"secrets": {"key": f"{SECRET_VALUE}-2"}})
        assert not (await call(defining, "old")).is_error
    for key, is_error in ((NEW_KEY, False), (OLD_KEY, True)):
        async with (
            serve_tools(database_url=database_url, tools_encryption_key=key, **PRIVATE) as address,
            open_client(address) as defining,
        ):
            result = await call(defining, "old")
            assert result.is_error == is_error
            if is_error:
                assert "was stored with another TOOLS_ENCRYPTION_KEY" in text_of(result)
                assert "calculator" in await _list_tools(address)  # the others work
    sent = [request["headers"]["X-Key"] for request in api.requests]
    assert sent == [SECRET_VALUE, f"{SECRET_VALUE}-2", f"{SECRET_VALUE}-2"]


async def _list_tools(address: str) -> set[str]:
    async with connect(address, "auto") as client:
        return await list_names(client)


async def test_name_that_resolves_to_a_private_address_later_is_refused(
    database_url: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolve the name to a public address first, then to loopback."""
    port = int(api.url.rpartition(":")[2])
    resolve, asked = socket.getaddrinfo, []

    def rebind(host: Any, *others: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return resolve(host, *others, **options)
        asked.append(host)
        address = "192.0.2.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    async with serve_tools(database_url=database_url) as address, open_client(address) as defining:
        await defining.define("rebound", f"http://rebinding.example:{port}/secret", timeout_seconds=2)
        for _ in range(3):
            result = await call(defining, "rebound")
            assert result.is_error
            assert "127.0.0.1" not in text_of(result)
    assert len(asked) == 3
    assert api.requests == []


async def test_slow_beginning_and_endless_body_end_at_the_time_out_and_the_limit(database_url: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/silent":
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        while True:  # the client closes the connection at its limit
            await response.write(b"x" * 65_536)

    async with (
        serve_web(answer) as url,
        serve_tools(database_url=database_url, **PRIVATE) as address,
        open_client(address) as defining,
    ):
        await defining.define("silent", f"{url}/silent", timeout_seconds=0.3)
        await defining.define("endless", f"{url}/endless", result={"max_bytes": 1_000})
        silent, endless = await call(defining, "silent"), await call(defining, "endless")
    assert (silent.is_error, "in time" in text_of(silent)) == (True, True)
    assert not endless.is_error
    assert len(text_of(endless)) < 1_200


async def test_tool_is_called_while_the_database_does_not_answer(
    database_url: str, api: Api, db: asyncpg.Connection
) -> None:
    async with (
        serve_tools(database_url=database_url, tools_encryption_key=OLD_KEY, **PRIVATE) as address,
        open_client(address) as defining,
    ):
        await defining.define("stays", f"{api.url}/", headers={"X-Key": "{secret.key}"}, secrets={"key": SECRET_VALUE})
        async with db.transaction():
            await db.execute("LOCK TABLE tools.http_tools, tools.http_tool_secrets IN ACCESS EXCLUSIVE MODE")
            assert not (await call(defining, "stays")).is_error
    assert api.requests[0]["headers"]["X-Key"] == SECRET_VALUE


async def test_slow_origin_leaves_room_for_the_others(database_url: str, api: Api) -> None:
    waiting = 0
    released = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        await released.wait()
        return web.Response(text="late")

    async with (
        serve_web(hang) as url,
        serve_tools(database_url=database_url, **PRIVATE) as address,
        open_client(address) as defining,
        connect(address, "auto") as client,
    ):
        await defining.define("slow", f"{url}/", timeout_seconds=60)
        await defining.define("quick", f"{api.url}/")
        calls = [asyncio.create_task(client.call_tool("slow", {})) for _ in range(70)]
        await eventually(lambda: waiting >= 16)
        assert not (await call(defining, "quick")).is_error
        assert waiting == 16
        released.set()
        async with asyncio.timeout(60):
            results = await asyncio.gather(*calls)
    assert {text_of(result) for result in results} == {"late"}

"""`/api/v1/tools/definitions`: tools of admins, used on any worker."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from aiohttp import web
from mcp import Client
from mcp.types import ToolListChangedNotification
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import Gateway, Reply, serve_gateway, serve_tools
from tests.tools_server.definitions import Api, arguments, serve_api
from tests.tools_server.openapi_documents import CHAT

PATH = "/api/v1/tools/definitions"
SECRET_VALUE = "sk-of-the-warehouse"


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def workers(database_url: str, simulator: Simulator) -> AsyncGenerator[list[Gateway]]:
    """Two gateways with tool servers of their own, on one database."""
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": "a-key-of-both-tool-servers"}
    async with AsyncExitStack() as stack:
        started: list[Gateway] = []
        for _ in range(2):
            url = await stack.enter_async_context(serve_tools(database_url, **options))
            started.append(await stack.enter_async_context(serve_gateway(database_url, simulator, url)))
        yield started


async def send(gateway: Gateway, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    async with gateway.session.request(method, f"{gateway.base_url}{path}", json=body, headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def lists_tool(gateway: Gateway, name: str) -> bool:
    return name in {tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]}


async def test_defined_tool_is_used_with_an_approval_by_two_workers(
    workers: list[Gateway], api: Api, db: asyncpg.Connection
) -> None:
    first, second = workers
    api.answer = {"stock": 7, "seen": SECRET_VALUE}
    definition = {
        "name": "count_stock",
        "description": "Count the stock of an article.",
        "method": "POST",
        "url": f"{api.url}/stock/{{article}}",
        "input_schema": arguments("article", article=None),
        "headers": {"Authorization": "Bearer {secret.token}"},
        "body": {"article": "{article}"},
        "secrets": {"token": SECRET_VALUE},
    }
    status, made = await send(first, "POST", PATH, definition)
    assert (status, made["state"]) == (201, "draft")
    status, tested = await send(second, "POST", f"{PATH}/count_stock/test", {"arguments": {"article": "a/1"}})
    assert (status, tested) == (200, {"text": '{"stock": 7, "seen": "[secret token]"}', "is_error": False})
    assert (await send(first, "POST", f"{PATH}/count_stock/publish", {}))[0] == 200
    for worker in workers:
        await eventually(lambda worker=worker: lists_tool(worker, "count_stock"))
    waiting = await first.chat('use count_stock with {"article": "b"}', approval="destructive")
    question = waiting.body["inputs"][0]
    assert question["kind"] == "approval"
    assert len(api.requests) == 1
    answer = {"input_id": question["input_id"], "action": "accept"}
    reply = await second.post(f"/api/v1/turns/{waiting.body['turn_id']}/input", answer)
    assert reply.status < 300, reply.body

    async def is_completed() -> bool:
        return (await second.get(f"/api/v1/turns/{waiting.body['turn_id']}")).body["status"] == "completed"

    await eventually(is_completed)
    assert [request["target"] for request in api.requests] == ["/stock/a%2F1", "/stock/b"]
    assert api.requests[1]["headers"]["Authorization"] == f"Bearer {SECRET_VALUE}"
    stored = await db.fetch(
        "SELECT action, subject, detail FROM audit_log WHERE action LIKE 'definition.%' ORDER BY seq"
    )
    assert [row["action"].removeprefix("definition.") for row in stored] == ["create", "test", "publish"]
    assert {row["subject"] for row in stored} == {"tool definition count_stock"}
    dump = str(stored) + str(await db.fetch("SELECT t::text FROM turn_events t"))
    dump += str(await db.fetch("SELECT c::text FROM tool_calls c"))
    assert SECRET_VALUE not in dump
    assert (await send(second, "DELETE", f"{PATH}/count_stock"))[0] == 204
    for worker in workers:

        async def is_gone(worker: Gateway = worker) -> bool:
            return not await lists_tool(worker, "count_stock")

        await eventually(is_gone)


async def test_only_admins_define_tools(gateway: Gateway, keyring: Keyring) -> None:
    await keyring.create_key("uma")
    await keyring.create_key("scoped", role="admin", scopes=("chat", "tools"))
    body = {"name": "x", "description": "d", "url": "https://x.example/"}
    await keyring.create_key("limited", role="admin", servers=("other",))
    await keyring.create_key("narrow", role="admin", tools=("calculator",))
    for owner in ("uma", "scoped", "limited", "narrow"):
        for method, path, content in (
            ("GET", PATH, None),
            ("POST", PATH, body),
            ("PATCH", f"{PATH}/x", {"title": "t"}),
            ("POST", f"{PATH}/x/test", {}),
            ("POST", f"{PATH}/x/publish", {}),
            ("POST", f"{PATH}/import", {"url": "https://x.example/", "apply": True}),
            ("DELETE", f"{PATH}/x", None),
        ):
            assert await keyring.request_status(method, owner, path, content) == 403
    assert await keyring.request_status("POST", "root", PATH, body) == 201
    assert [row["name"] for row in (await keyring.get("root", PATH)).body["definitions"]] == ["x"]


async def test_refusals_of_the_tool_server_are_passed_on(gateway: Gateway) -> None:
    body = {"name": "x", "description": "d", "url": "https://x.example/{id}"}
    replies: list[Reply] = [
        await gateway.post(PATH, body),
        await gateway.post(PATH, body | {"url": "https://x.example/", "name": "calculator"}),
        await gateway.get(f"{PATH}/none"),
        await gateway.post(PATH, body | {"secrets": {"a": SECRET_VALUE, "b": "1"}}),
    ]
    assert [(reply.status, reply.body["error"]["param"]) for reply in replies] == [
        (422, "url"),
        (409, "name"),
        (404, "name"),
        (422, "secrets.b"),
    ]
    assert SECRET_VALUE not in str([reply.body for reply in replies])


async def test_change_without_an_answer_is_in_the_audit_log(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        body = {"name": "x", "description": "d", "url": "https://x.example/"}
        status, answer = await send(gateway, "POST", PATH, body)
        assert (status, answer["error"]["code"]) == (502, "mcp_failed")
        assert (await send(gateway, "GET", PATH))[0] == 502
    rows = await db.fetch("SELECT action, detail FROM audit_log WHERE action LIKE 'definition.%'")
    assert [(row["action"], json.loads(row["detail"])["outcome"]) for row in rows] == [("definition.create", "unknown")]


async def run_command(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def test_document_is_imported_at_the_command_line(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(CHAT))
    options = ["tools", "import", str(file), "--url", gateway.base_url, "--server-url", "https://api.example.com"]
    shown = await run_command(*options)
    assert shown.exit_code == 0, shown.output
    assert "+ add    get_items" in shown.output
    assert "Nothing has changed." in shown.output
    assert (await gateway.get(PATH)).body == {"definitions": []}
    applied = await run_command(*options, "--operation", "GET *", "--apply")
    assert "Applied." in applied.output
    assert [row["name"] for row in (await gateway.get(PATH)).body["definitions"]] == ["get_items"]
    refused = await run_command(*options[:-1], "ftp://x.example", "--apply")
    assert refused.exit_code == 0
    assert "! skip" in refused.output
    file.write_text("[")
    assert (await run_command(*options)).exit_code == 1
    entries = (await gateway.get("/api/v1/audit?action=definition.import")).body["items"]
    assert [entry["subject"] for entry in entries] == ["tool definition document"] * 2


@pytest.mark.faults
async def test_hosts_of_both_workers_hear_of_a_definition(workers: list[Gateway], api: Api) -> None:
    first, second = workers
    changed = asyncio.Event()

    async def on_message(message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            changed.set()

    async def is_listed(host: Client, name: str) -> bool:
        return name in {tool.name for tool in (await host.list_tools(cache_mode="refresh")).tools}

    async with (
        connect_host(first, "legacy", message_handler=on_message) as legacy,
        connect_host(second, "auto") as modern,
        modern.listen(tools_list_changed=True) as changes,
    ):
        assert not await is_listed(legacy, "count_stock")
        definition = {"name": "count_stock", "description": "d", "url": f"{api.url}/stock"}
        assert (await send(second, "POST", PATH, definition))[0] == 201
        assert (await send(second, "POST", f"{PATH}/count_stock/publish", {}))[0] == 200
        async with asyncio.timeout(60):
            while not await is_listed(legacy, "count_stock"):
                await changed.wait()
                changed.clear()
            while not await is_listed(modern, "count_stock"):
                await anext(aiter(changes))
        for host in (legacy, modern):
            assert not (await host.call_tool("count_stock", {})).is_error
    assert len(api.requests) == 2


@pytest.mark.faults
async def test_secret_is_in_no_log_audit_export_answer_or_prompt(
    workers: list[Gateway], api: Api, db: asyncpg.Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    """Let the server echo the secret in several encodings."""
    gateway, _ = workers
    encoded = base64.b64encode(SECRET_VALUE.encode()).decode()
    echoes: list[Any] = [
        web.json_response({"a": SECRET_VALUE, "b": [encoded], SECRET_VALUE[::-1]: quote(SECRET_VALUE, safe="")}),
        web.Response(status=500, text=f"key {SECRET_VALUE} is wrong", headers={"X-Echo": SECRET_VALUE}),
        web.Response(status=302, headers={"Location": f"http://thief.example/?k={SECRET_VALUE}"}),
        web.Response(body=b"x", headers={"Content-Type": f"image/{SECRET_VALUE}"}),
        web.Response(status=302, headers={"Location": f"ftp://{SECRET_VALUE}/"}),
    ]
    api.answer = lambda _: echoes.pop(0)
    definition = {
        "name": "spy",
        "description": "Spy.",
        "url": f"{api.url}/spy",
        "headers": {"Authorization": "Basic {base64.token}"},
        "query": [{"name": "k", "value": "{secret.token}"}],
        "secrets": {"token": SECRET_VALUE},
        "annotations": {"read_only": True},
    }
    seen: list[Any] = [await send(gateway, "POST", PATH, definition)]
    seen.append(await send(gateway, "POST", f"{PATH}/spy/publish", {}))
    await eventually(lambda: lists_tool(gateway, "spy"))
    seen += [(await gateway.chat("use spy with {}", user="ada")).body for _ in echoes[1:]]
    seen.append(await send(gateway, "POST", f"{PATH}/spy/test", {}))
    seen.append(await send(gateway, "PATCH", f"{PATH}/spy", {"secrets": {"token": SECRET_VALUE}, "revision": 99}))
    seen.append(await send(gateway, "PATCH", f"{PATH}/spy", {"secrets": {"nobody": SECRET_VALUE}}))
    for path in (
        PATH,
        f"{PATH}/spy",
        "/api/v1/tools",
        "/api/v1/audit",
        "/api/v1/admin/user-data?user=local",
        "/metrics",
    ):
        async with gateway.session.get(f"{gateway.base_url}{path}") as response:
            seen.append(await response.text())
    seen += [gateway.simulator.requests, capfd.readouterr()]
    for table in ("turns", "turn_events", "tool_calls", "audit_log", "tools.http_tools", "tools.http_tool_secrets"):
        seen += await db.fetch(f"SELECT t::text FROM {table} t")
    dump = json.dumps(seen, default=str)
    assert "[secret token]" in dump
    for form in (SECRET_VALUE, encoded.rstrip("="), SECRET_VALUE[::-1], SECRET_VALUE.encode().hex()):
        assert form not in dump
    assert echoes == []


@pytest.mark.faults
async def test_document_is_imported_published_and_read_again_at_the_command_line(
    workers: list[Gateway], api: Api, tmp_path: Path
) -> None:
    """Use YAML, a private secret, and a newer document."""
    gateway, _ = workers
    file, secret = tmp_path / "pets.yaml", tmp_path / "token"
    secret.write_text(f"{SECRET_VALUE}\n")
    file.write_text(PETS)
    options = ["tools", "import", str(file), "--url", gateway.base_url, "--server-url", api.url, "--prefix", "pets_"]
    shown = await run_command(*options, "--secret", f"token=@{secret}")
    assert ("needs the secret token" in shown.output, "Nothing has changed." in shown.output) == (True, True)
    unknown = await run_command(*options, "--secret", "other=abcd", "--apply")
    assert (unknown.exit_code, "no operation at" in unknown.output) == (1, True)
    applied = await run_command(*options, "--secret", f"token=@{secret}", "--apply", "--publish")
    assert (applied.exit_code, SECRET_VALUE in applied.output) == (0, False), applied.output
    await eventually(lambda: lists_tool(gateway, "pets_getPet"))
    reply = await gateway.chat('use pets_getPet with {"id": 7, "fields": ["a", "b"]}')
    assert reply.body["tool_calls"][0]["outcome"] == "ok", reply.body
    assert api.requests[0]["target"] == "/pets/7?fields=a,b"
    assert api.requests[0]["headers"]["Authorization"] == f"Bearer {SECRET_VALUE}"
    again = await run_command(*options)
    assert re.findall(r"^(\S) (\w+)", again.output, re.MULTILINE)[:2] == [("=", "keep"), ("=", "keep")]
    file.write_text(PETS.replace("Get a pet.", "Get a pet by number.").replace("  /owners:", "  /people:"))
    newer = await run_command(*options)
    for line in (
        "~ change pets_getPet",
        '- "Get a pet."',
        '+ "Get a pet by number."',
        "+ add",
        "? lost   pets_listOwners",
    ):
        assert line in newer.output, newer.output
    assert (await gateway.get(f"{PATH}/pets_getPet")).body["definition"]["description"] == "Get a pet."
    removed = await run_command(*options, "--apply", "--publish", "--remove-missing")
    assert "- remove pets_listOwners" in removed.output
    names = [row["name"] for row in (await gateway.get(PATH)).body["definitions"]]
    assert names == ["pets_getPet", "pets_listOwners_2"]
    absent = await run_command("tools", "import", str(tmp_path / "none"), "--url", gateway.base_url)
    assert (absent.exit_code, "cannot read" in absent.output) == (2, True)


PETS = """
openapi: 3.1.0
info: {title: Pets, version: '1'}
security: [{token: []}]
paths:
  /pets/{id}:
    get:
      operationId: getPet
      summary: Get a pet.
      parameters:
        - {name: id, in: path, required: true, schema: {type: integer}}
        - {name: fields, in: query, explode: false, schema: {type: array, items: {type: string}}}
  /owners:
    get: {operationId: listOwners, summary: List owners.}
components: {securitySchemes: {token: {type: http, scheme: bearer}}}
"""

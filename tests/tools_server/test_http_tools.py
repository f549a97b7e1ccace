"""Defined tools at the tool server: made, called and attacked over HTTP."""

import asyncio
import gzip
import sys
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from mcp import Client

from gateway_runtime.settings.encryption import Cipher
from tests.eventually import eventually
from tests.tools_server.conftest import ERAS, ROOT, connect, environment, serve_tools, serve_web, text_of
from tests.tools_server.definitions import Api, DefinitionClient, arguments, open_client, serve_api

KEY = "an-encryption-key-of-the-tests"
SECRET_VALUE = "sk-live/5+quite secret"


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def defining(database_url: str) -> AsyncGenerator[DefinitionClient]:
    """An admin of a tool server that may call loopback addresses."""
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": KEY}
    async with (
        serve_tools(database_url=database_url, **options) as address,
        open_client(address) as client,
    ):
        yield client


async def call(defining: DefinitionClient, name: str, **values: Any) -> Any:
    async with connect(defining.address, "auto") as client:
        return await client.call_tool(name, values)


async def test_definition_lives_from_draft_to_deletion(
    defining: DefinitionClient, api: Api, db: asyncpg.Connection
) -> None:
    api.answer = {"items": [{"name": "a", "x": 1}, {"name": "b"}]}
    await defining.define(
        "find_users",
        f"{api.url}/users/{{id}}{{?q,tags*}}",
        publish=False,
        method="POST",
        input_schema=arguments("id", id=None, q=None, tags={"type": "array"}, age={"type": "integer"}),
        headers={"Authorization": "Bearer {secret.token}", "X-Q": "{q}"},
        body={"age": "{age}", "note": "for {id}", "query": "{q}"},
        result={"select": "/items/*/name"},
        secrets={"token": SECRET_VALUE},
    )
    async with connect(defining.address, "auto") as client:
        assert "find_users" not in await _list_names(client)
        status, tested = await defining.send("POST", "/find_users/test", {"arguments": {"id": "a/b", "age": 3}})
        assert (status, tested) == (200, {"text": '["a", "b"]', "is_error": False})
        assert (await defining.send("POST", "/find_users/publish", {"revision": 1}))[0] == 200
        listed = await client.list_tools(cache_mode="refresh")
        tool = next(tool for tool in listed.tools if tool.name == "find_users")
        assert tool.annotations is not None
        assert tool.annotations.destructive_hint is True
        called = await client.call_tool("find_users", {"id": "é", "q": 'a"&b', "tags": ["x", "y"]})
        assert text_of(called) == '["a", "b"]'
        status, changed = await defining.send("PATCH", "/find_users", {"description": "Better.", "revision": 1})
        assert (status, changed["state"], changed["revision"]) == (200, "changed", 2)
        assert (await defining.send("PATCH", "/find_users", {"title": "x", "revision": 1}))[0] == 409
        assert (await defining.send("DELETE", "/find_users"))[0] == 204
        assert "find_users" not in await _list_names(client)
    first, second = api.requests
    assert first["target"] == "/users/a%2Fb"
    assert first["body"] == '{"age": 3, "note": "for a/b"}'
    assert "X-Q" not in first["headers"]
    assert second["target"] == "/users/%C3%A9?q=a%22%26b&tags=x&tags=y"
    assert second["body"] == '{"note": "for é", "query": "a\\"&b"}'
    assert second["headers"]["Authorization"] == f"Bearer {SECRET_VALUE}"
    assert await db.fetchval("SELECT count(*) FROM tools.http_tool_secrets") == 0


async def test_only_admin_tokens_of_the_gateway_define_tools(defining: DefinitionClient) -> None:
    async with open_client(defining.address, scope=None) as user, open_client(defining.address, "tools") as other:
        for client in (user, other):
            for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/x"), ("POST", "/x/test")):
                status, body = await client.send(method, path, {})
                assert (status, body["error"]["code"]) == (403, "forbidden")
        status, _ = await user.send("GET", "", None, Authorization="Bearer nonsense")
        assert status == 401


async def test_secret_is_never_readable_again(defining: DefinitionClient, api: Api, db: asyncpg.Connection) -> None:
    made = await defining.define(
        "spy", f"{api.url}/a{{?q}}", input_schema=arguments(q=None), headers={"X-Key": "{secret.key}"},
        query=[{"name": "k", "value": "{secret.key}"}], secrets={"key": SECRET_VALUE},
    )  # fmt: skip
    assert made["secrets"] == {"key": {"is_set": True}}
    for path in ("", "/spy"):
        assert SECRET_VALUE not in str(await defining.send("GET", path))
    assert SECRET_VALUE.encode() not in await db.fetchval("SELECT value FROM tools.http_tool_secrets")

    def echo(request: web.Request) -> web.Response:
        seen = {"headers": dict(request.headers), "target": request.raw_path, "nested": [{request.headers["X-Key"]: 1}]}
        return web.json_response(seen, status=int(request.query.get("q", "200")))

    api.answer = echo
    for status in ("200", "500"):
        text = text_of(await call(defining, "spy", q=status))
        assert "[secret key]" in text
        assert "quite" not in text
    api.answer = lambda request: web.Response(text=f"<b>{request.headers['X-Key']}</b> {request.raw_path}")
    text = text_of(await call(defining, "spy", q="200"))
    assert text == "<b>[secret key]</b> /a?q=200&k=[secret key]"


async def reencrypt(database_url: str, **settings: str) -> tuple[int | None, str]:
    """Run `tools-server --reencrypt`; return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools_server.cli", "--reencrypt"),
        env=environment(DATABASE_URL=database_url, **settings),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.faults
async def test_secrets_are_encrypted_again_with_the_current_key(
    database_url: str, defining: DefinitionClient, db: asyncpg.Connection
) -> None:
    query, new_key = "SELECT value FROM tools.http_tool_secrets", "the-next-key-of-the-tests"
    await db.execute(
        "INSERT INTO tools.http_tool_secrets (origin, name, value, updated_by)"
        " VALUES ('https://a.example', 't', $1, 'x')",
        Cipher(KEY).encrypt(SECRET_VALUE.encode()),
    )
    keys = {"TOOLS_ENCRYPTION_KEY": new_key, "TOOLS_ENCRYPTION_OLD_KEYS": KEY}
    assert await reencrypt(database_url, **keys) == (0, "1 secrets are encrypted with the current key.\n")
    assert Cipher(new_key).decrypt(await db.fetchval(query)) == SECRET_VALUE.encode()
    code, output = await reencrypt(database_url, TOOLS_ENCRYPTION_KEY="a-third-key-of-the-tests")
    assert (code, "No configured key decrypts the secret t of https://a.example." in output) == (1, True)
    assert Cipher(new_key).decrypt(await db.fetchval(query)) == SECRET_VALUE.encode()  # nothing is destroyed


async def test_secret_does_not_move_to_another_origin(defining: DefinitionClient, api: Api) -> None:
    await defining.define("spy", f"{api.url}/a", headers={"X-Key": "{secret.key}"}, secrets={"key": SECRET_VALUE})
    async with serve_api() as thief:
        status, changed = await defining.send("PATCH", "/spy", {"url": f"{thief.url}/a"})
        assert (status, changed["secrets"]) == (200, {"key": {"is_set": False}})
        assert (await defining.send("POST", "/spy/test", {}))[1]["is_error"]
        assert (await defining.send("POST", "/spy/publish", {}))[0] == 409
        assert thief.requests == []
    assert text_of(await call(defining, "spy")) == '{"ok": true}'


async def test_redirect_to_another_origin_carries_no_header(defining: DefinitionClient, api: Api) -> None:
    for status in (301, 302, 303, 307, 308):
        for method in ("GET", "POST"):
            await _check_redirect(defining, api, status, method)


async def _check_redirect(defining: DefinitionClient, api: Api, status: int, method: str) -> None:
    async with serve_api() as other:
        api.answer = lambda _: web.Response(status=status, headers={"Location": f"{other.url}/landed"})
        await defining.define(
            f"moves_{method}_{status}", f"{api.url}/a", method=method, headers={"X-Key": "{secret.key}", "X-Note": "n"},
            body={"a": 1} if method == "POST" else None, secrets={"key": SECRET_VALUE},
        )  # fmt: skip
        result = await call(defining, f"moves_{method}_{status}")
        for request in other.requests:
            assert request["method"] == "GET"
            assert not {"X-Key", "X-Note"} & set(request["headers"])
            assert request["body"] == ""
        assert bool(other.requests) == (method == "GET" or status < 307)
        assert result.is_error == (not other.requests)
        api.answer = lambda _: web.Response(status=status, headers={"Location": f"{other.url}/{SECRET_VALUE}"})
        seen = len(other.requests)
        assert (await call(defining, f"moves_{method}_{status}")).is_error
        assert len(other.requests) == seen


async def test_redirect_on_the_same_origin_keeps_headers(defining: DefinitionClient, api: Api) -> None:
    def redirect_once(request: web.Request) -> web.Response:
        if request.path == "/a":
            return web.Response(status=307, headers={"Location": "/b"})
        return web.json_response({"body": "arrived"})

    api.answer = redirect_once
    await defining.define(
        "moves", f"{api.url}/a", method="POST", headers={"X-Key": "{secret.key}"}, body=[1], secrets={"key": "abcd"}
    )
    assert text_of(await call(defining, "moves")) == '{"body": "arrived"}'
    assert [(r["target"], r["headers"]["X-Key"], r["body"]) for r in api.requests] == [
        ("/a", "abcd", "[1]"),
        ("/b", "abcd", "[1]"),
    ]


async def test_argument_cannot_leave_its_path(defining: DefinitionClient, api: Api) -> None:
    await defining.define("get_user", f"{api.url}/users/{{id}}/mail", input_schema=arguments("id", id=None))
    for value in ("..", ".", "../admin", "..\\admin", "%2e%2e", "", "..%2fadmin", "..;x"):
        assert (await call(defining, "get_user", id=value)).is_error
    assert api.requests == []


async def test_arguments_are_encoded_for_their_place(defining: DefinitionClient, api: Api) -> None:
    await defining.define(
        "hostile", f"{api.url}/x/{{a}}", method="POST", input_schema=arguments("a", a=None, o={"type": "object"}),
        headers={"Cookie": "session={a}; own=1"}, query=[
            {"name": "fixed", "value": "1"}, {"name": "a", "argument": "a"}, {"name": "o", "argument": "o"},
        ],
        body='{"text": "{a}"}',
    )  # fmt: skip
    value = 'v?x=1&fixed=2#f/{secret.key}"}; own=2'
    result = await call(defining, "hostile", a=value)
    assert not result.is_error
    request = api.requests[0]
    encoded = "v%3Fx%3D1%26fixed%3D2%23f%2F%7Bsecret.key%7D%22%7D%3B%20own%3D2"
    assert request["target"] == f"/x/{encoded}?fixed=1&a={encoded}"
    assert request["headers"]["Cookie"] == f"session={encoded}; own=1"
    assert (await call(defining, "hostile", a="x", o={"fixed": "2"})).is_error
    assert len(api.requests) == 1


async def test_argument_cannot_add_a_header(defining: DefinitionClient, api: Api) -> None:
    await defining.define("tagged", f"{api.url}/", input_schema=arguments(tag=None), headers={"X-Tag": "t {tag}"})
    for value in ("a\r\nX-Evil: 1", "a\nb", "a\0b", "x" * 9_000):
        assert (await call(defining, "tagged", tag=value)).is_error
    assert api.requests == []


PLACES = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://0x7f000001:{port}/",
    "http://10.0.0.1/",
]


async def test_private_addresses_are_not_reached(database_url: str, api: Api) -> None:
    port = api.url.rpartition(":")[2]
    async with serve_tools(database_url=database_url) as address, open_client(address) as client:
        for index, place in enumerate(PLACES):
            await client.define(f"reach{index}", place.replace("{port}", port), timeout_seconds=2)
            result = await call(client, f"reach{index}")
            assert result.is_error
            assert "127.0.0.1" not in text_of(result)
    assert api.requests == []


async def test_redirect_to_a_private_address_is_refused(database_url: str, api: Api) -> None:
    async with serve_api() as inner:
        api.answer = lambda _: web.Response(status=302, headers={"Location": f"{inner.url}/admin"})
        options = {"tools_private_targets": (api.url.removeprefix("http://"),)}
        async with serve_tools(database_url=database_url, **options) as address, open_client(address) as client:
            await client.define("moves", f"{api.url}/")
            assert (await call(client, "moves")).is_error
            assert len(api.requests) == 1
            assert inner.requests == []


async def test_answers_are_bounded_after_decompression(defining: DefinitionClient, api: Api) -> None:
    bomb = gzip.compress(b"a" * 200_000_000)
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain"}
    api.answer = lambda _: web.Response(body=bomb, headers=headers)
    await defining.define("bomb", f"{api.url}/", result={"max_bytes": 300})
    text = text_of(await call(defining, "bomb"))
    assert text.startswith("a" * 300 + "\n[cut: ")
    assert len(text) < 400


async def test_slow_answer_ends_at_the_time_out(defining: DefinitionClient) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    async with serve_web(hang) as url:
        await defining.define("slow", f"{url}/", timeout_seconds=0.2)
        result = await call(defining, "slow")
    assert result.is_error
    assert "in time" in text_of(result)


BAD_DEFINITIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"name": "calculator"}, "name"),
    ({"name": "has space"}, "name"),
    ({"url": "ftp://x.example/"}, "url"),
    ({"url": "https://{host}/x"}, "url"),
    ({"url": "https://user:pw@x.example/"}, "url"),
    ({"url": "https://x.example/{+path}"}, "url"),
    ({"url": "https://x.example/{#path}"}, "url"),
    ({"url": "https://x.example/a/../b"}, "url"),
    ({"url": "https://x.example/%2e%2e/b"}, "url"),
    ({"url": "https://x.example/{unknown}"}, "url"),
    ({"url": "https://x.example{q}/"}, "url"),
    ({"url": "https://x.example/{q}"}, "input_schema"),
    ({"url": "https://x.example:99999/"}, "url"),
    ({"headers": {"Host": "y"}}, "headers.Host"),
    ({"headers": {"Transfer-Encoding": "chunked"}}, "headers.Transfer-Encoding"),
    ({"headers": {"X": "a\r\nb"}}, "headers.X"),
    ({"headers": {"a b": "x"}}, "headers"),
    ({"headers": {"X": "{nobody}"}}, "headers.X"),
    ({"body": {"a": 1}}, "body"),
    ({"input_schema": {"type": "string"}}, "input_schema"),
    ({"input_schema": {"type": "object", "properties": 3}}, "input_schema"),
    ({"input_schema": {"type": "object", "$ref": "https://x.example/s"}}, "input_schema"),
    ({"input_schema": {"type": "object", "enum": list(range(5_000))}}, "input_schema"),
    ({"input_schema": {"type": "object", "properties": {"a b": {}}}}, "input_schema"),
    ({"secrets": {"unused": "abcd"}}, "secrets.unused"),
    ({"headers": {"X": "{secret.k}"}, "secrets": {"k": "ab\ncd"}}, "secrets.k"),
    ({"result": {"select": "items"}}, "result.select"),
    ({"timeout_seconds": 1e9}, "timeout_seconds"),
    ({"unknown": 1}, "unknown"),
    ({"query": [{"name": "a"}]}, "query.0"),
    ({"description": "a\0b"}, None),
]


async def test_bad_definitions_are_refused_with_their_field(defining: DefinitionClient) -> None:
    good = {"name": "t", "description": "d", "url": "https://x.example/", "input_schema": arguments(q=None)}
    for change, field in BAD_DEFINITIONS:
        status, body = await defining.send("POST", "", good | change)
        assert status in (409, 422), (change, body)
        assert body["error"]["param"] == field, (change, body)
    assert (await defining.send("GET"))[1] == {"definitions": []}
    for path in ("/none", "/none/publish", "/none/test"):
        assert (await defining.send("GET" if path == "/none" else "POST", path, {}))[0] == 404


@pytest.mark.parametrize("era", ERAS)
async def test_other_processes_hear_of_a_change(database_url: str, defining: DefinitionClient, era: str) -> None:
    async with (
        serve_tools(database_url=database_url, tools_encryption_key=KEY) as address,
        connect(address, era) as client,
    ):

        async def is_listed() -> bool:
            return "shared" in await _list_names(client)

        async def is_gone() -> bool:
            return not await is_listed()

        assert await is_gone()
        await defining.define("shared", "https://x.example/")
        await eventually(is_listed)
        await defining.send("DELETE", "/shared")
        await eventually(is_gone)


async def _list_names(client: Client) -> set[str]:
    return {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}


async def test_wrong_arguments_are_named(defining: DefinitionClient, api: Api) -> None:
    schema = arguments("n", n={"type": "integer"})
    await defining.define("typed", f"{api.url}/", input_schema=schema, query=[{"name": "n", "argument": "n"}])
    for values in ({}, {"n": "x"}):
        result = await call(defining, "typed", **values)
        assert result.is_error
        assert "n" in text_of(result)
    assert api.requests == []


async def test_styles_of_openapi_are_written(defining: DefinitionClient, api: Api) -> None:
    schema = arguments(a={"type": "array"}, o={"type": "object"})
    fields = [
        {"name": "e", "argument": "a"},
        {"name": "c", "argument": "a", "explode": False},
        {"name": "s", "argument": "a", "style": "spaceDelimited", "explode": False},
        {"name": "p", "argument": "a", "style": "pipeDelimited", "explode": False},
        {"name": "d", "argument": "o", "style": "deepObject"},
        {"name": "f", "argument": "o", "explode": False},
        {"name": "j", "argument": "o", "style": "json"},
    ]
    await defining.define("styled", f"{api.url}/", method="POST", input_schema=schema, form=fields)
    await call(defining, "styled", a=["1", "a b"], o={"k": "v&"})
    request = api.requests[0]
    assert request["headers"]["Content-Type"] == "application/x-www-form-urlencoded"
    assert request["body"].split("&") == [
        "e=1", "e=a%20b", "c=1,a%20b", "s=1%20a%20b", "p=1%7Ca%20b", "d%5Bk%5D=v%26", "f=k,v%26",
        "j=%7B%22k%22%3A%20%22v%26%22%7D",
    ]  # fmt: skip

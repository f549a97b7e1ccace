"""The tools over plain HTTP."""

import asyncio
from typing import Any

import httpx2
import pytest

from tests.tools_server.conftest import make_secret_signer, serve, serve_tools
from tools_server.request_body import RequestBodyMiddleware


async def test_tools_are_listed_as_mcp_describes_them() -> None:
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        tools = (await client.get(f"{address}/tools")).json()["tools"]
    assert {"calculator", "add_task"} <= {tool["name"] for tool in tools}
    assert tools[0]["inputSchema"]["type"] == "object"


async def test_calculator_answers_the_curl_line() -> None:
    body = {"name": "calculator", "arguments": {"expression": "5*9"}}
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        response = await client.post(f"{address}/tools/call", json=body)
    assert (response.status_code, response.json()) == (200, {"result": "5*9 = 45"})


async def test_body_that_arrives_byte_by_byte_times_out() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("the body is not complete")

    async with serve(RequestBodyMiddleware(app, timeout_seconds=0.2)) as address:
        reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
        writer.write(b"POST /tools/call HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"1\r\na\r\n")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(30):
            assert b" 408 " in await reader.readline()
        dripping.cancel()
        writer.close()


async def test_call_is_made_as_the_caller(database_url: str) -> None:
    signer = make_secret_signer()
    async with serve_tools(database_url=database_url) as address, httpx2.AsyncClient(timeout=30) as client:
        for user in ("ada", "bob"):
            headers = {"Authorization": f"Bearer {signer.get_token(user)}"}
            body = {"name": "add_task", "arguments": {"title": f"of {user}"}}
            await client.post(f"{address}/tools/call", json=body, headers=headers)
            listed = await client.post(f"{address}/tools/call", json={"name": "list_tasks"}, headers=headers)
            assert f"of {user}" in listed.json()["result"]
            assert listed.json()["result"].count("\n") == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'{"name": 1}', 422, "invalid_request"),
        (b'{"name": "calculator", "arguments": []}', 422, "invalid_request"),
        (b'{"name": "calculator", "params": {}}', 422, "invalid_request"),
        (b'{"name": "calculator", "arguments": {"expression": "1/0"}}', 422, "tool_error"),
        (b'{"name": "calculator", "arguments": {}}', 422, "tool_error"),
        (b'{"name": "nothing"}', 404, None),
        (b'{"name": "calculator", "arguments": {"expression": "\\ud800"}}', 422, "invalid_request"),
        (b'{"name": "calculator", "arguments": {"expression": 1e400}}', 422, "invalid_request"),
        (b'{"name": "calculator", "arguments": {"expression": NaN}}', 422, "invalid_request"),
        (b'{"name": "calculator", "arguments": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", 422, "invalid_request"),
        ('{"name": "r\u00e9sum\u00e9"}'.encode(), 404, None),
        (b'{"name": "a\\nb: c"}', 404, None),
        (b'{"name": "calculator", "arguments": {"a": ' + b"[" * 800 + b"]" * 800 + b"}}", 422, None),
        (b" " * 2_000_000, 413, "payload_too_large"),
    ],
)
async def test_bad_call_is_told_what_is_wrong(body: bytes, status: int, code: str | None) -> None:
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        response = await client.post(
            f"{address}/tools/call", content=body, headers={"Content-Type": "application/json"}
        )
    error: Any = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code or error["code"])
    assert error["message"]


async def test_token_is_demanded_as_of_any_other_request() -> None:
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        response = await client.get(f"{address}/tools", headers={"Authorization": "Bearer nonsense"})
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/tools/call", "/mcp"])
async def test_body_of_many_values_is_rejected_by_the_tool_server(path: str) -> None:
    """The SDK would describe each of the 20,000 wrong arguments."""
    arguments = {f"k{number}": 1 for number in range(20_000)}
    params = {"name": "plan_day", "arguments": arguments}
    body = params if path == "/tools/call" else {"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": params}
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        headers = {"Accept": "application/json, text/event-stream"}
        response = await client.post(f"{address}{path}", json=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
        assert (await client.post(f"{address}{path}", content=b" " * 2_000_000)).status_code in (403, 413, 415)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": 3}, "name"),
        ({"name": "calculator", "arguments": 3}, "arguments"),
        ({"name": "calculator", "args": {"expression": "1"}}, "args"),
        ({"name": "calculator", "limit": 0}, "limit"),
    ],
)
async def test_error_names_the_field_of_a_call(body: dict[str, Any], param: str) -> None:
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        response = await client.post(f"{address}/tools/call", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, param)
    assert error["message"].startswith(f"{param}: ")


async def test_unknown_path_and_method_are_json_errors() -> None:
    async with serve_tools(tools_server_secret=None) as address, httpx2.AsyncClient(timeout=30) as client:
        for method, path, status, code in (
            ("GET", "/nothing", 404, "not_found"),
            ("GET", "/", 404, "not_found"),
            ("GET", "/tools/call", 405, "method_not_allowed"),
            ("GET", "/tools/", 200, None),
        ):
            response = await client.request(method, f"{address}{path}")
            assert response.status_code == status, path
            assert response.json().get("error", {}).get("code") == code

"""Requests of web pages to the tool server on a visitor's machine."""

import json
from typing import Any

import httpx2
import pytest

from tests.tools_server.conftest import serve_tools
from tests.tools_server.test_auth import token

ADD_TASK = json.dumps({"name": "add_task", "arguments": {"title": "written by a page"}})
EVIL, JSON_TYPE, FORM = "https://evil.example", "application/json", "application/x-www-form-urlencoded"


async def send(address: str, method: str = "POST", path: str = "/tools/call", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx2.AsyncClient(timeout=30) as client:
        return await client.request(method, f"{address}{path}", content=ADD_TASK, headers=named)


async def list_tasks(address: str) -> str:
    async with httpx2.AsyncClient(timeout=30) as client:
        response = await client.post(f"{address}/tools/call", json={"name": "list_tasks"})
    return response.json()["result"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": EVIL, "Content_Type": "text/plain"}, 403),
        ({"Origin": EVIL, "Content_Type": "text/plain;charset=UTF-8"}, 403),
        ({"Origin": "null", "Content_Type": "text/plain"}, 403),
        ({"Origin": EVIL, "Content_Type": JSON_TYPE}, 403),
        ({"Origin": "http://localhost.evil.example", "Content_Type": JSON_TYPE}, 403),
        ({"Origin": "http://127.0.0.1:8000.evil.example", "Content_Type": JSON_TYPE}, 403),
        ({"Origin": "http://localhost:1@evil.example", "Content_Type": JSON_TYPE}, 403),
        ({"Host": "evil.example", "Content_Type": JSON_TYPE}, 421),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": FORM, "Origin": EVIL}, 403),
        ({"Content_Type": FORM, "Origin": "null"}, 403),
        ({"Content_Type": FORM, "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": JSON_TYPE, "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": FORM, "Sec_CH_UA_Mobile": "?0"}, 415),
        ({"Content_Type": FORM, "Referer": "https://evil.example/"}, 415),
        ({"Content_Type": FORM, "Sec_Fetch_Mode": "no-cors"}, 415),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain; application/json"}, 415),
        ({"Content_Type": "application/jsonp"}, 415),
    ],
)
@pytest.mark.parametrize("path", ["/tools/call", "/mcp"])
async def test_simple_request_of_a_page_changes_nothing(
    database_url: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with serve_tools(tools_server_secret=None, database_url=database_url) as address:
        response = await send(address, path=path, **headers)
        error: Any = response.json()["error"]
        assert (response.status_code, bool(error["message"])) == (status, True)
        assert "written by a page" not in await list_tasks(address)


async def test_program_need_not_declare_json_except_to_mcp(database_url: str) -> None:
    async with serve_tools(tools_server_secret=None, database_url=database_url) as address:
        for headers in ({}, {"Content_Type": FORM}):
            assert (await send(address, path="/mcp", **headers)).status_code == 415
            assert (await send(address, **headers)).status_code == 200
        assert (await list_tasks(address)).count("written by a page") == 2


async def test_own_pages_and_programs_may_call(database_url: str) -> None:
    async with serve_tools(
        tools_server_secret=None, database_url=database_url, tools_server_allowed_origins="https://app.example"
    ) as address:
        for origin in ("http://localhost:3000", "http://127.0.0.1:6274", "https://app.example"):
            assert (await send(address, Origin=origin, Content_Type=f"{JSON_TYPE}; charset=utf-8")).status_code == 200
        assert (await send(address, Content_Type=JSON_TYPE)).status_code == 200
        assert (await list_tasks(address)).count("written by a page") == 4


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/mcp"), ("GET", "/mcp"), ("PUT", "/tools/call"), ("GET", "/tools")]
)
async def test_other_methods_check_the_origin_too(method: str, path: str) -> None:
    async with serve_tools(tools_server_secret=None) as address:
        assert (await send(address, method, path, Origin=EVIL)).status_code == 403
        assert (await send(address, method, path, Host="evil.example")).status_code == 421


OWN_HOSTS = [
    "LOCALHOST:8001",
    "LocalHost",
    "localhost.:8001",
    "127.0.0.1:1",
    "[::1]:8001",
    "[0:0:0:0:0:0:0:1]",
    "T.Example",
]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8001",
    "EVIL.EXAMPLE",
    "localhost:8001.evil.example",
    "localhost.evil.example:8001",
    "user@localhost:8001",
    "localhost:80:80",
    "localhost:70000",
    "[::1",
    "[::2]:8001",
    "127.1",
    "",
]


async def test_own_host_is_served_in_any_letter_case_and_a_foreign_one_never() -> None:
    """The SDK compares hosts letter by letter.

    Its refusal was a 500 at `/tools`.
    """
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    headers = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {token()}"}
    call = {"name": "calculator", "arguments": {"expression": "5*9"}}
    async with (
        serve_tools(tools_server_allowed_hosts="t.example") as address,
        httpx2.AsyncClient(timeout=30) as client,
    ):
        for host in OWN_HOSTS + FOREIGN_HOSTS:
            expected = 200 if host in OWN_HOSTS else 421
            named = headers | {"Host": host}
            for answer in (
                await client.get(f"{address}/tools", headers=named),
                await client.post(f"{address}/tools/call", json=call, headers=named),
                await client.post(f"{address}/tools/call/", json=call, headers=named),
            ):
                assert answer.status_code == expected, (host, answer.text)
                assert expected == 200 or answer.json()["error"]["code"] == "wrong_host"
            mcp = await client.post(f"{address}/mcp", json=ping, headers=named)
            assert (mcp.status_code == 421) is (expected == 421), (host, mcp.text)
            assert mcp.status_code < 500

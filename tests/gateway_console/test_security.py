"""Attacks on the console over HTTP and its WebSocket."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from yarl import URL

from gateway_console.security import get_source
from tests.gateway_console.running_console import run_console
from tests.stack import Gateway, ServeSharedGateway
from tests.web_socket_client import PING, build_frame, connect

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
KEY = "an-admin-key-of-the-console-tests"


@pytest.fixture(scope="module")
async def locked_console(
    serve_shared_gateway: ServeSharedGateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[str]:
    gateway: Gateway = await serve_shared_gateway(api_key=KEY)
    async with run_console(gateway.base_url, tmp_path_factory.mktemp("console")) as url:
        yield url


@pytest.fixture(scope="module")
async def open_console(
    serve_shared_gateway: ServeSharedGateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[str]:
    gateway: Gateway = await serve_shared_gateway()
    async with run_console(gateway.base_url, tmp_path_factory.mktemp("console")) as url:
        yield url


@pytest.fixture
async def browser() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def get_client_id(browser: aiohttp.ClientSession, url: str) -> str:
    async with browser.get(url) as response:
        found = re.search(r"client_id['\"]?\s*[:=]\s*['\"]([0-9a-f-]{36})", await response.text())
    assert found is not None
    return found[1]


def test_addresses_of_one_network_are_one_source() -> None:
    sources = {get_source({"client": (f"2001:db8:0:1::{n:x}", 1)}) for n in range(1, 9)}
    assert sources == {"2001:db8:0:1::/64"}


async def test_endless_request_head_is_rejected(open_console: str) -> None:
    url = urlsplit(open_console)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"x" * 70_000)
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
    writer.close()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://localhost.evil.example", None]
)
async def test_websocket_refuses_foreign_origins(
    open_console: str, browser: aiohttp.ClientSession, origin: str | None
) -> None:
    client_id = await get_client_id(browser, open_console)
    address = f"{open_console}/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id={client_id}"
    headers = {} if origin is None else {"Origin": origin}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        await browser.ws_connect(address, headers=headers)
    assert refusal.value.status == 403
    async with browser.ws_connect(address, headers={"Origin": open_console}) as socket:
        assert (await socket.receive_str(timeout=30)).startswith("0{")


async def test_websocket_refuses_browsers_without_a_session(open_console: str, browser: aiohttp.ClientSession) -> None:
    client_id = await get_client_id(browser, open_console)
    address = f"{open_console}/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id={client_id}"
    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await stranger.ws_connect(address, headers={"Origin": open_console})


@pytest.mark.parametrize("path", ["/", "/sign-in", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/health"])
async def test_foreign_host_names_are_refused(open_console: str, browser: aiohttp.ClientSession, path: str) -> None:
    """DNS rebinding: a name of an attacker leads to this machine."""
    async with browser.get(f"{open_console}{path}", headers={"Host": "evil.example"}) as response:
        assert response.status == 403


async def test_long_polling_is_refused(open_console: str, browser: aiohttp.ClientSession) -> None:
    async with browser.get(f"{open_console}/_nicegui_ws/socket.io/?EIO=4&transport=polling") as response:
        assert response.status == 403


@pytest.mark.parametrize(
    "path", ["/", "/chat/01a21cdc-241d-77e4-8d50-5768b3c2944b", "/keys", "/audit", "/operations", "/usage", "/watch/x"]
)
async def test_stranger_sees_only_the_sign_in(locked_console: str, browser: aiohttp.ClientSession, path: str) -> None:
    async with browser.get(f"{locked_console}{path}", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"].split("?")[0]) == (303, "/sign-in")
        assert "Set-Cookie" not in response.headers


async def test_key_is_exchanged_for_a_cookie_that_scripts_cannot_read(
    locked_console: str, browser: aiohttp.ClientSession
) -> None:
    form = {"credential": KEY}
    async with browser.post(
        f"{locked_console}/sign-in?next=/", data=form, headers={"Origin": locked_console}, allow_redirects=False
    ) as response:
        cookie = response.headers["Set-Cookie"]
        assert (response.status, response.headers["Location"]) == (303, "/")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert KEY not in cookie
    async with browser.get(locked_console) as response:
        assert response.status == 200
        assert KEY not in await response.text()
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
    async with browser.post(f"{locked_console}/sign-out", headers={"Origin": locked_console}) as response:
        assert response.url.path == "/sign-in"
    async with browser.get(locked_console) as response:
        assert response.url.path == "/sign-in"


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "%2F%2Fevil.example", "/\\evil.example"])
async def test_sign_in_leads_to_no_other_site(locked_console: str, browser: aiohttp.ClientSession, target: str) -> None:
    async with browser.post(
        f"{locked_console}/sign-in",
        params={"next": target},
        data={"credential": KEY},
        headers={"Origin": locked_console},
        allow_redirects=False,
    ) as response:
        assert (response.status, response.headers["Location"]) == (303, "/")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {}, {"Origin": "null"}])
async def test_foreign_page_cannot_sign_a_browser_in(
    locked_console: str, browser: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with browser.post(f"{locked_console}/sign-in", data={"credential": KEY}, headers=headers) as response:
        assert response.status == 403


async def test_wrong_key_is_refused_and_many_are_not_tried(
    serve_shared_gateway: ServeSharedGateway, browser: aiohttp.ClientSession, tmp_path: Path
) -> None:
    gateway = await serve_shared_gateway(api_key=KEY)
    async with run_console(gateway.base_url, tmp_path) as url:
        statuses: list[int] = []
        for number in range(25):
            data = {"credential": f"wrong-{number}"}
            async with browser.post(f"{url}/sign-in", data=data, headers={"Origin": url}) as response:
                statuses.append(response.status)
        assert statuses[0] == 401
        assert statuses[-1] == 429
        async with browser.get(f"{url}/sign-in") as response:
            assert response.status == 200  # the page itself costs nothing, and people of one address share the limit


async def test_pages_without_a_session_are_limited(
    serve_shared_gateway: ServeSharedGateway, browser: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Each page that is drawn holds memory for a minute."""
    gateway = await serve_shared_gateway()
    async with run_console(gateway.base_url, tmp_path) as url:
        statuses: list[int] = []
        for _ in range(70):
            async with aiohttp.ClientSession() as stranger, stranger.get(url) as response:
                statuses.append(response.status)
        assert (statuses[0], statuses[-1]) == (200, 429)


async def test_console_that_others_reach_asks_for_a_credential(
    serve_shared_gateway: ServeSharedGateway, browser: aiohttp.ClientSession, tmp_path: Path
) -> None:
    gateway = await serve_shared_gateway()
    async with (
        run_console(gateway.base_url, tmp_path, CONSOLE_PUBLIC_URL="https://console.example.com") as url,
        browser.get(url, headers={"Host": "console.example.com"}, allow_redirects=False) as response,
    ):
        assert response.status == 303


async def test_bodies_of_requests_are_bounded(open_console: str, browser: aiohttp.ClientSession) -> None:
    await get_client_id(browser, open_console)
    headers = {"Origin": open_console, "Content-Type": "multipart/form-data; boundary=x"}
    for path, size in (("/sign-in", 33_000), ("/_nicegui/client/x/upload/1", 7_000_000), ("/", 7_000_000)):
        async with browser.post(f"{open_console}{path}", data=b"a" * size, headers=headers) as response:
            assert response.status == 413, path


async def test_pages_of_a_session_are_limited(open_console: str, browser: aiohttp.ClientSession) -> None:
    statuses = [200]
    while statuses[-1] == 200:
        async with browser.get(f"{open_console}/no-such-page-{len(statuses)}") as response:
            statuses.append(200 if response.status == 404 else response.status)
    assert statuses[-1] == 429
    assert 100 < len(statuses) < 200


@pytest.mark.parametrize(
    "message",
    [
        '42["event",{}]',
        '42["connect",{"client_id":"x"}]',
        "42[5]",
        "42[",
        '451-["event",{"client_id":""}]',
        "99",
        "",
        "4",
    ],
)
async def test_message_that_no_page_sends_ends_the_socket(
    open_console: str, browser: aiohttp.ClientSession, message: str
) -> None:
    client_id = await get_client_id(browser, open_console)
    address = f"{open_console}/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id={client_id}"
    async with asyncio.timeout(30), browser.ws_connect(address, headers={"Origin": open_console}) as socket:
        assert (await socket.receive_str()).startswith("0{")
        await socket.send_str("40")
        assert (await socket.receive_str()).startswith("40{")
        await socket.send_str(message)
        while not socket.closed:
            await socket.receive()


async def test_socket_that_reads_nothing_but_pings_ends(open_console: str, browser: aiohttp.ClientSession) -> None:
    client_id = await get_client_id(browser, open_console)
    address = f"{open_console}/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id={client_id}"
    cookie = "; ".join(f"{cookie.key}={cookie.value}" for cookie in browser.cookie_jar)
    client = await asyncio.to_thread(connect, address, {"Origin": open_console, "Cookie": cookie}, timeout=90)

    def send_pings() -> None:
        with client, contextlib.suppress(ConnectionError):
            while True:
                client.sendall(build_frame(PING, b"a" * 125) * 100)

    await asyncio.wait_for(asyncio.to_thread(send_pings), 120)


async def test_path_with_terminal_sequences_does_not_reach_the_terminal(
    serve_shared_gateway: ServeSharedGateway, tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    """Another site's page can make a browser ask for any path."""
    gateway = await serve_shared_gateway()
    async with run_console(gateway.base_url, tmp_path) as url:
        async with browser.get(URL(f"{url}/clipboard-%1b]52;c;aGk=%07-%c2%9b2J", encoded=True)) as response:
            assert response.status == 404
        output = await asyncio.to_thread((tmp_path / "output").read_text)
    assert "clipboard-\\x1b]52" in output
    assert not set(output) & {"\x1b", "\x07", "\x9b"}

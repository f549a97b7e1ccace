"""The page at `/`."""

import re

import pytest

from gateway.simulator import Simulator
from tests.stack import SECRET, Gateway, serve_gateway

API_KEY = "key-of-the-administrator"


async def fetch_page(gateway: Gateway, **headers: str) -> tuple[int, dict[str, str], str]:
    async with gateway.session.get(f"{gateway.base_url}/", headers=headers) as response:
        return response.status, dict(response.headers), await response.text()


async def test_page_says_what_runs_where(gateway: Gateway) -> None:
    status, headers, page = await fetch_page(gateway)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert '<strong class="ok">ready</strong>' in page
    for text in ("PostgreSQL at", "(simulated) at http://127.0.0.1:", "<td>tools</td>", "/mcp</code>", 'href="docs"'):
        assert text in page
    async with gateway.session.head(f"{gateway.base_url}/") as response:
        assert response.status == 200


async def test_page_needs_neither_scripts_nor_other_hosts(gateway: Gateway) -> None:
    _, headers, page = await fetch_page(gateway)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        if link != "data:,":
            async with gateway.session.get(f"{gateway.base_url}/{link}") as response:
                assert response.status == 200, link


async def test_page_shows_servers_and_addresses_to_admins_only(database_url: str, simulator: Simulator) -> None:
    async with serve_gateway(
        database_url, simulator, None, api_key=API_KEY, mcp_server_url="http://user:geheim@127.0.0.1:9/mcp?token=geheim"
    ) as gateway:
        _, _, public = await fetch_page(gateway)
        _, _, guessed = await fetch_page(gateway, **{"X-API-Key": "not-the-key-of-anybody"})
        _, _, admin = await fetch_page(gateway, **{"X-API-Key": API_KEY})
    assert "127.0.0.1:9" not in public + guessed
    assert "nothing answers" not in public + guessed
    assert "127.0.0.1:9" in admin
    assert "nothing answers" in admin
    for secret in ("geheim", API_KEY, SECRET, database_url):
        assert secret not in public + admin


async def test_page_of_a_foreign_host_has_no_details(gateway: Gateway) -> None:
    """Show nothing to a page that rebinds its name."""
    _, _, page = await fetch_page(gateway, Host="evil.example")
    assert "<td>tools</td>" not in page
    assert "Shown to admins only." in page


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_page_cannot_be_written(gateway: Gateway, method: str) -> None:
    async with gateway.session.request(method, f"{gateway.base_url}/") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")

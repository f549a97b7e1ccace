"""Pages of the interactive documentation."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from gateway.api.documentation import pages
from tests.stack import Gateway

ASSETS = Path(pages.__file__).parent / "assets"
ADDRESS = re.compile(r"""(?:src|href|spec-url)=["']([^"']+)["']""")
DIRECTIVE = re.compile(r"([a-z-]+) ([^;]+)")
OWN_SOURCES = {"'self'", "'none'", "'unsafe-inline'", "data:", "blob:"}


async def fetch(gateway: Gateway, url: str) -> tuple[int, str, str, bytes]:
    """Fetch a URL without credentials.

    Return status, media type, policy and body.
    """
    async with gateway.session.get(url) as response:
        policy = response.headers.get("Content-Security-Policy", "")
        return response.status, response.content_type, policy, await response.read()


@pytest.mark.parametrize(("page", "number"), [("/docs", 4), ("/redoc", 3), ("/docs/oauth2-redirect", 2)])
async def test_page_loads_only_files_of_the_gateway(shared_gateway: Gateway, page: str, number: int) -> None:
    url = f"{shared_gateway.base_url}{page}"
    status, media_type, policy, body = await fetch(shared_gateway, url)
    assert (status, media_type) == (200, "text/html")
    async with shared_gateway.session.head(url) as response:
        assert response.status == 200
    addresses = ADDRESS.findall(body.decode())
    assert len(addresses) == number
    for address in addresses:
        target = urljoin(url, address)
        if urlsplit(target).scheme == "data":
            continue
        assert urlsplit(target).netloc == urlsplit(url).netloc
        status, media_type, _, content = await fetch(shared_gateway, target)
        assert (status, media_type) in {(200, "text/css"), (200, "text/javascript"), (200, "application/json")}
        assert content
    directives = dict(DIRECTIVE.findall(policy))
    assert directives["default-src"] == "'self'"
    assert {source for sources in directives.values() for source in sources.split()} <= OWN_SOURCES
    assert "'unsafe-inline'" not in directives["script-src"]
    assert "<script>" not in body.decode()


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/docs/oauth2-redirect"])
@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_page_with_a_last_slash_is_shown_where_its_links_lead(
    shared_gateway: Gateway, page: str, slashes: str
) -> None:
    url = f"{shared_gateway.base_url}{page}"
    async with shared_gateway.session.get(url + slashes) as response:
        assert (response.status, str(response.url)) == (200, url)


@pytest.mark.parametrize(
    "name", ["README.md", "swagger-ui.LICENSE.txt", "..%2fpages.py", "%2e%2e%2fpages.py", "missing.js"]
)
async def test_other_files_are_not_served(shared_gateway: Gateway, name: str) -> None:
    assert (await fetch(shared_gateway, f"{shared_gateway.base_url}/docs/assets/{name}"))[0] == 404


def test_assets_are_the_listed_ones_with_their_licences() -> None:
    listed = dict(re.findall(r"\| `([\w.-]+)` \|[^\n]*`([0-9a-f]{64})`", (ASSETS / "README.md").read_text()))
    assert {name: hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() for name in listed} == listed
    assert set(pages._MEDIA_TYPES) == {*listed, "start-swagger-ui.js"}
    for licence in ("swagger-ui.LICENSE.txt", "swagger-ui.NOTICE.txt", "redoc.LICENSE.txt"):
        assert (ASSETS / licence).read_text()

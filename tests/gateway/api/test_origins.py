"""Pages of other origins: CORS, and the message that names the setting."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.config import load_settings
from gateway.simulator import Simulator
from tests.stack import Gateway, Reply, serve_gateway

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


async def post(gateway: Gateway, origin: str) -> Reply:
    return await gateway.post("/api/v1/chat", CHAT, headers={"Origin": origin})


async def send_preflight(gateway: Gateway, origin: str) -> Reply:
    url = f"{gateway.base_url}/api/v1/chat"
    async with gateway.session.options(url, headers={"Origin": origin, **PREFLIGHT}) as response:
        is_json = response.content_type == "application/json"
        return Reply(response.status, response.headers, body=await response.json() if is_json else None)


@pytest.fixture
async def dev_gateway(database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    origins = load_settings(cors_origins="dev, https://app.example.com").cors_origins
    async with serve_gateway(database_url, simulator, None, cors_origins=origins) as gateway:
        yield gateway


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://dev.example.com", "http://[::1]:5173"])
async def test_refusal_names_the_setting_and_the_line_to_add(gateway: Gateway, origin: str) -> None:
    for reply in (await post(gateway, origin), await send_preflight(gateway, origin)):
        assert reply.status == 403
        assert f"add the line CORS_ORIGINS={origin} to .env" in reply.body["error"]["message"]
        assert "Access-Control-Allow-Origin" not in reply.headers


async def test_refusal_extends_dev_and_adds_a_line_beside_a_public_url(database_url: str, simulator: Simulator) -> None:
    origins = load_settings(cors_origins="dev").cors_origins
    public_url = "https://gateway.example.com"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"cors_origins": origins}, "set the line CORS_ORIGINS=dev,https://x.example.com in .env"),
        ({"gateway_public_url": public_url}, "add the line CORS_ORIGINS=https://x.example.com to .env"),
    )
    for settings, line in cases:
        async with serve_gateway(database_url, simulator, None, **settings) as gateway:
            for reply in (
                await post(gateway, "https://x.example.com"),
                await send_preflight(gateway, "https://x.example.com"),
            ):
                assert reply.status == 403
                assert line in reply.body["error"]["message"]


@pytest.mark.parametrize("origin", ["null", "file://", "http://a,http://b", "http://a\u00a0b", "http://x/y"])
async def test_origin_that_no_line_can_allow_is_not_repeated(gateway: Gateway, origin: str) -> None:
    for reply in (await post(gateway, origin), await send_preflight(gateway, origin)):
        assert reply.status == 403
        assert "CORS_ORIGINS" in reply.body["error"]["message"]
        assert origin not in reply.body["error"]["message"]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:5173", "https://app.example.com"])
async def test_dev_allows_development_servers_on_loopback(dev_gateway: Gateway, origin: str) -> None:
    for reply in (await post(dev_gateway, origin), await send_preflight(dev_gateway, origin)):
        assert reply.status == 200
        assert reply.headers["Access-Control-Allow-Origin"] == origin
    exposed = (await post(dev_gateway, origin)).headers["Access-Control-Expose-Headers"]
    assert {"X-Turn-Id", "X-Gateway-Warnings", "WWW-Authenticate", "Retry-After"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example:3000",
        "http://localhost.evil.example:3000",
        "http://localhost:30001",
        "http://192.168.0.9:3000",
    ],
)
async def test_dev_allows_no_other_origin_and_lists_none(dev_gateway: Gateway, origin: str) -> None:
    for reply in (await post(dev_gateway, origin), await send_preflight(dev_gateway, origin)):
        assert reply.status == 403
        assert f"append ,{origin} to the line CORS_ORIGINS" in reply.body["error"]["message"]
        assert "app.example.com" not in reply.body["error"]["message"]

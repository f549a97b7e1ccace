"""Tests that send random bytes to both servers."""

import os
from urllib.parse import urlsplit

import pytest

from gateway.api.security.permissions import ROUTES
from gateway.simulator import Simulator
from tests.fuzz.face_requests import load_all_formats
from tests.fuzz.http_bytes import generate_requests, send_requests
from tests.fuzz.loop_watch import watch_loop
from tests.stack import serve_gateway

SEEDS = range(int(os.environ.get("FUZZ_SEEDS", "1")))
REQUESTS = 600
GATEWAY_PATHS = sorted({path.encode() for _, path in ROUTES})
TOOL_SERVER_PATHS = [b"/health", b"/tools", b"/tools/call", b"/mcp", b"/.well-known/oauth-protected-resource/mcp"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("server", ["gateway", "tool server"])
async def test_random_bytes_cause_no_server_error_lag_or_growth(
    database_url: str, simulator: Simulator, open_tools_url: str, server: str, seed: int
) -> None:
    async with serve_gateway(database_url, simulator, open_tools_url, rate_limit_enabled=False) as gateway:
        tools = urlsplit(open_tools_url)
        url = gateway.base_url if server == "gateway" else f"http://{tools.netloc}"
        paths = GATEWAY_PATHS if server == "gateway" else TOOL_SERVER_PATHS
        await load_all_formats(gateway)
        async with watch_loop():
            report = await send_requests(url, generate_requests(seed, REQUESTS, paths))
        assert report.server_errors == []
        assert sum(report.statuses.values()) == REQUESTS
        assert report.statuses.get("400", 0) > 0
        assert (await gateway.get("/health")).status == 200

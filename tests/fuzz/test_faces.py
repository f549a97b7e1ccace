"""Tests that send odd requests in every format."""

import asyncio
import os

import pytest

from gateway.simulator import Simulator
from tests.fuzz.face_requests import encode_body, generate_face_requests, load_all_formats, send_face_request
from tests.fuzz.loop_watch import watch_loop
from tests.stack import Gateway, serve_gateway

SEEDS = range(int(os.environ.get("FUZZ_SEEDS", "1")))
REQUESTS = 400 if "FUZZ_SEEDS" in os.environ else 60
_SENDERS = 4
_INTERNAL = ("internal_error", "Internal Server Error", "Traceback")


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
async def test_odd_requests_of_all_formats_cause_no_server_error_or_lag(
    database_url: str, simulator: Simulator, tools_url: str, seed: int
) -> None:
    async with serve_gateway(
        database_url, simulator, tools_url, rate_limit_enabled=False, upstream_files=True
    ) as gateway:
        await load_all_formats(gateway)
        async with watch_loop():
            failures, statuses = await send_all(gateway, seed)
        assert failures == []
        assert statuses[200] > REQUESTS // 10
        assert statuses[400] > REQUESTS // 10
        assert (await gateway.get("/health")).status == 200


async def send_all(gateway: Gateway, seed: int) -> tuple[list[str], dict[int, int]]:
    """Send generated requests; return those that failed inside, and counts of statuses."""
    requests = generate_face_requests(seed, REQUESTS)
    failures: list[str] = []
    statuses: dict[int, int] = {}

    async def send_next() -> None:
        for request in requests:  # one iterator for all senders
            status, text = await send_face_request(gateway, request)
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 500 or any(word in text for word in _INTERNAL):
                failures.append(f"{request.path} {status} {encode_body(request.body)[:2_000]} -> {text[:500]}")

    await asyncio.gather(*(send_next() for _ in range(_SENDERS)))
    return failures, statuses

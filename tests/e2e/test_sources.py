"""Tests of the source addresses of failed logins."""

import asyncio
import json
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running_stack import RunningStack, run_serve
from tests.eventually import eventually

SETTINGS: dict[str, Any] = {"API_KEY": "a-key-of-the-tests-0123456789", "RATE_LIMIT_REQUESTS": "4"}


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def log_in_from(gateway: RunningStack, *addresses: str) -> list[int]:
    """Try a wrong key once for each `X-Forwarded-For`."""
    statuses: list[int] = []
    for address in addresses:
        headers = {"X-API-Key": "wrong", "X-Forwarded-For": address}
        statuses.append((await gateway.get("/api/v1/models", headers=headers)).status)
    return statuses


async def test_forwarded_addresses_of_a_proxy_that_is_not_configured_are_ignored(directory: Path) -> None:
    """The client is on the same machine, as a proxy would be."""
    async with run_serve(RunningStack, directory, **SETTINGS) as gateway:
        statuses = await log_in_from(gateway, *(f"198.51.100.{n}" for n in range(6)))
        assert statuses == [401] * 4 + [429] * 2
        # A row is written after the answer.
        rows = await eventually(lambda: gateway.query("SELECT subject, detail FROM audit_log ORDER BY id"))
        subject, detail = rows[0]
        assert subject == "source 127.0.0.1"
        assert json.loads(detail)["source"] == "127.0.0.1"


@pytest.mark.parametrize("setting", ["TRUSTED_PROXIES", "FORWARDED_ALLOW_IPS"])
async def test_sources_behind_a_configured_proxy_are_counted_by_64_bits(directory: Path, setting: str) -> None:
    settings: dict[str, Any] = SETTINGS | {setting: "127.0.0.0/8"}
    async with run_serve(RunningStack, directory, **settings) as gateway:
        one_host = [f"2001:db8:0:1:{n:x}:{n:x}::{n:x}" for n in range(1, 7)]
        assert await log_in_from(gateway, *one_host) == [401] * 4 + [429] * 2
        assert await log_in_from(gateway, "2001:db8:0:2::1", "198.51.100.1", "::ffff:198.51.100.1") == [401] * 3
        translated = [f"64:ff9b::198.51.100.{n}" for n in range(2, 8)]
        assert await log_in_from(gateway, *translated) == [401] * 6
        # The client sends the first addresses, the proxy appends the last.
        assert await log_in_from(gateway, *(f"203.0.113.{n}, 192.0.2.1" for n in range(6))) == [401] * 4 + [429] * 2


async def test_failed_logins_from_many_sources_do_not_fill_the_audit_log(directory: Path) -> None:
    settings: dict[str, Any] = SETTINGS | {"TRUSTED_PROXIES": "127.0.0.1"}
    async with run_serve(RunningStack, directory, **settings) as gateway:
        query = "SELECT count(*) FROM audit_log WHERE action = 'login.refused'"
        networks = iter(range(1_000_000))

        async def attack() -> int:
            addresses = [f"2001:db8:{next(networks):x}::1" for _ in range(25)]
            assert await log_in_from(gateway, *addresses) == [401] * 25
            return (await gateway.query(query))[0][0]

        async with asyncio.timeout(60):
            while await attack() < 60:  # at most 20 a second
                continue
            await attack()
            await asyncio.gather(*(attack() for _ in range(4)))
        assert (await gateway.query(query))[0][0] == 60

"""The official conformance suite: the tool server; a server of everything, directly and through the gateway.

What may fail is in `tests/conformance/expected.toml`, with its reason; an entry that no longer fails fails the test.
"""

import asyncio
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gateway.simulator import Simulator
from tests.conformance import everything
from tests.conformance.client import on_call
from tests.e2e.node import NODE, needs
from tests.e2e.up import ROOT
from tests.stack import serve_asgi, serve_gateway

pytestmark = [
    needs("@modelcontextprotocol/conformance"),
    pytest.mark.timeout(900),  # the suite plays some sixty scenarios, twice, and some wait for ten seconds
]
REVISIONS = ["2025-11-25", "2026-07-28"]
EXPECTED = tomllib.loads((Path(__file__).parent.parent / "conformance" / "expected.toml").read_text())
RESULT = re.compile(r"^([✓✗]) ([\w/-]+): \d+ passed, \d+ failed", re.MULTILINE)
NOT_SCORED = re.compile(r"^  [✓✗] ([\w-]+) \(", re.MULTILINE)


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def conformance(*arguments: str) -> str:
    """What the suite prints."""
    programs = NODE / "node_modules" / ".bin"
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        str(programs / "conformance"), *arguments,
        cwd=NODE, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(400):
        out, _ = await process.communicate()
    return out.decode()


async def passes_alone(name: str, *arguments: str) -> bool:
    """A scenario that failed among the others is played once more: on a busy machine some run out of their time, and
    one time in hundreds the SDK's server blocks in writing to a stream that nobody reads any more."""
    told = await conformance(*arguments, "--scenario", name)
    print(told)
    return re.search(r"^Passed: (\d+)/\1, 0 failed", told, re.MULTILINE) is not None


async def scenarios(url: str, revision: str, output: Path, expected: dict[str, str]) -> dict[str, bool]:
    """Which of the scored scenarios pass."""
    server = ("server", "--url", url, "-o", str(output))
    told = await conformance(*server, "--requirements", revision)
    unscored = set(NOT_SCORED.findall(told))
    found = {name: mark == "✓" for mark, name in RESULT.findall(told) if name not in unscored}
    for name in [name for name, passed in found.items() if not passed and name not in expected]:
        found[name] = await passes_alone(name, *server, "--spec-version", revision)
    return found


def check(found: dict[str, bool], expected: dict[str, str]) -> None:
    failed = {name for name, passed in found.items() if not passed}
    assert len(found) > 20
    assert sorted(failed) == sorted(expected)


@pytest.fixture
async def server(revision: str) -> AsyncGenerator[str]:
    """A server of everything, of the revision's era."""
    async with serve_asgi(everything.app(modern=revision >= "2026")) as url:
        yield f"{url}/mcp"


async def test_tool_server_fails_only_the_expected_scenarios(tools_url: str, revision: str, tmp_path: Path) -> None:
    expected = EXPECTED["tools-server"][revision]
    check(await scenarios(tools_url, revision, tmp_path, expected), expected)


async def test_gateway_fails_only_the_expected_scenarios(
    database_url: str, simulator: Simulator, server: str, revision: str, tmp_path: Path
) -> None:
    expected, also = EXPECTED["everything"][revision], EXPECTED["gateway"][revision]
    direct = await scenarios(server, revision, tmp_path / "direct", expected)
    check(direct, expected)
    async with serve_gateway(database_url, simulator, server) as gateway:
        through = await scenarios(f"{gateway.base_url}/mcp", revision, tmp_path / "through", expected | also)
    lost = {name for name, passed in direct.items() if passed and not through[name]}
    assert sorted(lost) == sorted(also)


async def test_mcp_client_fails_only_the_expected_scenarios(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="agw-") as directory:
        command = f"{sys.executable} -S {Path(everything.__file__).with_name('dial.py')} {directory}/dial"
        async with on_call(f"{directory}/dial"):
            told = await conformance("client", "--command", command, "--suite", "all", "-o", str(tmp_path))
            found = {name: mark == "✓" for mark, name in RESULT.findall(told)}
            failed = {name for name, passed in found.items() if not passed}
            for name in failed - EXPECTED["client"].keys():
                if await passes_alone(name, "client", "--command", command, "-o", str(tmp_path)):
                    failed.remove(name)
    assert len(found) > 40
    assert sorted(failed) == sorted(EXPECTED["client"]), told[-6_000:]

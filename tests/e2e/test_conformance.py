"""The official MCP conformance suite for tool server, gateway and MCP client.

`tests/conformance/expected.toml` lists the scenarios that fail, with reasons. The tests also fail for a listed scenario
that passes.
"""

import asyncio
import json
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
from tests.conformance.client import serve_client_scenarios
from tests.e2e.node import NODE, require_node
from tests.e2e.running_stack import ROOT
from tests.stack import serve_asgi, serve_gateway

pytestmark = [
    require_node("@modelcontextprotocol/conformance"),
    pytest.mark.timeout(900),  # some sixty scenarios, twice, of which some wait for ten seconds
]
REVISIONS = ["2025-11-25", "2026-07-28"]
EXPECTED = tomllib.loads((Path(__file__).parent.parent / "conformance" / "expected.toml").read_text())
RESULT = re.compile(r"^([✓✗]) ([\w/-]+): \d+ passed, \d+ failed", re.MULTILINE)
NOT_SCORED = re.compile(r"^  [✓✗] ([\w-]+) \(", re.MULTILINE)


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


_UNSTABLE = {"auth/scope-retry-limit"}
"""Client scenarios that pass or fail by the order of two refusals.

A call asks for up to five sign-ins if the last refusal has a plain challenge, and three are permitted.
"""


async def run_suite(*arguments: str) -> str:
    """Run the suite and return its output."""
    programs = NODE / "node_modules" / ".bin"
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        str(programs / "conformance"),
        *arguments,
        cwd=NODE,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(400):
        out, _ = await process.communicate()
    return out.decode()


async def passes_when_repeated(name: str, *arguments: str) -> bool:
    """Repeat a failed scenario alone.

    On a busy machine some scenarios time out, and the SDK's server may block in a write.
    """
    output = await run_suite(*arguments, "--scenario", name)
    print(output)
    return re.search(r"^Passed: (\d+)/\1, 0 failed", output, re.MULTILINE) is not None


async def run_server_scenarios(url: str, revision: str, directory: Path, expected: dict[str, str]) -> dict[str, bool]:
    """Run the scored scenarios and return which of them pass."""
    server = ("server", "--url", url, "-o", str(directory))
    output = await run_suite(*server, "--requirements", revision)
    unscored = set(NOT_SCORED.findall(output))
    results = {name: mark == "✓" for mark, name in RESULT.findall(output) if name not in unscored}
    for name in [name for name, passed in results.items() if not passed and name not in expected]:
        results[name] = await passes_when_repeated(name, *server, "--spec-version", revision)
    return results


def check_failures(results: dict[str, bool], expected: dict[str, str]) -> None:
    failed = {name for name, passed in results.items() if not passed}
    assert len(results) > 20
    assert sorted(failed) == sorted(expected)


def read_failed_checks(directory: Path) -> dict[str, set[str]]:
    """The failed checks of each scenario, scored or not."""
    failed: dict[str, set[str]] = {}
    for path in directory.glob("**/checks.json"):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*", "", path.parent.name)
        checks = json.loads(path.read_text())
        failed.setdefault(scenario, set()).update(check["id"] for check in checks if check["status"] == "FAILURE")
    return failed


@pytest.fixture
async def server() -> AsyncGenerator[str]:
    """A server with all features, which speaks both protocols."""
    async with serve_asgi(everything.create_app()) as url:
        yield f"{url}/mcp"


async def test_tool_server_fails_only_the_expected_scenarios(
    open_tools_url: str, revision: str, tmp_path: Path
) -> None:
    expected = EXPECTED["tools-server"][revision]
    check_failures(await run_server_scenarios(open_tools_url, revision, tmp_path, expected), expected)


async def test_nothing_that_passes_directly_fails_through_the_gateway(
    database_url: str, simulator: Simulator, server: str, revision: str, tmp_path: Path
) -> None:
    """Compare every check, with unpinned protocols."""
    expected, gateway_expected = EXPECTED["everything"][revision], EXPECTED["gateway"][revision]
    direct = await run_server_scenarios(server, revision, tmp_path / "direct", expected)
    check_failures(direct, expected)
    async with serve_gateway(database_url, simulator, server) as gateway:
        url = f"{gateway.base_url}/mcp"
        await run_suite("server", "--url", url, "-o", str(tmp_path / "through"), "--requirements", revision)
        directly, through = read_failed_checks(tmp_path / "direct"), read_failed_checks(tmp_path / "through")
        assert directly.keys() == through.keys()
        for name in [name for name in through if through[name] - directly[name] and name not in gateway_expected]:
            repeated = tmp_path / "repeated" / name  # alone, since a busy machine makes some time out
            again = ("--scenario", name, "--spec-version", revision)
            await run_suite("server", "--url", url, "-o", str(repeated), *again)
            through[name] = read_failed_checks(repeated).get(name, through[name])
    differing = {name: sorted(failed - directly[name]) for name, failed in through.items() if failed - directly[name]}
    for name, checks in sorted(differing.items()):
        print(f"{name}: {', '.join(checks)}")
    assert sorted(differing) == sorted(gateway_expected)


async def test_mcp_client_fails_only_the_expected_scenarios(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="agw-") as directory:
        command = f"{sys.executable} -S {Path(everything.__file__).with_name('run_scenario.py')} {directory}/socket"
        async with serve_client_scenarios(f"{directory}/socket"):
            output = await run_suite("client", "--command", command, "--suite", "all", "-o", str(tmp_path))
            results = {name: mark == "✓" for mark, name in RESULT.findall(output)}
            failed = {name for name, passed in results.items() if not passed}
            failed -= _UNSTABLE
            for name in failed - EXPECTED["client"].keys():
                if await passes_when_repeated(name, "client", "--command", command, "-o", str(tmp_path)):
                    failed.remove(name)
    assert len(results) > 40
    assert sorted(failed) == sorted(EXPECTED["client"]), output[-6_000:]

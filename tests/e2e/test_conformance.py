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
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from gateway.domain.messages import JsonObject
from gateway.simulator import Simulator
from tests.conformance import everything, task_tools
from tests.conformance.api_client import ApiClient, serve_api_scenarios
from tests.conformance.client import serve_client_scenarios
from tests.conformance.task_tools import TaskToolServer
from tests.e2e.node import NODE, require_node
from tests.e2e.running_stack import ROOT
from tests.gateway.mcp_client.raw_server import RawServer, serve_raw
from tests.stack import find_free_port, serve_asgi, serve_gateway

pytestmark = [
    require_node("@modelcontextprotocol/conformance"),
    pytest.mark.timeout(900),  # some sixty scenarios, twice, of which some wait for ten seconds
]
REVISIONS = ["2025-11-25", "2026-07-28"]
SPEC_VERSIONS = ["2025-03-26", "2025-06-18", *REVISIONS]
EXPECTED = tomllib.loads((Path(__file__).parent.parent / "conformance" / "expected.toml").read_text())
RESULT = re.compile(r"^([✓✗]) ([\w/-]+): \d+ passed, \d+ failed", re.MULTILINE)
NOT_SCORED = re.compile(r"^  [✓✗] ([\w-]+) \(", re.MULTILINE)


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


async def find_differing_checks(server: str, gateway: str, directory: Path, *scope: str) -> dict[str, list[str]]:
    """Return the checks that fail only through a gateway."""
    await run_suite("server", "--url", gateway, "-o", str(directory / "through"), *scope)
    directly, through = read_failed_checks(directory / "direct"), read_failed_checks(directory / "through")
    assert directly.keys() == through.keys() != set()
    for name in [name for name in through if through[name] - directly[name]]:
        for url, failed in ((server, directly), (gateway, through)):  # alone: a busy machine makes some time out
            repeated = directory / "repeated" / name / str(url == gateway)
            await run_suite("server", "--url", url, "-o", str(repeated), "--scenario", name, *get_version(scope))
            failed[name] = read_failed_checks(repeated).get(name, failed[name])
    differing = {name: sorted(failed - directly[name]) for name, failed in through.items() if failed - directly[name]}
    for name, checks in sorted(differing.items()):
        print(f"{name}: {', '.join(checks)}")
    return differing


def get_version(scope: Sequence[str]) -> tuple[str, ...]:
    return ("--spec-version", scope[-1]) if scope[-1] in SPEC_VERSIONS else ()


async def test_nothing_that_passes_directly_fails_through_the_gateway(
    database_url: str, simulator: Simulator, server: str, revision: str, tmp_path: Path
) -> None:
    """Compare every check, with unpinned protocols."""
    expected, gateway_expected = EXPECTED["everything"][revision], EXPECTED["gateway"][revision]
    direct = await run_server_scenarios(server, revision, tmp_path / "direct", expected)
    check_failures(direct, expected)
    async with serve_gateway(database_url, simulator, server) as gateway:
        url = f"{gateway.base_url}/mcp"
        differing = await find_differing_checks(server, url, tmp_path, "--requirements", revision)
    assert sorted(differing) == sorted(gateway_expected)


@pytest.mark.parametrize("version", ["", *SPEC_VERSIONS])
async def test_no_check_of_all_suites_fails_only_through_the_gateway(
    database_url: str, simulator: Simulator, server: str, version: str, tmp_path: Path
) -> None:
    """Compare the checks of extensions and older versions, too."""
    scope = ("--suite", "all", *(("--spec-version", version) if version else ()))
    await run_suite("server", "--url", server, "-o", str(tmp_path / "direct"), *scope)
    async with serve_gateway(database_url, simulator, server) as gateway:
        assert await find_differing_checks(server, f"{gateway.base_url}/mcp", tmp_path, *scope) == {}


async def test_task_scenarios_fail_only_the_expected_checks(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    """Run the unscored scenarios of tasks with their fixtures behind the gateway."""
    entry: JsonObject = {"prefix": "", "tasks": list(task_tools.TASKS)}
    servers: dict[str, tuple[RawServer, JsonObject]] = {"fixtures": (TaskToolServer(), entry)}
    async with serve_raw(database_url, simulator, tmp_path, servers, heartbeat_seconds=0.5) as gateway:
        for name in task_tools.SCENARIOS:
            suite = ("server", "--url", f"{gateway.base_url}/mcp", "-o", str(tmp_path / name))
            print(await run_suite(*suite, "--scenario", name, "--force"))
    failed = [read_failed_checks(tmp_path / name) for name in task_tools.SCENARIOS]
    assert all(failed)
    checks = {check for scenarios in failed for found in scenarios.values() for check in found}
    assert sorted(checks) == sorted(EXPECTED["tasks"])


async def find_failed_client_scenarios(socket: str, directory: Path, expected: dict[str, str]) -> set[str]:
    """Run the client scenarios with the client that a Unix socket serves."""
    command = f"{sys.executable} -S {Path(everything.__file__).with_name('run_scenario.py')} {socket}"
    suite = ("client", "--command", command, "--timeout", "300000", "-o", str(directory))
    output = await run_suite(*suite, "--suite", "all")
    print(output[-6_000:])
    results = {name: mark == "✓" for mark, name in RESULT.findall(output)}
    assert len(results) > 40
    failed = {name for name, passed in results.items() if not passed}
    for name in failed - expected.keys():
        if await passes_when_repeated(name, *suite):
            failed.remove(name)
    return failed


async def test_mcp_client_fails_only_the_expected_scenarios(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="agw-") as directory:
        async with serve_client_scenarios(f"{directory}/socket"):
            failed = await find_failed_client_scenarios(f"{directory}/socket", tmp_path, EXPECTED["client"])
    assert sorted(failed) == sorted(EXPECTED["client"])


async def test_client_scenarios_over_the_api_fail_only_where_expected(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    """A running gateway adds servers, signs in, and calls tools."""
    expected = EXPECTED["client"] | EXPECTED["client-over-api"]
    file, port = tmp_path / "mcp.json", find_free_port()
    file.write_text(json.dumps({"mcpServers": {}}))
    settings = {"gateway_public_url": f"http://127.0.0.1:{port}", "gateway_data_dir": tmp_path, "mcp_config": file}
    async with serve_gateway(database_url, simulator, None, port=port, **settings) as gateway:
        with tempfile.TemporaryDirectory(prefix="agw-") as directory:
            async with serve_api_scenarios(f"{directory}/socket", ApiClient(gateway, file)):
                failed = await find_failed_client_scenarios(f"{directory}/socket", tmp_path, expected)
    assert sorted(failed) == sorted(expected)

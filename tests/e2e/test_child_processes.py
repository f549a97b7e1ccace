"""Tests of the environment and the descriptors of child processes.

A real stdio server reports what it inherited.
"""

import json
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.server.child_environment import TOOLS_SERVER_VARIABLES
from gateway_runtime.child_processes import BASE_VARIABLES
from tests.e2e.running_stack import RunningStack, run_serve, run_stack
from tests.e2e.running_workers import Workers
from tests.e2e.test_asgi_servers import UVICORN, run_server
from tests.eventually import eventually
from tests.stack import Client, find_free_port
from tools_server.config import Settings as ToolsSettings

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")

SECRET = "not-for-children-0123456789"
KEY = f"{SECRET}-key"
SECRETS: dict[str, Any] = {
    "API_KEY": KEY,
    "GATEWAY_ENCRYPTION_KEY": f"{SECRET}-encryption",
    "OPENAI_DEFAULT_MODEL": f"{SECRET}-model",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-cloud",
    "redis_password": f"{SECRET}-redis",
}
HEADERS = {"X-API-Key": KEY}


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def write_config(directory: Path, **servers: Any) -> str:
    program = str(Path(__file__).with_name("child_report.py"))
    report = {"command": sys.executable, "args": [program], "env": {"GIVEN": "${GIVEN_TO_SERVER}"}}
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"report": report, **servers}}))
    return str(file)


async def call_report(stack: Client) -> dict[str, list[str]]:
    async def call() -> dict[str, list[str]] | None:
        reply = await stack.post("/api/v1/tools/report_inherited", {}, headers=HEADERS)
        return reply.body["structured"] if reply.status == 200 else None

    return await eventually(call)  # type: ignore[return-value]


def read_environment(pid: int) -> list[str]:
    return list(filter(None, Path(f"/proc/{pid}/environ").read_text().split("\0")))


def list_listening_sockets() -> set[str]:
    """List the links of this machine's listening TCP sockets."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"}


def list_holders(port: int) -> set[int]:
    """List the processes that hold a listening socket of a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    links = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    assert links
    return {int(entry.parent.name) for entry in Path("/proc").glob("[0-9]*/fd") if _read_links(entry) & links}


def _read_links(directory: Path) -> set[str]:
    links: set[str] = set()
    try:
        for name in os.listdir(directory):
            with suppress(FileNotFoundError):
                links.add(os.readlink(directory / name))
    except (FileNotFoundError, PermissionError, ProcessLookupError):  # the process has ended, or is another user's
        return set()
    return links


def check_descriptors(report: dict[str, list[str]]) -> None:
    """Check that the server has no socket of the gateway.

    uvloop leaves copies of those streams, and a pipe by which a failed start is reported, open in the child.
    """
    descriptors = dict(line.split(" ", 1) for line in report["descriptors"])
    own = {descriptors.pop(name) for name in ("0", "1", "2")}
    assert not (own | set(descriptors.values())) & list_listening_sockets()
    assert {target for target in descriptors.values() if not target.startswith("pipe:")} <= own


async def test_stdio_server_of_a_single_worker_inherits_no_socket(directory: Path) -> None:
    settings: dict[str, Any] = {"MCP_CONFIG": write_config(directory), "GIVEN_TO_SERVER": "x"}
    async with run_serve(RunningStack, directory, **SECRETS, **settings) as gateway:
        check_descriptors(await call_report(gateway))


async def test_stdio_servers_of_several_workers_inherit_no_socket(directory: Path) -> None:
    settings: dict[str, Any] = {"MCP_CONFIG": write_config(directory), "GIVEN_TO_SERVER": "x"}
    async with run_serve(Workers, directory, "--workers", "2", **SECRETS, **settings) as workers:
        await eventually(lambda: workers.have_served(2))
        for pid in workers.pids():
            async with workers.connect_to_worker(pid) as client:
                check_descriptors(await call_report(client))
        assert list_holders(workers.port) == workers.pids()


@pytest.mark.faults
async def test_stdio_servers_of_another_server_s_workers_inherit_no_socket(directory: Path) -> None:
    """uvicorn gives its workers an inheritable listening socket."""
    settings = {"MCP_CONFIG": write_config(directory), "GIVEN_TO_SERVER": "x", "API_KEY": KEY}
    async with run_server(directory, *UVICORN, "--workers", "2", **settings) as running:
        check_descriptors(await call_report(running))


async def test_children_see_no_secret_that_they_do_not_need(directory: Path) -> None:
    settings: dict[str, Any] = {
        "MCP_CONFIG": write_config(directory),
        "GIVEN_TO_SERVER": "given-by-name",
        "TAVILY_API_KEY": "tavily-1",
        "CONSOLE": "on",
        "CONSOLE_PORT": str(find_free_port()),
    }
    async with run_stack(directory, **SECRETS, **settings) as stack:
        report = await call_report(stack)
        check_descriptors(report)
        assert list_holders(int(stack.base_url.rpartition(":")[2])) == {stack.find_child("gateway.cli")}
        simulator, tool_server = stack.find_child("gateway.simulator"), stack.find_child("tools_server.cli")
        postmaster = int((stack.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
        children = {
            "stdio server": report["environment"],
            "simulator": read_environment(simulator),
            "tool server": read_environment(tool_server),
            "console": read_environment(stack.find_child("gateway_console")),
            "Postgres": read_environment(postmaster),
        }
        for name, environment in children.items():
            assert environment, name
            assert SECRET not in "\n".join(environment), name
        assert "GIVEN=given-by-name" in report["environment"]
        assert "tavily-1" in "\n".join(children.pop("tool server"))
        assert all("tavily-1" not in "\n".join(environment) for environment in children.values())
        assert not any(line.startswith("TOOLS_SERVER_SECRET") for lines in children.values() for line in lines)


def test_tool_server_gets_all_of_its_settings_and_no_other() -> None:
    names = {name.upper() for name in ToolsSettings.model_fields} - {"GATEWAY_PARENT_FD"}
    assert names == TOOLS_SERVER_VARIABLES
    assert not BASE_VARIABLES & TOOLS_SERVER_VARIABLES

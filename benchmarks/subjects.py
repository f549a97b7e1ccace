"""The measured servers.

Each defines how it is started, and how a request to it looks.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, ServerProcess, find_free_port
from benchmarks.upstream import MODEL
from gateway.cli.serve import WORKER_NAME
from gateway.mcp_client.caller_identity import ISSUER, sign_with_secret

API_KEY = "key-of-the-benchmarks"
_TOOLS_SERVER_SECRET = secrets.token_urlsafe(32)
_TOKEN_SECONDS = 24 * 3600
_REMOVED_PREFIXES = (
    *("GROQ_", "DATABASE_URL", "POSTGRES_", "MCP_", "API_KEY", "TOOLS_", "GATEWAY_", "LOG_", "DEBUG", "AGENT_"),
    "WEB_CONCURRENCY",
)
_READY_TIMEOUT_SECONDS = 90.0
BENCH_DIRECTORY = ROOT / ".bench"


@dataclass(frozen=True)
class SharedServers:
    """Work directory and addresses of the servers that all subjects use."""

    directory: Path
    upstream_url: str
    tools_url: str

    def create_tools_token(self) -> str:
        """Create a token of the tool server for a subject."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": "tools-server", "sub": "bench", "iat": now, "exp": now + _TOKEN_SECONDS}
        return sign_with_secret(_TOOLS_SERVER_SECRET, claims)


class Subject:
    """A server under load.

    `port` and `process` are valid from `start` to `stop`.
    """

    name: str
    description: str
    supports_tools = True
    ready_path = "/ready"
    load_share = 1.0
    """Share of each load that it gets.

    A more expensive server needs less load to be measured.
    """

    def __init__(self, shared: SharedServers) -> None:
        self.shared = shared
        self.port = find_free_port()
        self.process: ServerProcess | None = None
        self.ready_seconds = 0.0

    def get_command(self) -> list[str]:
        raise NotImplementedError

    def get_environment(self) -> dict[str, str]:
        return {}

    def build_request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        """Build the bytes of an HTTP request with a prompt."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start the server and return when it is ready.

        Raises:
            RuntimeError: the server ended, or did not become ready in time.
        """
        log = self.shared.directory / f"{self.name.split()[0].lower()}.log"
        self.process = ServerProcess(self.get_command(), env=build_environment(self.get_environment()), log=log)
        await wait_until_ready(self.process, self.port, self.ready_path)
        self.ready_seconds = time.perf_counter() - self.process.started_at

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


class Gateway(Subject):
    name = "gateway"
    description = "`agent-gateway serve` with API key, limits, journal, storage, embedded Postgres and MCP tools"

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / "gateway"

    def get_command(self) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", "serve"]

    def get_environment(self) -> dict[str, str]:
        return {
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_DATA_DIR": str(self.data_dir),
            "API_KEY": API_KEY,
            "GROQ_API_KEY": "bench",
            "GROQ_BASE_URL": self.shared.upstream_url,
            "MCP_SERVER_URL": self.shared.tools_url,
            "TOOLS_SERVER_SECRET": _TOOLS_SERVER_SECRET,
            # Limits are counted but not reached: one key sends all of the load.
            "RATE_LIMIT_REQUESTS": "1000000",
            "RATE_LIMIT_STREAMS": "100000",
        }

    def build_request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if not tools:
            body["tools"] = []
        return build_post_request("/api/v1/chat/stream" if stream else "/api/v1/chat", body, {"X-API-Key": API_KEY})


class PreviousRelease(Gateway):
    """The previous release, in an environment of its own."""

    name = "0.1.0"
    description = "release 0.1.0 of the gateway with the packages of its lock file, otherwise like the gateway"
    program = ROOT / ".upgrade" / "venv" / "bin" / "agent-gateway"

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / self.name

    def get_command(self) -> list[str]:
        return [str(self.program), "serve"]

    @classmethod
    def install_package(cls) -> str | None:
        """Install the release if it is missing.

        Return the reason of a failure, or None.
        """
        make = subprocess.run(["make", "--silent", "previous-release"], cwd=ROOT, check=False)
        return None if make.returncode == 0 and cls.program.exists() else "this clone lacks its commit"


class GatewayWorkers(Gateway):
    """The gateway with several workers and a database of its own."""

    def __init__(self, shared: SharedServers, worker_count: int) -> None:
        super().__init__(shared)
        self.worker_count = worker_count
        self.name = f"gateway-{worker_count}"

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / self.name

    def get_command(self) -> list[str]:
        return [*super().get_command(), "--workers", str(self.worker_count)]

    def list_worker_pids(self) -> list[int]:
        """List the process ids of the workers."""
        assert self.process is not None
        pids = self.process.list_server_pids()
        workers = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == f"{WORKER_NAME}\n"]
        return workers or [self.process.pid]


class Baseline(Subject):
    name = "baseline"
    description = (
        "FastAPI, chunk objects of the groq SDK, sse-starlette, one ORM commit per turn, one MCP client per tool turn"
    )
    load_share = 0.3

    def get_command(self) -> list[str]:
        data = self.shared.directory / self.name
        return [
            *(sys.executable, "-m", "benchmarks.baseline", "--port", str(self.port), "--data", str(data)),
            *("--upstream", self.shared.upstream_url, "--tools", self.shared.tools_url, "--key", API_KEY),
        ]

    def get_environment(self) -> dict[str, str]:
        return {"TOOLS_TOKEN": self.shared.create_tools_token()}

    def build_request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        body = {"messages": [{"role": "user", "content": prompt}], "tools": tools}
        return build_post_request("/chat/stream" if stream else "/chat", body, {"X-API-Key": API_KEY})


class _OpenAISubject(Subject):
    """A server with OpenAI's API."""

    path = "/openai/v1/chat/completions"

    def build_request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": MODEL, "stream": stream, "messages": messages, **self.get_extra_fields(tools)}
        return build_post_request(self.path, body, {"Authorization": f"Bearer {API_KEY}"})

    def get_extra_fields(self, tools: bool) -> dict[str, Any]:
        return {}


class Relay(_OpenAISubject):
    name = "relay"
    description = "the minimum: aiohttp that forwards bytes without a key, without reading and without storing them"
    supports_tools = False

    def get_command(self) -> list[str]:
        module = [sys.executable, "-m", "benchmarks.relay"]
        return [*module, "--port", str(self.port), "--upstream", self.shared.upstream_url]


class LiteLLM(_OpenAISubject):
    name = "LiteLLM"
    description = "LiteLLM proxy from its package, with one worker, a master key and its MCP gateway, no database"
    load_share = 0.1
    path = "/v1/chat/completions"
    ready_path = "/health/readiness"
    python = BENCH_DIRECTORY / "litellm" / "bin" / "python"

    def get_command(self) -> list[str]:
        config = self.shared.directory / "litellm.yaml"
        config.write_text(json.dumps(self._build_config()))  # JSON is YAML
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(self.port), "--telemetry", "False"]
        return [str(self.python), str(self.python.parent / "litellm"), *arguments]

    def get_environment(self) -> dict[str, str]:
        return {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "HOME": str(self.shared.directory),
            "NO_PROXY": "*",
        }

    def get_extra_fields(self, tools: bool) -> dict[str, Any]:
        if not tools:
            return {}
        tool = {"type": "mcp", "server_label": "tools", "server_url": "litellm_proxy", "require_approval": "never"}
        return {"tools": [tool]}

    def _build_config(self) -> dict[str, Any]:
        groq = {"model": f"groq/{MODEL}", "api_base": f"{self.shared.upstream_url}/openai/v1", "api_key": "bench"}
        return {
            "model_list": [{"model_name": MODEL, "litellm_params": groq}],
            "general_settings": {"master_key": API_KEY},
            "litellm_settings": {"telemetry": False},
            "mcp_servers": {
                "tools": {
                    "url": self.shared.tools_url,
                    "transport": "http",
                    "allow_all_keys": True,
                    "auth_type": "bearer_token",
                    "auth_value": self.shared.create_tools_token(),
                }
            },
        }

    @classmethod
    def install_package(cls) -> str | None:
        """Create the subject's environment if it is missing.

        Return the reason of a failure, or None.
        """
        return install_packages(cls.python, ["litellm[proxy]", "uvloop"])


class UpstreamServer(_OpenAISubject):
    """The mock upstream, called directly."""

    name = "upstream"
    description = "the mock upstream, called directly: the share of the upstream and of the load generator"
    supports_tools = False
    ready_path = "/openai/v1/models"

    def get_command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.upstream", "--port", str(self.port)]


class UpCommand(Subject):
    """The servers that `make run` starts, measured only for their start-up time."""

    name = "up"

    def get_command(self) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", "up"]

    def get_environment(self) -> dict[str, str]:
        data = self.shared.directory / "up"
        return {
            "GATEWAY_PORT": str(self.port),
            "TOOLS_SERVER_PORT": str(find_free_port()),
            "GATEWAY_DATA_DIR": str(data),
        }


class ToolServer(Subject):
    """The tool server of this project.

    All subjects with tools are connected to it.
    """

    name = "tools-server"
    ready_path = "/health"

    def get_command(self) -> list[str]:
        return [sys.executable, "-m", "tools_server.cli"]

    def get_environment(self) -> dict[str, str]:
        return {
            "TOOLS_SERVER_PORT": str(self.port),
            "TOOLS_SERVER_SECRET": _TOOLS_SERVER_SECRET,
            "GATEWAY_DATA_DIR": str(self.shared.directory / "tools"),
            "LOG_LEVEL": "WARNING",
        }


def install_packages(python: Path, packages: list[str]) -> str | None:
    """Create an environment with packages, if it is not complete.

    Return the reason of a failure, or None.
    """
    complete = python.parent.parent / "complete"
    if complete.exists():
        return None
    uv = ROOT / ".uv" / "bin" / "uv"
    tool = str(uv) if uv.exists() else "uv"
    try:
        subprocess.run([tool, "venv", "--quiet", "--allow-existing", python.parent.parent], check=True)
        subprocess.run([tool, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"it could not be installed ({type(error).__name__})"
    complete.touch()
    return None


def build_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without the gateway's settings, with other settings instead."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_REMOVED_PREFIXES)} | dict(
        settings
    )


def build_post_request(path: str, body: object, headers: Mapping[str, str]) -> bytes:
    content = json.dumps(body).encode()
    content_headers = {"Content-Type": "application/json", "Content-Length": len(content)}
    return _format_head("POST", path, {**content_headers, **headers}) + content


def build_get_request(path: str) -> bytes:
    return _format_head("GET", path, {"X-API-Key": API_KEY})


def _format_head(method: str, path: str, headers: Mapping[str, object]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def wait_until_ready(process: ServerProcess, port: int, path: str) -> None:
    """Wait until the server answers 200 without reporting that it is degraded."""
    deadline = time.perf_counter() + _READY_TIMEOUT_SECONDS
    while not await _is_ready(port, path):
        process.raise_if_ended()
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{process.log.stem} was not ready in {_READY_TIMEOUT_SECONDS:g} s")
        await asyncio.sleep(0.02)


async def _is_ready(port: int, path: str) -> bool:
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_format_head("GET", path, {"Connection": "close"}))
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.1 200") and b'"degraded"' not in answer

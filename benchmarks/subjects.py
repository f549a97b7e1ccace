"""What is measured: each a server of its own, started here, and how it is asked."""

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

from benchmarks.processes import ROOT, Process, free_port
from benchmarks.upstream import MODEL

KEY = "the-key-of-the-benchmarks"
_SECRET = secrets.token_urlsafe(32)
_KEPT_OUT = (
    "GROQ_", "DATABASE_URL", "POSTGRES_", "MCP_", "API_KEY", "TOOLS_", "GATEWAY_", "LOG_", "DEBUG", "AGENT_",
    "WEB_CONCURRENCY",
)  # fmt: skip
_READY_SECONDS = 90.0
BENCH = ROOT / ".bench"


@dataclass(frozen=True)
class Surroundings:
    """Where the parts are that all contestants share."""

    directory: Path
    upstream: str
    tools: str


class Contestant:
    """A server under load. `port` and `process` hold from `start` to `stop`."""

    name: str
    what: str
    tool_turns = True
    ready_path = "/ready"
    share = 1.0
    """How much of each load it is put under: what costs more needs less to be measured."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.port = free_port()
        self.process: Process | None = None
        self.ready_seconds = 0.0

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        """A whole HTTP request that asks the prompt."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start it, and return when it can serve.

        Raises:
            RuntimeError: it ended, or did not become ready.
        """
        log = self.around.directory / f"{self.name.split()[0].lower()}.log"
        self.process = Process(self.command(), env=environment(self.environment()), log=log)
        await until_ready(self.process, self.port, self.ready_path)
        self.ready_seconds = time.perf_counter() - self.process.started_at

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


class Gateway(Contestant):
    name = "gateway"
    what = "`agent-gateway serve`, whole: key asked for, limits, journal, storage, embedded Postgres, MCP tools"

    @property
    def data(self) -> Path:
        return self.around.directory / "gateway"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", "serve"]

    def environment(self) -> dict[str, str]:
        return {
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_DATA_DIR": str(self.data),
            "API_KEY": KEY,
            "GROQ_API_KEY": "bench",
            "GROQ_BASE_URL": self.around.upstream,
            "MCP_SERVER_URL": self.around.tools,
            "TOOLS_SERVER_SECRET": _SECRET,
            # Counted as ever, but never reached: one key sends all of the load.
            "RATE_LIMIT_REQUESTS": "1000000",
            "RATE_LIMIT_STREAMS": "100000",
        }

    def request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if not tools:
            body["tools"] = []
        return post("/api/v1/chat/stream" if stream else "/api/v1/chat", body, {"X-API-Key": KEY})


class Workers(Gateway):
    """The gateway in so many processes, with a database of its own."""

    def __init__(self, around: Surroundings, number: int) -> None:
        super().__init__(around)
        self.number = number
        self.name = f"gateway-{number}"

    @property
    def data(self) -> Path:
        return self.around.directory / self.name

    def command(self) -> list[str]:
        return [*super().command(), "--workers", str(self.number)]

    def workers(self) -> list[int]:
        """Their process ids."""
        assert self.process is not None
        pids = self.process.server_pids()
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}
        return [pid for pid in pids if b"--fd" in words[pid]] or [self.process.pid]


class Obvious(Contestant):
    name = "obvious"
    what = "FastAPI + groq SDK's chunk objects + sse-starlette, one ORM commit a turn, an MCP client a tool turn"
    share = 0.3

    def command(self) -> list[str]:
        data = self.around.directory / "obvious"
        return [
            *(sys.executable, "-m", "benchmarks.baseline", "--port", str(self.port), "--data", str(data)),
            *("--upstream", self.around.upstream, "--tools", self.around.tools, "--key", KEY),
        ]

    def request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        body = {"messages": [{"role": "user", "content": prompt}], "tools": tools}
        return post("/chat/stream" if stream else "/chat", body, {"X-API-Key": KEY})


class _OpenAI(Contestant):
    """Who is asked as OpenAI is."""

    path = "/openai/v1/chat/completions"

    def request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        body: dict[str, Any] = {
            "model": MODEL, "stream": stream, "messages": [{"role": "user", "content": prompt}], **self.extra(tools)
        }  # fmt: skip
        return post(self.path, body, {"Authorization": f"Bearer {KEY}"})

    def extra(self, tools: bool) -> dict[str, Any]:
        return {}


class Relay(_OpenAI):
    name = "relay"
    what = "the floor: aiohttp passing bytes on, no key, no look at them, nothing kept"
    tool_turns = False

    def command(self) -> list[str]:
        module = [sys.executable, "-m", "benchmarks.relay"]
        return [*module, "--port", str(self.port), "--upstream", self.around.upstream]


class LiteLLM(_OpenAI):
    name = "LiteLLM"
    what = "LiteLLM proxy from its package, one worker, a master key, its MCP gateway, no database"
    share = 0.1
    path = "/v1/chat/completions"
    ready_path = "/health/readiness"
    python = BENCH / "litellm" / "bin" / "python"

    def command(self) -> list[str]:
        config = self.around.directory / "litellm.yaml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(self.port), "--telemetry", "False"]
        return [str(self.python), str(self.python.parent / "litellm"), *arguments]

    def environment(self) -> dict[str, str]:
        return {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "HOME": str(self.around.directory),
            "NO_PROXY": "*",
        }

    def extra(self, tools: bool) -> dict[str, Any]:
        if not tools:
            return {}
        tool = {"type": "mcp", "server_label": "tools", "server_url": "litellm_proxy", "require_approval": "never"}
        return {"tools": [tool]}

    def _config(self) -> dict[str, Any]:
        groq = {"model": f"groq/{MODEL}", "api_base": f"{self.around.upstream}/openai/v1", "api_key": "bench"}
        return {
            "model_list": [{"model_name": MODEL, "litellm_params": groq}],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False},
            "mcp_servers": {"tools": {"url": self.around.tools, "transport": "http", "allow_all_keys": True}},
        }

    @classmethod
    def install(cls) -> str | None:
        """Make its environment if it is missing; why that failed, if it did."""
        if cls.python.with_name("litellm").exists():
            return None
        uv = ROOT / ".uv" / "bin" / "uv"
        tool = str(uv) if uv.exists() else "uv"
        try:
            subprocess.run([tool, "venv", "--quiet", "--allow-existing", cls.python.parent.parent], check=True)
            packages = ["litellm[proxy]", "uvloop"]
            subprocess.run([tool, "pip", "install", "--quiet", "--python", cls.python, *packages], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"it could not be installed ({type(error).__name__})"
        return None


class Upstream(_OpenAI):
    """The upstream itself, asked directly."""

    name = "upstream"
    what = "the mock itself, asked directly: what of the times is its own and the load generator's"
    tool_turns = False
    ready_path = "/openai/v1/models"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.upstream", "--port", str(self.port)]


class Up(Contestant):
    """What `make run` starts; for its start-up time alone."""

    name = "up"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", "up"]

    def environment(self) -> dict[str, str]:
        data = self.around.directory / "up"
        return {"GATEWAY_PORT": str(self.port), "TOOLS_SERVER_PORT": str(free_port()), "GATEWAY_DATA_DIR": str(data)}


class Tools(Contestant):
    """This project's tool server, which all contestants that can call tools are connected to."""

    name = "tools-server"
    ready_path = "/health"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tools_server.cli"]

    def environment(self) -> dict[str, str]:
        return {
            "TOOLS_SERVER_PORT": str(self.port),
            "TOOLS_SERVER_SECRET": _SECRET,
            "GATEWAY_DATA_DIR": str(self.around.directory / "tools"),
            "LOG_LEVEL": "WARNING",
        }


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The machine's environment without what would configure the gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_OUT)} | dict(settings)


def post(path: str, body: Any, headers: Mapping[str, str]) -> bytes:
    content = json.dumps(body).encode()
    return (
        _head("POST", path, {"Content-Type": "application/json", "Content-Length": len(content), **headers}) + content
    )


def get(path: str) -> bytes:
    return _head("GET", path, {"X-API-Key": KEY})


def _head(method: str, path: str, headers: Mapping[str, Any]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def until_ready(process: Process, port: int, path: str) -> None:
    """Return when the server answers 200 there; one that tells its status must say that it is ready."""
    deadline = time.perf_counter() + _READY_SECONDS
    while not await _is_ready(port, path):
        process.check()
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{process.log.stem} was not ready in {_READY_SECONDS:g} s")
        await asyncio.sleep(0.02)


async def _is_ready(port: int, path: str) -> bool:
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_head("GET", path, {"Connection": "close"}))
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.1 200") and b'"degraded"' not in answer

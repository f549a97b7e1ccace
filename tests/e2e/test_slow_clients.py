"""Clients that read nothing of a large answer, or little."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.certificates import create_certificate
from tests.e2e.running_stack import ROOT, RunningStack, run_stack
from tests.eventually import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
CLIENTS, SIZE = 40, 4_000_000
PEAK_BYTES = 900_000_000
CLOSED_SECONDS = 150.0
"""Five times the limit, for a loaded machine."""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "slow", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def build_post(path: str, body: dict[str, Any], **headers: str) -> bytes:
    content = json.dumps(body).encode()
    fields = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(len(content)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def build_call(session: str | None, number: int) -> bytes:
    """Build a call: of the current protocol without a session."""
    params: dict[str, Any] = {"name": "large_repeat", "arguments": {"size": SIZE}}
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    if session is not None:
        return build_post("/mcp", message, Mcp_Session_Id=session, MCP_Protocol_Version="2025-11-25")
    params["_meta"] = META
    headers = {"MCP_Protocol_Version": "2026-07-28", "Mcp_Method": "tools/call", "Mcp_Name": "large_repeat"}
    return build_post("/mcp", message, **headers)


async def open_session(stack: RunningStack) -> str:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "slow", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    headers = {"Accept": "application/json, text/event-stream"}
    async with stack.session.post(f"{stack.base_url}/mcp", json=body, headers=headers) as response:
        return response.headers["mcp-session-id"]


def open_client(url: str, context: ssl.SSLContext | None) -> socket.socket:
    address = urlsplit(url)
    client = socket.socket()
    client.settimeout(60)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect(("127.0.0.1", address.port))
    return client if context is None else context.wrap_socket(client, server_hostname="localhost")


def measure_memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_connections(clients: list[socket.socket]) -> int:
    """Count the connections that the server has not closed."""
    ports = {f"{client.getsockname()[1]:04X}" for client in clients}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].rpartition(":")[2] in ports and line[3] == "01" for line in lines)


@contextlib.asynccontextmanager
async def reading_slowly(clients: list[socket.socket]) -> AsyncGenerator[None]:
    """Read a byte a second with every second client."""

    async def read() -> None:
        while True:
            for client in clients[::2]:
                with contextlib.suppress(OSError):
                    client.recv(1)
            await asyncio.sleep(1)

    for client in clients:
        client.setblocking(False)
    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        for client in clients:
            client.close()


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
async def test_slow_clients_hold_little_memory_and_are_disconnected(directory: Path, has_tls: bool) -> None:
    certificate = create_certificate(directory)
    context = ssl.create_default_context(cafile=str(certificate.cert)) if has_tls else None
    document = json.loads((ROOT / "mcp.json").read_text())
    document["mcpServers"]["large"] = {"command": sys.executable, "args": ["-m", "tests.e2e.large_results_server"]}
    document["mcpServers"]["large"]["cwd"] = str(ROOT)
    (directory / "mcp.json").write_text(json.dumps(document))
    settings = {"MCP_CONFIG": str(directory / "mcp.json"), **(certificate.to_settings() if has_tls else {})}
    async with run_stack(directory, trusted=context, **settings) as stack:

        async def has_tool() -> bool:
            return "large_repeat" in str((await stack.get("/api/v1/tools")).body)

        await eventually(has_tool)
        pid = stack.find_child("gateway.cli")
        before, peak = measure_memory(pid), 0
        session = await open_session(stack)
        rest = build_post("/api/v1/tools/large_repeat", {"size": SIZE})
        for requests in (
            [build_call(None, number) for number in range(CLIENTS)],
            [build_call(session, number) for number in range(1, CLIENTS)],
            [rest] * CLIENTS,
        ):
            clients: list[socket.socket] = []
            for request in requests:
                clients.append(await asyncio.to_thread(open_client, stack.base_url, context))
                await asyncio.to_thread(clients[-1].sendall, request)
            async with reading_slowly(clients), asyncio.timeout(CLOSED_SECONDS):
                while count_connections(clients):
                    peak = max(peak, measure_memory(pid))
                    await asyncio.sleep(0.2)
        assert peak - before <= PEAK_BYTES
        assert (await stack.get("/health")).status == 200

"""A gateway behind a real nginx."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.simulator import Simulator
from tests.certificates import Certificate, create_certificate
from tests.e2e.running_stack import ROOT, START_SECONDS, clean_environment, gateway_command
from tests.eventually import eventually
from tests.gateway.api.test_behind_a_proxy import serve_with_sign_in, sign_in
from tests.requirements import require
from tests.stack import find_free_port
from tests.tcp_postgres import find_program

pytestmark = [
    pytest.mark.faults,
    require(bool(find_program("nginx")), "nginx (`make debian-packages`)"),
]
NAME = "gw.example.test"
IDLE_SECONDS = 6.0
"""More than uvicorn's own keep-alive."""
CONNECTIONS = 24
_CONFIG = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log; {user}
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 64; }}
  ssl_certificate {certificate}; ssl_certificate_key {key};
  server {{ listen 127.0.0.1:{removing} ssl http2; location /gw/ {{ proxy_pass http://127.0.0.1:{gateway}/; }} }}
  server {{ listen 127.0.0.1:{forwarding} ssl http2; location /gw/ {{
    proxy_pass http://127.0.0.1:{gateway}; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Prefix /gw; }} }}
  server {{ listen 127.0.0.1:{reusing}; location / {{
    proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_next_upstream off; }} }}
}}
"""


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


class _LocalResolver(AbstractResolver):
    """Resolves every name to this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serve_nginx(certificate: Certificate, **ports: int) -> AsyncGenerator[None]:
    with tempfile.TemporaryDirectory(prefix="agw-nginx-", dir="/tmp") as path:
        config = Path(path) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            _CONFIG.format(directory=path, user=user, certificate=certificate.cert, key=certificate.key, **ports)
        )
        process = subprocess.Popen([find_program("nginx"), "-c", str(config), "-p", path, "-e", f"{path}/error.log"])
        try:

            def is_open() -> bool:
                assert process.poll() is None, (Path(path) / "error.log").read_text()
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", ports["reusing"])) == 0

            await eventually(is_open)
            yield
        finally:
            process.terminate()
            process.wait(30)


@asynccontextmanager
async def open_browser(certificate: Certificate) -> AsyncGenerator[aiohttp.ClientSession]:
    context = ssl.create_default_context(cafile=str(certificate.cert))
    connector = aiohttp.TCPConnector(resolver=_LocalResolver(), ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as browser:
        yield browser


@pytest.mark.parametrize("proxy", ["removing", "forwarding"])
async def test_pages_chats_and_sign_in_work_behind_nginx_below_a_prefix(
    database_url: str, simulator: Simulator, tmp_path: Path, proxy: str
) -> None:
    certificate = create_certificate(tmp_path, name=NAME)
    ports = {name: find_free_port() for name in ("gateway", "removing", "forwarding", "reusing")}
    origin = f"https://{NAME}:{ports[proxy]}"
    async with (
        serve_with_sign_in(
            database_url, simulator, tmp_path, public_url=f"{origin}/gw", port=ports["gateway"]
        ) as gateway,
        serve_nginx(certificate, **ports),
        open_browser(certificate) as browser,
    ):
        for path in ("/health", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
            async with browser.get(f"{origin}/gw{path}") as response:
                assert response.status == 200, path
        body = {"messages": [{"role": "user", "content": "hi"}]}
        async with browser.post(f"{origin}/gw/api/v1/chat/stream", json=body, headers={"Origin": origin}) as response:
            assert "turn.completed" in await response.text()
        async with browser.post(
            f"{origin}/gw/api/v1/chat", json=body, headers={"Origin": "https://evil.test"}
        ) as response:
            assert response.status == 403
        assert "Signed in" in await sign_in(gateway, browser, origin)


async def test_no_reused_connection_is_closed_by_the_servers(
    database_url: str, directory: Path, tmp_path: Path
) -> None:
    """A proxy keeps idle connections for 60 seconds."""
    ports = {name: find_free_port() for name in ("gateway", "removing", "forwarding", "reusing")}
    tools_port = find_free_port()
    environment = clean_environment(
        DATABASE_URL=database_url,
        GATEWAY_PORT=str(ports["gateway"]),
        GATEWAY_DATA_DIR=str(directory / "data"),
        TOOLS_SERVER_PORT=str(tools_port),
        RATE_LIMIT_ENABLED="false",
    )
    commands = (gateway_command("serve"), [sys.executable, "-m", "tools_server.cli"])
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    try:
        async with (
            serve_nginx(create_certificate(tmp_path, name=NAME), **ports),
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
        ):

            async def get_status(port: int) -> int:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/health") as response:
                        return response.status
                except aiohttp.ClientConnectionError:
                    return 0

            for port in (ports["reusing"], tools_port):
                await eventually(partial(_is_ok, get_status, port), timeout_seconds=START_SECONDS)
            idle = [await open_idle_connection(port) for port in (ports["gateway"], tools_port)]
            for _ in range(2):
                statuses = await asyncio.gather(*(get_status(ports["reusing"]) for _ in range(CONNECTIONS)))
                assert statuses == [200] * CONNECTIONS
                await asyncio.sleep(IDLE_SECONDS)
            for reader, writer in idle:
                assert not reader.at_eof()
                assert await request_health(reader, writer) == b"HTTP/1.1 200 OK\r\n"
                writer.close()
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)


async def _is_ok(get_status: Callable[[int], Awaitable[int]], port: int) -> bool:
    return await get_status(port) == 200


async def open_idle_connection(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection that has had a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await request_health(reader, writer) == b"HTTP/1.1 200 OK\r\n"
    return reader, writer


async def request_health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the first line of the response."""
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
    return head.partition(b"\n")[0] + b"\n"

"""The lines that a stack prints when it is ready."""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Sequence

from gateway.config import Settings
from gateway.domain.messages import JsonObject
from gateway.server.supervisor import print_line
from gateway_runtime import tls
from gateway_runtime.embedded_postgres import EmbeddedPostgres

_TIMEOUT_SECONDS = 30.0
_DEGRADED_AFTER_SECONDS = 5.0
_POLL_SECONDS = 0.03
_REQUEST_TIMEOUT_SECONDS = 3.0


async def report_stack_ready(
    settings: Settings,
    postgres: EmbeddedPostgres | None,
    simulator_port: int,
    started_at: float,
    notes: Sequence[str] = (),
    *,
    has_console: bool = False,
    degraded_after_seconds: float = _DEGRADED_AFTER_SECONDS,
) -> None:
    """Print the addresses of all parts as soon as the gateway answers.

    A gateway that answers is given `degraded_after_seconds` to become ready.
    """
    url = settings.local_url
    context = tls.build_client_context(settings.tls_files)
    problems = await _wait_until_ready(settings, context, degraded_after_seconds)
    seconds = time.monotonic() - started_at
    addresses = {"groq": settings.groq_base_url, "openai": settings.openai_base_url}
    upstream = (
        addresses.get(settings.provider or "", "")
        or f"simulated Groq, http://127.0.0.1:{simulator_port} (set GROQ_API_KEY for the real one)"
    )
    database = str(postgres.data_dir / "postgres") + " (embedded PostgreSQL 18)" if postgres else "DATABASE_URL"
    lines = [
        f"The agent gateway is {'ready' if not problems else 'up'} after {seconds:.1f} s. Ctrl-C stops everything.",
        f"  gateway      {url}   (try {url}/docs)",
        *(
            [f"  console      {settings.console_public_url or f'http://127.0.0.1:{settings.console_port}'}"]
            if has_console
            else []
        ),
        f"  tool server  http://127.0.0.1:{settings.tools_server_port}/mcp",
        f"  model        {upstream}",
        f"  Postgres     {database}",
        *(f"  note         {note}" for note in (*(postgres.notes if postgres else ()), *notes)),
        *(f"  note         {note}" for note in list_scaling_notes(settings, settings.gateway_workers)),
        *(f"  not ready    {problem}" for problem in problems),
        "Try:",
        f"  curl -N {url}/api/v1/chat/stream -H 'Content-Type: application/json' \\",
        """    -d '{"messages":[{"role":"user","content":"What is 23*19?"}]}'""",
    ]
    print_line("\n" + "\n".join(lines) + "\n")


async def report_workers_ready(
    settings: Settings, all_ready: asyncio.Event, address: str, count: int, started_at: float
) -> None:
    """Print the address when all workers serve.

    Also print the limits that they do not share.
    """
    await all_ready.wait()
    print_line(f"The agent gateway is ready after {time.monotonic() - started_at:.1f} s: {count} workers at {address}")
    for note in list_scaling_notes(settings, count):
        print_line(f"  note  {note}", sys.stderr)


def list_scaling_notes(settings: Settings, count: int) -> list[str]:
    """List the limits that several workers do not share."""
    if count == 1 or settings.redis_url is not None:
        return []
    limits = "rate limits and " if settings.rate_limit_enabled else ""
    return [f"without REDIS_URL each of the {count} workers counts {limits}the model's limits by itself"]


async def _wait_until_ready(
    settings: Settings, context: ssl.SSLContext | None, degraded_after_seconds: float
) -> list[str]:
    """Wait until the gateway is ready; return the problems that prevent it.

    Gives up early on a gateway that answers, because a server of `mcp.json` may be unavailable for long.
    """
    started_at = time.monotonic()
    while True:
        response = await _get_ready(settings, context)
        waited = time.monotonic() - started_at
        if response is not None and response.get("status") == "ready":
            return []
        if response is not None and waited > degraded_after_seconds:
            return _list_problems(response)
        if waited > _TIMEOUT_SECONDS:
            return ["the gateway does not answer yet"]
        await asyncio.sleep(_POLL_SECONDS)


def _list_problems(response: JsonObject) -> list[str]:
    if "status" not in response:  # an error, such as that of TRUSTED_HOSTS without this machine's address
        return [f"/ready was answered with an error: {response.get('error', {}).get('message', response)}"]
    names = ("database", "model", "background_tasks")
    problems = [
        f"{name.replace('_', ' ')}: {response[name]['reason'] or 'not ready'}"
        for name in names
        if not response[name]["ok"]
    ]
    unavailable = [server for server in response["mcp_servers"] if server["state"] not in ("up", "disabled")]
    problems += [f"MCP server {server['name']}: {server['reason'] or server['state']}" for server in unavailable]
    return problems or [f"{response['status']}: /ready shows the reasons to an admin's key"]


async def _get_ready(settings: Settings, context: ssl.SSLContext | None) -> JsonObject | None:
    host, port, key = settings.local_host, settings.gateway_port, settings.api_key
    credential = f"X-API-Key: {key.get_secret_value()}\r\n" if key else ""
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            head = f"GET /ready HTTP/1.1\r\nHost: {host}:{port}\r\n{credential}Connection: close\r\n\r\n"
            writer.write(head.encode())
            response = await reader.read()
            writer.close()
            return json.loads(response.split(b"\r\n\r\n", 1)[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None

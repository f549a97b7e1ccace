"""The page `/`, which shows what runs where, and its state."""

import base64
import hashlib
import time
from collections.abc import Iterable
from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from gateway import __version__
from gateway.api.deps import (
    ModelHealthDep,
    SandboxDep,
    SettingsDep,
    StartTimeDep,
    StorageHealthDep,
    TasksDep,
    ToolboxDep,
    TurnServiceDep,
)
from gateway.api.routes.native.health import Check, Readiness, get_readiness, is_admin, limit_details
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.urls import strip_url_secrets
from gateway.config import Settings
from gateway_runtime.postgres.url import list_hosts

router = APIRouter(include_in_schema=False)

_STYLE = """\
body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;vertical-align:top;\
border-bottom:1px solid #ccc}code{overflow-wrap:anywhere}.ok{color:#176b2c}.bad{color:#a11}"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}
_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MCP agent gateway</title><link rel="icon" href="data:,"><style>{style}</style></head><body>
<h1>MCP agent gateway {version}</h1>
<p>This worker is <strong class="{mood}">{status}</strong>. It has been running for {uptime}, with {turns}.</p>
{console}<h2>State</h2><table>{checks}</table>
<h2>MCP servers</h2>{servers}
<h2>Addresses</h2><table>{addresses}</table>
</body></html>
"""
# Relative links also work behind a proxy that adds a prefix to the paths.
_ADDRESSES = (
    ("docs", "the HTTP API, with a form for each request"),
    ("redoc", "the same as a reference"),
    ("openapi.json", "the OpenAPI document"),
    ("api/v1/chat/stream", "POST: a chat with every event of its turn"),
    ("v1", "base URL for OpenAI clients: v1/chat/completions, v1/responses, v1/models"),
    ("mcp", "the MCP endpoint for hosts such as Claude Desktop and Cursor"),
    ("health", "whether the process runs"),
    ("ready", "whether it can run turns; with an admin's key, the reasons"),
)
_PAGES = {"docs", "redoc", "openapi.json", "health", "ready"}


@router.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse)
async def show_home(
    request: Request,
    storage: StorageHealthDep,
    model_health: ModelHealthDep,
    toolbox: ToolboxDep,
    turn_service: TurnServiceDep,
    tasks: TasksDep,
    settings: SettingsDep,
    sandbox: SandboxDep,
    started_at: StartTimeDep,
) -> Response:
    """Show the state of this worker, and the addresses of the APIs.

    The state is that of `/ready`. Only admins see reasons, MCP servers and the addresses of other servers.
    """
    readiness = await get_readiness(storage, model_health, toolbox, turn_service, tasks, settings, sandbox)
    principal = request.scope.get(PRINCIPAL_SCOPE_KEY)
    detailed = is_admin(principal)
    running = turn_service.running_turns
    page = _PAGE.format(
        style=_STYLE,
        version=escape(__version__),
        mood="ok" if readiness.status == "ready" else "bad",
        status=escape(readiness.status),
        uptime=_format_duration(time.monotonic() - started_at),
        turns="no turn running" if not running else f"{running} turn{'s' if running > 1 else ''} running",
        console=_render_console(settings.console_public_url),
        checks=_render_checks(readiness, settings, detailed=detailed),
        servers=_render_servers(limit_details(readiness, principal)) if detailed else "<p>Shown to admins only.</p>",
        addresses="".join(_render_address(path, meaning) for path, meaning in _ADDRESSES),
    )
    return HTMLResponse(page, headers=_HEADERS)


def _render_checks(readiness: Readiness, settings: Settings, *, detailed: bool) -> str:
    model = f"{settings.default_model} (simulated)" if readiness.simulated else settings.default_model
    rows: list[tuple[str, Check, str]] = [
        ("Database", readiness.database, _locate_database(settings) if detailed else "PostgreSQL"),
        ("Model", readiness.model, f"{model} at {_locate_model(settings)}" if detailed else model),
        ("Background tasks", readiness.background_tasks, "journal, heartbeat and their peers"),
    ]
    return "".join(
        _render_row(
            name, _render_state("ok" if check.ok else "not ok", ok=check.ok), where, check.reason if detailed else None
        )
        for name, check, where in rows
    )


def _render_console(url: str | None) -> str:
    return "" if url is None else f'<p><a href="{escape(url)}">Open the web console</a></p>'


def _render_servers(readiness: Readiness) -> str:
    if not readiness.mcp_servers:
        return "<p>None. <code>agent-gateway mcp add</code> adds one.</p>"
    rows = [
        _render_row(
            server.name,
            _render_state(server.state, ok=server.state in ("up", "disabled")),
            server.url or server.transport,
            f"{server.tools} tools" if server.state == "up" else server.reason,
        )
        for server in readiness.mcp_servers
    ]
    return f"<table>{''.join(rows)}</table>"


def _render_row(name: str, state: str, where: str, remark: str | None) -> str:
    cells: Iterable[str] = (escape(name), state, f"<code>{escape(where)}</code>", escape(remark or ""))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _render_state(state: str, *, ok: bool) -> str:
    return f'<span class="{"ok" if ok else "bad"}">{escape(state)}</span>'


def _render_address(path: str, meaning: str) -> str:
    text = f"<code>/{path}</code>"
    link = f'<a href="{path}">{text}</a>' if path in _PAGES else text
    return f"<tr><td>{link}</td><td>{escape(meaning)}</td></tr>"


def _locate_database(settings: Settings) -> str:
    hosts = [
        host if host.startswith("/") else f"{host}:{port}" for host, port in list_hosts(settings.postgres_url or "")
    ]
    return f"PostgreSQL at {', '.join(hosts)}"


def _locate_model(settings: Settings) -> str:
    url = settings.openai_base_url if settings.provider == "openai" else settings.groq_base_url
    return strip_url_secrets(url)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"

"""The application: pages, sessions and the middleware in front of them."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from nicegui import Client, core, ui
from starlette.types import ASGIApp

from gateway_console.api import Api, GatewayClient
from gateway_console.layout import add_style
from gateway_console.messages import guard_messages
from gateway_console.pages import register_pages
from gateway_console.security import ConsoleSecurityMiddleware, get_session
from gateway_console.sessions import RequestLimiter, Role, SessionStore
from gateway_console.settings import ConsoleSettings
from gateway_console.sign_in import SignInPages

_REQUESTS_PER_MINUTE = 60
_SIGN_INS_PER_MINUTE = 20
_PAGES_PER_MINUTE = 120
_ANONYMOUS_CACHE_SECONDS = 5.0
_RECONNECT_SECONDS = 10.0


def create_app(settings: ConsoleSettings) -> ASGIApp:
    """Build the console.

    NiceGUI has one application a process, so call this once.
    """
    client = GatewayClient(settings.gateway_url, settings.console_gateway_cert_file)
    sessions = SessionStore(settings.console_session_seconds, settings.console_max_sessions)
    pages = SignInPages(settings, sessions, client, RequestLimiter(_SIGN_INS_PER_MINUTE))

    @asynccontextmanager
    async def close_client(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await client.close()

    app = FastAPI(lifespan=close_client, openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(pages.routes)

    def build_api(request: Request) -> Api:
        return Api(client, get_session(request), sessions)

    register_pages(build_api)
    add_style()
    ui.run_with(  # pyright: ignore[reportUnknownMemberType]
        app,
        title="Agent gateway",
        dark=None,
        language="en-US",
        reconnect_timeout=_RECONNECT_SECONDS,
        message_history_length=200,
        show_welcome_message=False,
        favicon="💬",
    )
    guard_messages()
    core.app.config.socket_io_js_transports = ["websocket"]
    return ConsoleSecurityMiddleware(
        app,
        settings=settings,
        sessions=sessions,
        limiter=RequestLimiter(_REQUESTS_PER_MINUTE),
        page_limiter=RequestLimiter(_PAGES_PER_MINUTE),
        count_pages=lambda: len(Client.instances),
        find_anonymous_role=_cache(lambda: client.find_role(None)) if settings.allows_anonymous else _require_sign_in,
    )


async def _require_sign_in() -> Role | None:
    return None


def _cache(find_role: Callable[[], Awaitable[Role | None]]) -> Callable[[], Awaitable[Role | None]]:
    """Remember for moments whether the gateway asks for a credential."""
    found: tuple[float, Role | None] = (0.0, None)

    async def find_cached_role() -> Role | None:
        nonlocal found
        if time.monotonic() >= found[0]:
            found = (time.monotonic() + _ANONYMOUS_CACHE_SECONDS, await find_role())
        return found[1]

    return find_cached_role

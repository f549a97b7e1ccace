"""The ASGI application: its middleware, routes and lifespan."""

import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.routing import Route

from gateway import __version__
from gateway.api.http import errors, openapi
from gateway.api.http.application import GatewayApplication
from gateway.api.http.direct_routes import DirectRouteMiddleware
from gateway.api.http.request_body import RequestBodyMiddleware
from gateway.api.http.request_context import RequestContextMiddleware
from gateway.api.http.root_path import RootPathMiddleware
from gateway.api.mcp.endpoint import McpRoute
from gateway.api.rate_limit.limiter import RATE_HEADERS
from gateway.api.routes.registration import list_direct_routes, register_routes
from gateway.api.security.middleware import SecurityMiddleware
from gateway.api.security.origins import PreflightMiddleware
from gateway.common.logging import get_logger
from gateway.common.timeouts import Timeouts
from gateway.composition.gateway import build_gateway
from gateway.composition.telemetry import create_telemetry
from gateway.config import ConfigError, Settings
from gateway.mcp_client.server_config import load_servers
from gateway.server.asgi import SelfConfiguredApplication

log = get_logger(__name__)

_EXPOSED_HEADERS = (
    "X-Request-ID",
    "Request-Id",
    "X-Turn-Id",
    "X-Gateway-Cache",
    "X-Gateway-Warnings",
    "Mcp-Session-Id",
    "WWW-Authenticate",
    "Retry-After",
)
"""Headers that pages of other origins may read, beside rate limits."""


def create_app(
    settings: Settings,
    *,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    wait_until_served: Callable[[], Awaitable[None]] | None = None,
) -> FastAPI:
    """The gateway's ASGI application. Its lifespan connects and disconnects everything.

    `settings` must name a database and a model server; the caller starts embedded ones. When everything runs, the
    lifespan calls `wait_until_served`.

    Raises:
        ConfigError: a setting is missing, or the file of MCP servers cannot be read.
    """
    if settings.postgres_url is None or settings.provider is None:
        raise ConfigError(
            "set DATABASE_URL and GROQ_API_KEY (or OPENAI_API_KEY), or start the gateway with `agent-gateway serve`"
        )
    servers = load_servers(settings)
    telemetry = create_telemetry(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with build_gateway(settings, servers, timeouts, app.state, telemetry):
            gc.collect()
            gc.freeze()  # long-lived objects would lengthen every collection, see docs/adr/0007
            gc.set_threshold(10_000, 50, 50)
            if wait_until_served is not None:
                await wait_until_served()
            yield

    app = GatewayApplication(
        title="MCP agent gateway",
        version=__version__,
        description="Chat API with Groq's models and the tools of all connected MCP servers. Every turn is stored.",
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        openapi_url=None,  # `install_openapi` serves the document
        docs_url=None,  # FastAPI's own pages load their scripts from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # FastAPI's own spans have queries and addresses
    )
    _add_middleware(app, settings, timeouts)
    if telemetry is not None:
        from gateway.observation.http import ObservationMiddleware

        app.add_middleware(ObservationMiddleware, observer=telemetry)
    errors.register_error_handlers(app)
    register_routes(app)
    openapi.install_openapi(app)
    for path in ("/mcp", "/mcp/{toolset}"):
        app.router.routes.append(Route(path, McpRoute(app.state), include_in_schema=False))
    return app


def _add_middleware(app: FastAPI, settings: Settings, timeouts: Timeouts) -> None:
    """Add what handles each request before its route, the innermost first."""
    app.add_middleware(DirectRouteMiddleware, routes=list_direct_routes())
    app.add_middleware(RequestBodyMiddleware, settings=settings, timeout_seconds=timeouts.body)
    app.add_middleware(SecurityMiddleware, settings=settings)
    app.add_middleware(errors.ServerErrorMiddleware)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*_EXPOSED_HEADERS, *RATE_HEADERS],
        )
    app.add_middleware(PreflightMiddleware, allowed_origins=settings.cors_origins)
    app.add_middleware(RequestContextMiddleware)
    if settings.root_path:
        app.add_middleware(RootPathMiddleware, root_path=settings.root_path)


async def stop_gateway(app: FastAPI, grace_seconds: float) -> None:
    """End all streams, and hand over the remaining turns.

    Turns have `grace_seconds` to end. No effect before the start.
    """
    if hasattr(app.state, "stop"):
        running = app.state.turn_service.running_turns
        log.info("gateway_stopping", running_turns=running, at_most_seconds=grace_seconds)
        await app.state.stop(grace_seconds)


def reload_servers(app: FastAPI) -> None:
    """Read the configuration of the MCP servers now.

    No effect before the start.
    """
    if hasattr(app.state, "registry"):
        app.state.registry.reload()


app = SelfConfiguredApplication(create_app, stop_gateway)
"""ASGI application for `uvicorn gateway.app:app`."""

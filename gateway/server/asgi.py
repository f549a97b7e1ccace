"""The gateway as an ASGI application for any server.

For example `uvicorn gateway.app:app`, or `gunicorn -k uvicorn.workers.UvicornWorker gateway.app:app`.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway.api.http.errors import error_response
from gateway.common import logging
from gateway.config import ConfigError, Settings, load_settings
from gateway.domain.errors import Forbidden
from gateway.server.logs import configure_logs
from gateway.server.services import open_services
from gateway.settings.values import is_loopback
from gateway_runtime.child_processes import keep_descriptors_private
from gateway_runtime.embedded_postgres import EmbeddedPostgresError

_SERVER_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access")
_PROBE_PATHS = ("/health", "/ready")
_OPEN_MESSAGE = (
    "This gateway requires no credential, so it serves callers of this machine only: set API_KEY or JWT_SECRET, make a "
    "key with `agent-gateway keys create`, or set GATEWAY_ALLOW_ANONYMOUS=true if that is what you want."
)


class SelfConfiguredApplication:
    """ASGI application that starts its services with its server.

    Nothing happens before: the object is free. Like `agent-gateway serve`, it starts the embedded Postgres and the
    simulated model server where the settings name none. The server's own address is unknown at the start, so callers
    without a credential are refused at any address but a loopback one.
    """

    def __init__(
        self,
        create_app: Callable[[Settings], FastAPI],
        stop_gateway: Callable[[FastAPI, float], Coroutine[object, object, None]],
    ) -> None:
        self._create_app = create_app
        self._stop_gateway = stop_gateway
        self._app: FastAPI | None = None
        self._allow_anonymous = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        if self._app is None:
            raise RuntimeError("the gateway needs ASGI's lifespan events: start uvicorn without `--lifespan off`")
        if scope["type"] == "http" and await self._is_exposed(self._app, scope):
            await error_response(Request(scope), Forbidden.status, Forbidden.code, _OPEN_MESSAGE)(scope, receive, send)
            return
        await self._app({**scope, "app": self._app}, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        """Run from the server's start event to its stop event.

        A configuration that cannot be used is one line in the server's log, which ends the server.
        """
        await receive()
        is_started = False
        try:
            settings = load_settings()
            self._allow_anonymous = settings.gateway_allow_anonymous
            _configure_logging(settings)
            keep_descriptors_private()
            async with open_services(settings) as complete_settings:
                app = self._create_app(complete_settings)
                stop = partial(self._stop_gateway, app, settings.shutdown_grace_seconds)
                async with app.router.lifespan_context(app):
                    with _stop_at_signal(stop):
                        self._app, is_started = app, True
                        await send({"type": "lifespan.startup.complete"})
                        await receive()
        except Exception as error:
            if is_started:
                raise
            is_expected = isinstance(error, ConfigError | EmbeddedPostgresError)
            if not is_expected:
                logging.get_logger(__name__).error("gateway_start_failed", exc_info=error)
            message = str(error) if is_expected else f"The gateway cannot start: {type(error).__name__}"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        finally:
            self._app = None
        await send({"type": "lifespan.shutdown.complete"})

    async def _is_exposed(self, app: FastAPI, scope: Scope) -> bool:
        """Return whether a request without a credential may come from another machine."""
        host = str((scope.get("server") or ("",))[0])
        if self._allow_anonymous or is_loopback(host) or scope["path"] in _PROBE_PATHS:
            return False
        return await app.state.auth.is_open()


def _configure_logging(settings: Settings) -> None:
    """Configure the gateway's logs, and not the server's."""
    loggers = [getLogger(name) for name in _SERVER_LOGGERS]
    previous = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    configure_logs(settings)
    for logger, (level, handlers, propagate) in zip(loggers, previous, strict=True):
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def _stop_at_signal(stop: Callable[[], Coroutine[Any, Any, None]]) -> Generator[None]:
    """Also call `stop` at the server's stop signals.

    A server waits for open requests before it sends the stop event, and streams would never end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}

    def handle_signal(number: int, frame: FrameType | None) -> None:
        asyncio.run_coroutine_threadsafe(stop(), loop)
        previous[number](number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):
            previous[number] = handler
            signal.signal(number, handle_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is handle_signal:
                signal.signal(number, handler)

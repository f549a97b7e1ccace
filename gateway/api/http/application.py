"""FastAPI's application with the gateway's middleware around all of it."""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway_runtime.connections.disconnects import DISCONNECT_SCOPE_KEY, Disconnect


class PartsState(State):
    """State of attributes, which are faster to read than Starlette's."""

    def __setattr__(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)

    def __delattr__(self, key: str) -> None:
        object.__delattr__(self, key)


class GatewayApplication(FastAPI):
    """Application whose requests begin at the outermost added middleware.

    FastAPI's own middleware around it would do nothing: `ServerErrorMiddleware` of `errors.py` answers unexpected
    errors, `RequestBodyMiddleware` limits bodies, and FastAPI's telemetry is off. See docs/adr/0028.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state = PartsState()
        self._entry: ASGIApp | None = None

    def build_middleware_stack(self) -> ASGIApp:
        self.user_middleware.insert(0, Middleware(self._set_entry))
        return super().build_middleware_stack()

    def _set_entry(self, app: ASGIApp) -> ASGIApp:
        self._entry = app
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._entry is not None:
            scope["app"] = self
            if DISCONNECT_SCOPE_KEY in scope:
                await self._entry(scope, receive, send)
            else:
                await _run_with_disconnect(self._entry, scope, receive, send)
        else:  # the lifespan, or a first request without one, which builds the middleware
            await super().__call__(scope, receive, send)


async def _run_with_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application under a server whose requests have no `Disconnect`.

    A task receives what the application will, and so learns of the disconnect: at most two messages ahead.
    """
    disconnect = Disconnect()
    messages: asyncio.Queue[Message] = asyncio.Queue(1)

    async def receive_ahead() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                disconnect.notify()
            await messages.put(message)

    async with asyncio.TaskGroup() as group:
        receiver = group.create_task(receive_ahead())
        try:
            await app({**scope, DISCONNECT_SCOPE_KEY: disconnect}, messages.get, send)
        finally:
            receiver.cancel()

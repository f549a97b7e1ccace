"""Disconnects of clients, without a task that waits for them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCONNECT_SCOPE_KEY = "gateway_runtime.disconnect"
"""Scope key of the `Disconnect` of a request.

`HttpProtocol` adds it; under other servers, `run_with_disconnect` does.
"""


class Disconnect:
    """The disconnect of one request's client, before the response is complete."""

    __slots__ = ("_callbacks", "has_happened")

    def __init__(self) -> None:
        self.has_happened = False
        self._callbacks: tuple[Callable[[], None], ...] = ()

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call a function at the disconnect; at once if it has happened."""
        if self.has_happened:
            callback()
        else:
            self._callbacks = (*self._callbacks, callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        self._callbacks = tuple(other for other in self._callbacks if other != callback)

    def notify(self) -> None:
        """Report the disconnect."""
        self.has_happened = True
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback()


def get_disconnect(scope: Mapping[str, Any]) -> Disconnect:
    return scope[DISCONNECT_SCOPE_KEY]


async def run_with_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
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

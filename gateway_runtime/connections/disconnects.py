"""Disconnects of clients, without a task that waits for them."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from gateway_runtime.background.waits import Interruption

DISCONNECT_SCOPE_KEY = "gateway_runtime.disconnect"
"""Scope key of the `Disconnect` of a request.

`HttpProtocol` adds it; under other servers, the application does.
"""

T = TypeVar("T")


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

    async def interrupt(self, work: Awaitable[T]) -> T:
        """Await `work` in the caller's task, until the disconnect.

        Raises:
            WorkInterrupted: the client disconnected.
        """
        interruption = Interruption()
        try:
            async with interruption:
                self.add_callback(interruption.interrupt)
                return await work
        finally:
            self.remove_callback(interruption.interrupt)

    def notify(self) -> None:
        """Report the disconnect."""
        self.has_happened = True
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback()


def get_disconnect(scope: Mapping[str, Any]) -> Disconnect:
    return scope[DISCONNECT_SCOPE_KEY]

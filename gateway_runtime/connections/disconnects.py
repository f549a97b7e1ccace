"""Disconnects of clients, without a task that waits for them."""

from collections.abc import Callable, Mapping
from typing import Any

DISCONNECT_SCOPE_KEY = "gateway_runtime.disconnect"
"""Scope key of the `Disconnect` of a request.

`HttpProtocol` adds it; under other servers, the application does.
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

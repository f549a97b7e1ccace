"""Updates of resources that a legacy server announces to its session."""

import asyncio
from collections.abc import Awaitable, Callable

Listener = Callable[[str], None]
_PART_SEPARATORS = ("/", "?", "#")


class ResourceUpdates:
    """The listeners to updates of one connection.

    The server is subscribed once for all listeners to a resource, and unsubscribed after the last. It may announce an
    update of a part of a resource; the part's URI begins with that of the resource.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = asyncio.Lock()

    def publish(self, uri: str) -> None:
        """Notify the listeners of an announced update."""
        for subscribed, listeners in list(self._listeners.items()):
            if is_part(uri, subscribed):
                for listener in list(listeners):
                    listener(uri)

    async def subscribe(self, uri: str, listener: Listener, send: Callable[[], Awaitable[object]]) -> None:
        """Add a listener; `send` subscribes at the server.

        It is sent for each listener, because the server may refuse some users.
        """
        self._listeners.setdefault(uri, []).append(listener)
        async with self._lock:
            await send()

    def remove_listener(self, uri: str, listener: Listener) -> None:
        """Remove a listener at once."""
        listeners = self._listeners.get(uri, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(uri, None)

    async def unsubscribe_unused(self, uri: str, send: Callable[[], Awaitable[object]]) -> None:
        """Unsubscribe with `send` if nothing listens any more."""
        async with self._lock:
            if uri not in self._listeners:
                await send()


def is_part(uri: str, resource: str) -> bool:
    """Whether a URI names a resource or a part of it."""
    if not uri.startswith(resource):
        return False
    rest = uri[len(resource) :]
    return not rest or resource.endswith(_PART_SEPARATORS) or rest.startswith(_PART_SEPARATORS)

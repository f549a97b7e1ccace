"""Cancel open requests when their API key is revoked or expires."""

import asyncio
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

from starlette.types import Message, Receive, Scope

from gateway.common.concurrency import SupervisedTask, WorkInterrupted, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.errors import StorageUnavailable
from gateway.domain.messages import Principal
from gateway.store.api_keys import KEY_PREFIX, KeyStore
from gateway_runtime.connections.disconnects import Disconnect, get_disconnect

log = get_logger(__name__)


class OpenRequestRegistry:
    """The open requests of this worker by their stored key.

    Keys are checked at once when one has changed, and every `poll_seconds`, because expiry sends no message.
    """

    def __init__(self, keys: KeyStore, *, poll_seconds: float = 15.0) -> None:
        self._poll_seconds = poll_seconds
        self._keys = keys
        self._open: dict[str, set[Disconnect]] = {}
        self._keys_changed = asyncio.Event()
        self._watcher = SupervisedTask("api key revocation", self._watch_keys)

    async def stop(self) -> None:
        """Stop checking keys."""
        await self._watcher.stop()

    def on_keys_changed(self) -> None:
        """Check the keys of all open requests now."""
        self._keys_changed.set()

    def cancel_on_revocation(
        self, principal: Principal | None, scope: Scope, receive: Receive
    ) -> AbstractContextManager[Receive]:
        """Return a context whose `receive` disconnects when the key is revoked.

        It and the request's `Disconnect` report a disconnect as soon as the principal's key is no longer valid.
        """
        if principal is None or principal.key is None or not principal.key.startswith(KEY_PREFIX):
            return nullcontext(receive)
        return self._track_request(principal.key, get_disconnect(scope), receive)

    @contextmanager
    def _track_request(self, key: str, disconnect: Disconnect, receive: Receive) -> Generator[Receive]:
        self._open.setdefault(key, set()).add(disconnect)
        self._watcher.start()
        try:
            yield partial(_receive_until, disconnect, receive)
        finally:
            self._open[key].discard(disconnect)
            if not self._open[key]:
                del self._open[key]

    async def _watch_keys(self) -> None:
        while True:
            await wait_or_poll(self._keys_changed, self._poll_seconds)
            self._keys_changed.clear()
            await self._cancel_revoked_requests()

    async def _cancel_revoked_requests(self) -> None:
        try:
            revoked_keys = await self._keys.list_revoked(list(self._open)) if self._open else []
        except StorageUnavailable:
            log.warning("key_revocation_check_failed", keys=len(self._open))
            return
        for prefix in revoked_keys:
            for disconnect in self._open.get(prefix, ()):
                log.info("request_cancelled", key=prefix, reason="key_revoked_or_expired")
                disconnect.notify()


async def _receive_until(disconnect: Disconnect, receive: Receive) -> Message:
    """Receive a message, or report the disconnect.

    Neither wait needs a task.
    """
    if not disconnect.has_happened:
        with suppress(WorkInterrupted):
            return await disconnect.interrupt(receive())
    return {"type": "http.disconnect"}

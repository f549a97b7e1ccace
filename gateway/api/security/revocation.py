"""Requests that last end with the key that they came with, not with themselves."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from starlette.types import Message, Receive

from gateway.common.logging import get_logger
from gateway.domain.errors import StorageUnavailable
from gateway.domain.messages import Principal
from gateway.store.api_keys import START, KeyStore

log = get_logger(__name__)

_LOOK_SECONDS = 15.0


class LastingRequests:
    """Those that are open here, by stored key. Looks at once when keys have changed, else now and then: keys expire."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._open: dict[str, set[asyncio.Event]] = {}
        self._look = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def keys_changed(self) -> None:
        self._look.set()

    @contextmanager
    def ending_with_key(self, principal: Principal | None, receive: Receive) -> Generator[Receive]:
        """The request's `receive`, to which it seems that the client hangs up when the key opens nothing any more."""
        if principal is None or principal.key is None or not principal.key.startswith(START):
            yield receive
            return
        over = asyncio.Event()
        self._open.setdefault(principal.key, set()).add(over)
        if self._looking is None or self._looking.done():
            self._look.clear()
            self._looking = asyncio.create_task(self._look_after(), name="lasting requests")
        try:
            yield _until(over, receive)
        finally:
            self._open[principal.key].discard(over)
            if not self._open[principal.key]:
                del self._open[principal.key]

    async def _look_after(self) -> None:
        while self._open:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                log.debug("keys_of_lasting_requests_looked_at", keys=len(self._open))
            self._look.clear()
            await self._end_those_of_dead_keys()

    async def _end_those_of_dead_keys(self) -> None:
        try:
            dead = await self._keys.dead(list(self._open)) if self._open else []
        except StorageUnavailable:
            log.warning("keys_of_lasting_requests_not_seen")
            return
        for prefix in dead:
            for over in self._open.get(prefix, ()):
                log.info("request_ended_with_its_key", key=prefix)
                over.set()


def _until(over: asyncio.Event, receive: Receive) -> Receive:
    async def received() -> Message:
        coming, ending = asyncio.ensure_future(receive()), asyncio.ensure_future(over.wait())
        try:
            await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if over.is_set() else coming.result()
        finally:
            coming.cancel()
            ending.cancel()

    return received

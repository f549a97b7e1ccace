"""Blocking work off the event loop: bounded threads, and host names looked up in them."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp.abc import AbstractResolver, ResolveResult

T = TypeVar("T")


class BoundedThreadPool:
    """Runs blocking functions in daemon threads, at most so many at a time.

    A thread cannot be stopped. A call that is given up (cancelled, timed out) leaves its thread running, and the place
    that it takes is free again only when it has really ended: slow work can pile up no further than that.
    """

    def __init__(self, max_threads: int) -> None:
        self._slots = asyncio.Semaphore(max_threads)

    async def run_blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns or raises. Waits for a place first: give it a time limit."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                done = _Completion(outcome, self._slots, result=function(*arguments))
            except BaseException as error:  # noqa: BLE001 - carried over to whoever waits, whatever it is
                done = _Completion(outcome, self._slots, error=error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done)

        threading.Thread(target=work, daemon=True, name="tools-server").start()
        return await outcome


class _Completion:
    """Run in the event loop when a thread has ended."""

    def __init__(
        self,
        outcome: asyncio.Future[Any],
        places: asyncio.Semaphore,
        *,
        result: Any = None,
        error: BaseException | None = None,
    ) -> None:
        self._outcome, self._places = outcome, places
        self._result, self._error = result, error

    def __call__(self) -> None:
        self._places.release()
        if self._outcome.done():
            return
        if self._error is None:
            self._outcome.set_result(self._result)
        else:
            self._outcome.set_exception(self._error)


class ThreadedResolver(AbstractResolver):
    """Host names by the system's own rules. The event loop's own look-up would hold up the end of the process."""

    def __init__(self, threads: BoundedThreadPool) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises:
        OSError: the name is not known, or the network is away.
        """
        try:
            found = await self._threads.run_blocking(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"not a host name: {error}") from error
        return [
            ResolveResult(hostname=host, host=_with_scope(*address), port=port, family=kind, proto=0, flags=0)
            for kind, _type, _protocol, _name, address in found
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _with_scope(host: Any, _port: Any, _flow: Any = 0, scope: Any = 0) -> str:
    """The numeric address; a link-local one of IPv6 only means something with its interface."""
    return f"{host}%{scope}" if scope and "%" not in str(host) else str(host)

"""A bounded pool of daemon threads for blocking functions.

Also a DNS resolver that uses it.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, TypeVarTuple

from aiohttp.abc import AbstractResolver, ResolveResult

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class BoundedThreadPool:
    """Runs blocking functions in at most `max_threads` daemon threads at a time.

    A thread cannot be stopped. After a call is cancelled or times out, its thread occupies its slot until the function
    returns, so slow functions cannot use more than `max_threads` threads.
    """

    def __init__(self, max_threads: int) -> None:
        self._slots = asyncio.Semaphore(max_threads)

    async def run_blocking(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Run a function in a thread.

        Return its result or raise its error. Waits without limit for a free slot and for the function, so callers set a
        timeout.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        call = _ThreadCall(loop.create_future(), self._slots)

        def run_in_thread() -> None:
            try:
                call.result = (function(*arguments),)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller
                call.error = error
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                loop.call_soon_threadsafe(call.complete)

        threading.Thread(target=run_in_thread, daemon=True, name="tools-server").start()
        return await call.future


class _ThreadCall(Generic[T]):
    """A call that runs in a thread.

    Once it has ended, it has its result in a tuple, or its error.
    """

    def __init__(self, future: asyncio.Future[T], slots: asyncio.Semaphore) -> None:
        self.future = future
        self.result: tuple[T] | None = None
        self.error: BaseException | None = None
        self._slots = slots

    def complete(self) -> None:
        """Release the slot and pass the outcome to the caller.

        Runs in the event loop.
        """
        self._slots.release()
        if self.future.done():  # the caller was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        elif self.result is not None:
            self.future.set_result(self.result[0])


class ThreadedResolver(AbstractResolver):
    """Resolves host names by the system's rules.

    Its threads do not delay the end of the process.
    """

    def __init__(self, threads: BoundedThreadPool) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a host name.

        Raises:
            OSError: the name is not known, or the network is unavailable.
        """
        try:
            entries = await self._threads.run_blocking(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"not a host name: {error}") from error
        return [
            ResolveResult(hostname=host, host=_format_address(*address), port=port, family=kind, proto=0, flags=0)
            for kind, _type, _protocol, _name, address in entries
        ]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


def _format_address(host: object, _port: object, _flow_info: object = 0, scope_id: object = 0) -> str:
    """Format a numeric address with its scope.

    A link-local IPv6 address is ambiguous without its interface.
    """
    return f"{host}%{scope_id}" if scope_id and "%" not in str(host) else str(host)

"""What a server process of ours does before and around serving: its socket, its parent, its signals."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from gateway.config import ConfigError

READY = b"ready"
_MOST_FILES = 65_536
_ACCEPTED_EACH_PASS = 8
_KERNEL_SPREADS = sys.platform == "linux"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop, or asyncio's own where that is not to be had. With 500 streams it halves the gaps between
    their tokens; each costs a little more, as fewer are read together."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def bind(host: str, port: int, *, setting: str, shared: bool = False) -> socket.socket:
    """A socket to listen on; `shared`: other sockets of this user may be bound to the same port.

    Raises:
        ConfigError: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Told its protocol, or asyncio leaves Nagle's algorithm on, which holds an answer back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(f"{setting}: cannot listen on {host}:{port}: {reason}") from None
    listener.set_inheritable(True)
    return listener


class SharedPort:
    """A port that several processes serve. From now on it is ours; nobody is let in before one of them listens.

    Linux spreads connections over the sockets that listen, so each process gets one of its own. Of one socket that all
    accept from, whoever wakes first takes what is there: of four idle workers one took all of a burst of 32. Other
    systems do not spread; there they share one all the same.
    """

    def __init__(self, host: str, port: int, *, setting: str) -> None:
        bind(host, port, setting=setting).close()  # a shared one would not see that the port is taken
        self._socket = bind(host, port, setting=setting, shared=_KERNEL_SPREADS)
        self._host = host
        self._setting = setting

    @property
    def number(self) -> int:
        return self._socket.getsockname()[1]

    def listener(self) -> socket.socket:
        """A socket for one process, which inherits it."""
        if _KERNEL_SPREADS:
            return bind(self._host, self.number, setting=self._setting, shared=True)
        copy = self._socket.dup()
        copy.set_inheritable(True)
        return copy

    def close(self) -> None:
        self._socket.close()


def inherited(fd: int) -> socket.socket:
    """The socket that the parent has bound for us."""
    return socket.socket(-1, -1, socket.IPPROTO_TCP, fileno=fd)


def allow_many_files() -> None:
    """Raise the limit of open files from what suits a shell: a stream holds two, to its client and to the model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Lifeline:
    """Standard input, whose other end the parent holds: when it ends the parent is gone, and we stop as by SIGTERM.

    A worker tells its parent there that it can serve, and hears there that all of them can.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._all_ready = asyncio.Event()
        threading.Thread(target=self._listen, daemon=True, name="lifeline").start()

    async def until_all_ready(self) -> None:
        """Return when all workers can serve, or this one is to stop."""
        tell_parent(READY)
        await self._all_ready.wait()

    def stop_waiting(self) -> None:
        self._all_ready.set()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                self._loop.call_soon_threadsafe(self._all_ready.set)
        os.kill(os.getpid(), signal.SIGTERM)


def tell_parent(what: bytes) -> None:
    """Say something on the lifeline. Without a parent nobody hears it."""
    with contextlib.suppress(OSError):
        os.write(0, what)


class Server(uvicorn.Server):
    """uvicorn, calling `on_stop` as soon as it is told to stop: it waits for streams, which must hear of it first.

    Being told to stop is no failure: it does not raise the signal again in the end, so the process exits with 0.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen several times over on each socket: uvloop accepts one connection of each a pass of its loop, and with
        500 streams the last of as many new clients waited for 6 seconds."""
        copies = [listener.dup() for listener in sockets or () for _ in range(_ACCEPTED_EACH_PASS - 1)]
        await super().startup([*(sockets or ()), *copies] or None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._on_stop()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()

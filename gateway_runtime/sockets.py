"""Listening sockets.

Also a port that several processes share, and the limit of open files.
"""

import contextlib
import errno
import resource
import socket
import sys

from gateway_runtime.errors import ConfigError

_MAX_OPEN_FILES = 65_536
_KERNEL_BALANCES = sys.platform == "linux"


def bind_socket(
    host: str,
    port: int,
    *,
    setting: str,
    host_setting: str | None = None,
    shared: bool = False,
    backlog: int | None = None,
) -> socket.socket:
    """Bind a TCP socket, and listen if there is a `backlog`.

    With `shared`, other sockets of this user may bind the same port. No child process inherits the socket unless it is
    in the `pass_fds` of that child's start.

    Raises:
        ConfigError: the port is taken (names `setting`), or the address does not belong to this machine (names
            `host_setting`, by default `setting`).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the explicit protocol asyncio leaves Nagle's algorithm on, which delays an answer by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if backlog is not None:
            listener.listen(backlog)  # fails, too, if another process listens since this one bound the port
    except (OSError, UnicodeError) as error:
        listener.close()
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, "not a host name")
        name = setting if number in (errno.EADDRINUSE, errno.EACCES) else host_setting or setting
        raise ConfigError(f"{name}: cannot listen on {host}:{port}: {reason}") from None
    return listener


class SharedPort:
    """A port that several processes serve.

    It is bound at once; clients connect once one process listens. Linux balances connections over all listening
    sockets, so each process gets a socket of its own. Other systems do not balance; there the processes share one
    socket.
    """

    def __init__(self, host: str, port: int, *, setting: str) -> None:
        bind_socket(host, port, setting=setting).close()  # a shared socket would not notice that the port is taken
        self._socket = bind_socket(host, port, setting=setting, shared=_KERNEL_BALANCES)
        self._host = host
        self._setting = setting

    @property
    def port_number(self) -> int:
        return self._socket.getsockname()[1]

    def create_listener(self) -> socket.socket:
        """Create the socket of one process, for the `pass_fds` of its start."""
        if _KERNEL_BALANCES:
            return bind_socket(self._host, self.port_number, setting=self._setting, shared=True)
        return self._socket.dup()

    def close(self) -> None:
        self._socket.close()


def socket_from_fd(fd: int) -> socket.socket:
    """Open the socket that the parent process bound."""
    return socket.socket(-1, -1, socket.IPPROTO_TCP, fileno=fd)


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files.

    A stream holds two, to its client and to the model.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

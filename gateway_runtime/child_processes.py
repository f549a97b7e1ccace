"""Environment and file descriptors of child processes."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from gateway_runtime.trusted_certificates import CERTIFICATE_VARIABLES

_FIRST_OTHER_DESCRIPTOR = 3
_SET_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15
_LOCALE_PREFIX = "LC_"
BASE_VARIABLES = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHASHSEED",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "PYTHONUTF8",
        "SHELL",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        *CERTIFICATE_VARIABLES,
    }
)
"""Variables without secrets that any program may need."""


def select_variables(environment: Mapping[str, str], names: Collection[str] = ()) -> dict[str, str]:
    """Select the base variables and those in `names`.

    `names` are in upper case and match in any case. A child gets nothing else, so it sees no secret that it does not
    need.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in BASE_VARIABLES or name.startswith(_LOCALE_PREFIX) or name.upper() in names
    }


def make_parent_death_signal(parent: int, number: signal.Signals) -> Callable[[], None] | None:
    """Return a function by which a child ends with its parent.

    The kernel sends the child a signal then. None where only Linux's kernel could do it.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: a child must not do it between fork and exec

    def request_parent_death_signal() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

    return request_parent_death_signal


def set_process_name(name: str) -> None:
    """Name a forked process in lists of processes, at most 15 letters.

    Its command line is that of the process that forked it. Only Linux has such names.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_NAME, name.encode())


def keep_descriptors_private() -> None:
    """Make all inherited file descriptors uninheritable.

    This process got them from its parent. uvloop closes no descriptors in a child: without this, a program that it
    starts could accept connections on an inherited listening socket.
    """
    for directory in (Path("/proc/self/fd"), Path("/dev/fd")):
        if directory.is_dir():
            for name in os.listdir(directory):
                if int(name) >= _FIRST_OTHER_DESCRIPTOR:
                    with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                        os.set_inheritable(int(name), False)
            return

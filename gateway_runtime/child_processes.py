"""Environment and file descriptors of child processes."""

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from gateway_runtime.trusted_certificates import CERTIFICATE_VARIABLES

_FIRST_OTHER_DESCRIPTOR = 3
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

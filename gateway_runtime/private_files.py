"""Files and directories that only their owner can use.

Imports only the standard library, so that commands that need a database start fast.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FILE_MODE = 0o600
_OTHERS = 0o077


def make_data_directory(directory: Path) -> None:
    """Create a data directory that other users cannot list.

    Of root's, the database's own user must be able to enter it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)


def open_private(path: str, flags: int) -> int:
    """Open a file for its owner only.

    It is an `opener` for `open`. An existing file of this user, for example of an older release, loses the rights of
    others.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_mode & _OTHERS and status.st_uid == os.geteuid():
        os.fchmod(descriptor, _FILE_MODE)
    return descriptor


@contextmanager
def lock_file(path: Path) -> Generator[None]:
    """Hold a lock that other processes wait for.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link.
    """
    with open(path, "w", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_or_create_secret(file: Path, prefix: str = "") -> tuple[str, bool]:
    """Return the secret of a file, and whether this call created it.

    Of several processes, the first to link the file determines the secret.

    Raises:
        OSError: the file cannot be created or read.
    """
    if file.exists():
        return read_secret(file), False
    make_data_directory(file.parent)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with open(draft, "w", opener=open_private) as output:
        output.write(prefix + secrets.token_urlsafe(32))
    try:
        os.link(draft, file)
    except FileExistsError:
        return read_secret(file), False
    finally:
        draft.unlink()
    return read_secret(file), True


def read_secret(file: Path) -> str:
    """Read a secret.

    Other users lose their rights to the file.

    Raises:
        OSError: the file cannot be read.
    """
    with open(file, opener=open_private) as opened:
        return opened.read().strip()


def check_private_directory(directory: Path, owner: int) -> None:
    """Check that only `owner` can use a directory.

    Raises:
        OSError: it does not exist, is no directory, or other users can use it.
    """
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & _OTHERS:
        raise PermissionError(f"{directory} is not a private directory of its user")


def create_private(path: Path) -> BinaryIO:
    """Create or empty a file that only this user can read."""
    return open(path, "wb", opener=open_private)

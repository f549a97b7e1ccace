"""A small disk for Postgres, which tests fill."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_DISK_MB = 320
_MIN_FREE_BYTES = 4096
_IN_NAMESPACE = "CHAOS_IN_NAMESPACE"


def enter_namespace(module: str) -> None:
    """Run a module again in a mount namespace, if possible."""
    if os.environ.get(_IN_NAMESPACE) or shutil.which("unshare") is None:
        return
    command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "--map-current-user", "-m", "--keep-caps"]
    if subprocess.run([*command, "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0:
        os.environ[_IN_NAMESPACE] = "1"
        os.execvp(command[0], [*command, sys.executable, "-m", module, *sys.argv[1:]])


def mount_small_disk(path: Path) -> bool:
    """Mount a small file system.

    Return whether the system allows it.
    """
    path.mkdir()
    if not os.environ.get(_IN_NAMESPACE):
        return False
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=755", "tmpfs", str(path)]
    return subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0


def fill_disk(ballast: Path) -> None:
    """Write a file until the disk is full."""
    for size in (1_048_576, _MIN_FREE_BYTES):
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * size)

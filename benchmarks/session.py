"""What every measurement runs in: a directory, and servers that are stopped in the end."""

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from benchmarks.subjects import Contestant


@contextlib.contextmanager
def directory() -> Generator[Path]:
    """A directory for all data and logs; kept where something went wrong."""
    directory = Path(tempfile.mkdtemp(prefix="agw-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    except BaseException:
        say(f"the logs are in {directory}")
        raise
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def stopped() -> Generator[list[Contestant]]:
    """Whoever is put into the list is stopped in the end."""
    running: list[Contestant] = []
    try:
        yield running
    finally:
        for contestant in reversed(running):
            contestant.stop()


def say(line: str) -> None:
    print(line, flush=True)

"""Work directory and clean-up that every measurement uses."""

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from benchmarks.subjects import Subject


@contextlib.contextmanager
def create_work_directory() -> Generator[Path]:
    """Create a directory for data and logs.

    It is deleted unless an error occurs.
    """
    directory = Path(tempfile.mkdtemp(prefix="agw-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    except BaseException:
        print_line(f"The logs are in {directory}")
        raise
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def stop_at_end() -> Generator[list[Subject]]:
    """Yield a list of servers and stop them at the end.

    The last one is stopped first.
    """
    subjects: list[Subject] = []
    try:
        yield subjects
    finally:
        for subject in reversed(subjects):
            subject.stop()


def print_line(line: str) -> None:
    print(line, flush=True)

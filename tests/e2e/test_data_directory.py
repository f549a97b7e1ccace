"""Tests of the rights of files in the data directory."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.running_stack import run_stack

NOBODY = 65_534


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def use_umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def list_shared_files(directory: Path) -> list[str]:
    """List files and directories that other users may read."""
    shared: list[str] = []
    for path in (directory, *directory.rglob("*")):
        with suppress(FileNotFoundError):  # Postgres has just removed it
            mode = path.lstat().st_mode
            if not stat.S_ISSOCK(mode) and mode & (0o066 if stat.S_ISDIR(mode) else 0o077):
                shared.append(f"{path.relative_to(directory)} {mode:o}")
    return shared


async def test_other_users_can_use_no_file_of_the_data_directory(directory: Path) -> None:
    """Start with files of release 0.1.0 and a umask of 0."""
    data_dir = directory / "data"
    data_dir.mkdir(mode=0o711)
    for name in (".postgres.lock", "postgres-start.log", "tools-secret"):
        (data_dir / name).write_text("a-secret-of-the-release-before-this-one" if name == "tools-secret" else "")
        (data_dir / name).chmod(0o644)
    with use_umask(0):
        async with run_stack(directory) as stack:
            assert (await stack.chat("What is 2+2?")).status == 200
            names = {path.name for path in data_dir.iterdir()}
            assert {".postgres.lock", "postgres-start.log", "tools-secret", "encryption.key"} <= names
            assert list_shared_files(data_dir) == []
            if os.geteuid() == 0:
                lock = data_dir / ".postgres.lock"
                # Whoever can open the file can lock it, and so keep the database from being started.
                command = ["/bin/sh", "-c", 'exec 9< "$1"', "sh", lock]
                attack = subprocess.run(command, user=NOBODY, cwd="/", capture_output=True, timeout=60, text=True)
                assert "Permission denied" in attack.stderr


async def test_new_data_directory_is_listed_by_its_owner_only(directory: Path) -> None:
    with use_umask(0):
        async with run_stack(directory) as stack:
            assert list_shared_files(stack.data_dir) == []

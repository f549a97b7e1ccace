"""Installs the previous release in `.upgrade/`, for tests/upgrade.

It comes from its commit and its own lock file. If this clone lacks the commit, the program says so, installs
nothing, and fails where `CI` is set.

Usage: python packaging/previous_release.py <uv> <python>
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMIT_FILE = ROOT / "tests" / "upgrade" / "previous.txt"
DIRECTORY = ROOT / ".upgrade"


def main() -> None:
    uv, python = sys.argv[1:]
    commit = COMMIT_FILE.read_text().strip()
    installed = DIRECTORY / "installed"
    if installed.exists() and installed.read_text() == commit:
        return
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)  # noqa: S603, S607
    if archive.returncode != 0:
        problem = f"this clone lacks the commit {commit} of the previous release: `git fetch --unshallow` fetches it"
        if os.environ.get("CI"):
            sys.exit(problem)
        sys.stdout.write(f"tests/upgrade is skipped: {problem}\n")
        return
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    source, environment = DIRECTORY / "source", DIRECTORY / "venv"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(source, filter="data")
    interpreter = str(environment / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", interpreter]
    for command in (
        [uv, "venv", "--quiet", "--python", python, str(environment)],
        [*install, "--require-hashes", "-r", str(source / "requirements.lock")],
        [*install, "--no-deps", "--editable", str(source)],
    ):
        subprocess.run(command, check=True)  # noqa: S603
    installed.write_text(commit)


if __name__ == "__main__":
    main()

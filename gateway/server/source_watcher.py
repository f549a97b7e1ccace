"""Watches the source for changes, for `agent-gateway up --reload`."""

import asyncio
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_POLL_SECONDS = 0.5
_PACKAGES = ("gateway", "gateway_console", "gateway_runtime", "tools_server")


def list_source_directories() -> list[Path]:
    """List the directories of the packages that the processes import."""
    specs = [find_spec(package) for package in _PACKAGES]
    return [Path(folder) for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]


class SourceWatcher:
    """Compares the modification times of the Python files below some directories."""

    def __init__(self, directories: Iterable[Path], poll_seconds: float = _POLL_SECONDS) -> None:
        self._directories = tuple(directories)
        self._poll_seconds = poll_seconds
        self._times = self._read_times()

    async def wait_for_change(self) -> None:
        """Wait until a file is changed, added or removed."""
        before = self._times
        while self._times == before:
            await asyncio.sleep(self._poll_seconds)
            self._times = await asyncio.to_thread(self._read_times)

    def _read_times(self) -> dict[Path, int]:
        times: dict[Path, int] = {}
        for directory in self._directories:
            for file in directory.rglob("*.py"):
                try:
                    times[file] = file.stat().st_mtime_ns
                except OSError:  # an editor replaces it at this moment
                    continue
        return times

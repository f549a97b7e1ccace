"""Migrations and the default configuration of MCP servers."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def find_shipped_file(name: str) -> Path:
    """Return a file or directory that the project ships.

    A wheel has it in `gateway_runtime`, a clone beside that.
    """
    in_wheel = _PACKAGE / name
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / name

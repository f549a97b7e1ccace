"""Names of definitions, arguments and secrets, made from those of a document."""

import hashlib
import re
from collections.abc import Collection

_MAX_LENGTH = 64
_HASH_LENGTH = 8


def to_identifier(text: str, default: str = "value") -> str:
    """Return a name of letters, digits, hyphens and underscores."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or default
    return shorten(name if name[0].isalpha() or name[0] == "_" else f"_{name}")


def to_tool_name(prefix: str, text: str) -> str:
    """Return a name for a definition."""
    name = f"{prefix}{re.sub(r'[^A-Za-z0-9_-]+', '_', text).strip('_-')}"
    return shorten(name if name[:1].isalpha() else f"call_{name}")


def shorten(name: str) -> str:
    """Replace the end of a long name by a stable hash."""
    if len(name) <= _MAX_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: _MAX_LENGTH - _HASH_LENGTH - 1]}_{digest}"


def make_unique(name: str, taken: Collection[str]) -> str:
    """Add the first number that makes a name unique."""
    candidate, number = name, 2
    while candidate in taken:
        suffix = f"_{number}"
        candidate, number = f"{name[: _MAX_LENGTH - len(suffix)]}{suffix}", number + 1
    return candidate

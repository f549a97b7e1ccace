"""Unique and stable tool names that Groq accepts."""

import hashlib
import re

_MAX_NAME_LENGTH = 64
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")


def make_exposed_name(prefix: str, server: str, tool: str, distinct: bool = False) -> str:
    """Return prefix and tool name in at most 64 valid characters.

    Ends with a hash if it had to be changed, or must be `distinct` from an equal name.
    """
    full_name = f"{prefix}_{tool}" if prefix else tool
    name = _INVALID_CHARACTER.sub("_", full_name)
    if name == full_name and len(name) <= _MAX_NAME_LENGTH and not distinct:
        return name
    digest = hashlib.sha256(f"{server}\0{tool}".encode()).hexdigest()[:6]
    return f"{name[: _MAX_NAME_LENGTH - 7]}_{digest}"

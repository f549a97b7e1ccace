"""Names that fit Groq for whatever MCP allows: stable, and never two alike."""

import hashlib
import re

_MOST_NAME = 64
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


def exposed_name(prefix: str, server: str, tool: str, distinct: bool = False) -> str:
    """`prefix_tool` in the characters and the length that Groq takes; a hash keeps apart what that makes alike."""
    wanted = f"{prefix}_{tool}" if prefix else tool
    name = _UNFIT.sub("_", wanted)
    if name == wanted and len(name) <= _MOST_NAME and not distinct:
        return name
    mark = hashlib.sha256(f"{server}\0{tool}".encode()).hexdigest()[:6]
    return f"{name[: _MOST_NAME - 7]}_{mark}"

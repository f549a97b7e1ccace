"""Choice of the MCP session that a new one replaces."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class SessionTransport(Protocol):
    """Session of the MCP SDK, as far as this module knows it.

    `idle_scope` ends an idle session at its deadline, which is infinite while the session is in use.
    """

    idle_scope: Any


def find_idle_session(sessions: Iterable[str], transports: Mapping[str, SessionTransport]) -> str | None:
    """Return the least recently used idle session.

    None: all of `sessions` are in use.
    """
    idle: list[tuple[float, str]] = []
    for session in sessions:
        transport = transports.get(session)
        scope = None if transport is None else transport.idle_scope
        if scope is not None and not math.isinf(scope.deadline):
            idle.append((scope.deadline, session))
    return min(idle)[1] if idle else None

"""Replacement of legacy MCP sessions, and refusal to resume streams."""

import json
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol

_INVALID_REQUEST = -32600
_MESSAGE = "Streams cannot be resumed: send the GET without Last-Event-ID to open a new one."
_BODY = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": _INVALID_REQUEST, "message": _MESSAGE}}).encode()


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


def is_resumption(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request asks for later events of an earlier stream."""
    return scope["method"] == "GET" and any(name == b"last-event-id" and value for name, value in scope["headers"])


async def refuse_resumption(send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
    """Answer 400, in the form of JSON-RPC."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": _BODY})

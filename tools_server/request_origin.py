"""Rejects requests that a web page could make a browser send.

A browser sends a page's "simple" requests to any address, also to this machine's, without asking the server.
"""

import json
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_runtime.http_protocol import remove_last_slash
from gateway_runtime.settings.hosts import is_host_allowed

_OPEN_PATHS = ("/health", "/.well-known/")
_BODY_METHODS = ("POST", "PUT", "PATCH")
_PROGRAM_PATH = "/tools/call"
_PROGRAM_TYPES: tuple[list[str], ...] = ([], ["application/x-www-form-urlencoded"])
_BROWSER_HEADERS = ("accept-language", "cookie", "origin", "referer", "upgrade-insecure-requests")
_BROWSER_PREFIX = "sec-"


class RequestOriginMiddleware:
    """ASGI middleware that checks every request's host, origin and content type.

    The host must be allowed, against DNS rebinding. The origin must be allowed, or absent without a
    browser's statement that the page is of another site. A body must be declared as
    JSON, which a page of another origin cannot do without a preflight request. Only at `/tools/call`, a program that
    sends no header of a browser need not declare it, like `curl -d`. A pattern of an origin may end with `:*`, for any
    port. A path with a last slash is the path without it.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = [origin.lower() for origin in origins]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            remove_last_slash(scope)
        if scope["type"] == "http" and not scope["path"].startswith(_OPEN_PATHS):
            problem = self._find_problem(scope["method"], scope["path"], Headers(scope=scope))
            if problem is not None:
                await _send_error(send, *problem)
                return
        await self._app(scope, receive, send)

    def _find_problem(self, method: str, path: str, headers: Headers) -> tuple[int, str, str] | None:
        """Return status, code and message of a request that is refused."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not is_host_allowed(hosts[0], self._hosts):
            return (
                421,
                "wrong_host",
                "Refused: this server does not answer to that Host. See TOOLS_SERVER_ALLOWED_HOSTS.",
            )
        if not all(_matches_any(origin, self._origins) for origin in headers.getlist("origin")):
            message = "Refused: pages of this origin may not call this server. See TOOLS_SERVER_ALLOWED_ORIGINS."
            return 403, "forbidden", message
        if "origin" not in headers and headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site"):
            return 403, "forbidden", "Refused: pages of other origins may not call this server."
        media_types = [value.partition(";")[0].strip().lower() for value in headers.getlist("content-type")]
        is_program = path == _PROGRAM_PATH and not any(map(_is_browser_header, headers))
        is_declared = media_types == ["application/json"] or (is_program and media_types in _PROGRAM_TYPES)
        if method in _BODY_METHODS and not is_declared:
            return 415, "unsupported_media_type", "Refused: the Content-Type must be application/json."
        return None


def _is_browser_header(name: str) -> bool:
    return name in _BROWSER_HEADERS or name.startswith(_BROWSER_PREFIX)


def _matches_any(value: str, patterns: Collection[str]) -> bool:
    """Whether an origin matches a pattern."""
    value = value.lower()
    name, separator, port = value.rpartition(":")
    is_port = bool(separator) and port.isascii() and port.isdigit()
    return value in patterns or (is_port and f"{name}:*" in patterns)


async def _send_error(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

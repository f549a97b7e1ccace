"""The middleware in front of all pages: hosts, origins, sessions, headers, limits."""

from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway_console.api import ApiError
from gateway_console.messages import check_messages
from gateway_console.sessions import RequestLimiter, Session, SessionStore
from gateway_console.settings import ConsoleSettings
from gateway_runtime.connections.limits import get_connection_source
from gateway_runtime.request_body import BODY_METHODS, BodyRejected, read_body, replay_body
from gateway_runtime.settings.hosts import is_host_allowed

SIGN_IN_PATH = "/sign-in"
OPEN_PATHS = (SIGN_IN_PATH, "/sign-out", "/health")
_ASSET_PREFIX = "/_nicegui/"
_SOCKET_PREFIX = "/_nicegui_ws/"
_SAFE_METHODS = ("GET", "HEAD")
_MAX_FORM_BYTES, _MAX_UPLOAD_BYTES = 32 * 1024, 6 * 1024 * 1024
_BODY_TIMEOUT_SECONDS = 60.0
_MAX_PAGES = 1_000
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without any, browsers send `Origin: null` with forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class ConsoleSecurityMiddleware:
    """Lets only own pages and signed-in browsers reach the application.

    NiceGUI accepts any origin at its WebSocket, so a foreign page could drive the console without this check.
    `find_anonymous_role` returns the role of callers without a credential, or None if the gateway asks for one.
    `page_limiter` counts the pages of each session, and `count_pages` all that this process remembers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ConsoleSettings,
        sessions: SessionStore,
        limiter: RequestLimiter,
        page_limiter: RequestLimiter,
        count_pages: Callable[[], int],
        find_anonymous_role: Callable[[], Awaitable[Any]],
    ) -> None:
        self.app = app
        self._settings = settings
        self._sessions = sessions
        self._limiter = limiter
        self._page_limiter = page_limiter
        self._count_pages = count_pages
        self._find_anonymous_role = find_anonymous_role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._connect(scope, receive, send)
        else:
            await self._answer(scope, receive, _with_headers(scope, send))

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not self._is_own(scope, headers) or "origin" not in headers or self.find_session(headers) is None:
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, check_messages(receive), send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), str(scope["path"])
        refusal = self._refuse(scope, headers, path)
        if refusal is None and path not in OPEN_PATHS and not path.startswith(_ASSET_PREFIX):
            session = self.find_session(headers)
            if session is None:
                refusal, session = await self._begin_session(scope, path)
                if session is not None:
                    send = _with_cookie(send, session[0], self._settings)
                    scope.setdefault("state", {})["session"] = session[1]
            else:
                scope.setdefault("state", {})["session"] = session
                refusal = self._refuse_page(read_cookie(headers, self._settings) or "")
        if refusal is None and scope["method"] in BODY_METHODS:
            refusal, receive = await _read_body(scope, receive, is_form=path in OPEN_PATHS)
        await (refusal or self.app)(scope, receive, send)

    def _refuse(self, scope: Scope, headers: Headers, path: str) -> Response | None:
        if not self._is_own(scope, headers):
            return PlainTextResponse("This host or origin is not allowed.", 403)
        # Only WebSockets carry an Origin at each connection, so long polling is refused.
        if path.startswith(_SOCKET_PREFIX):
            return PlainTextResponse("Use a WebSocket.", 403)
        if scope["method"] not in _SAFE_METHODS and "origin" not in headers:
            return PlainTextResponse("The request has no Origin.", 403)
        return None

    def _refuse_page(self, session: str) -> Response | None:
        """Refuse a page, which costs memory for a minute, beyond limits."""
        if not self._page_limiter.allow(session):
            return PlainTextResponse("Too many pages. Wait a minute.", 429, {"Retry-After": "60"})
        if self._count_pages() >= _MAX_PAGES:
            return PlainTextResponse("Too many pages are open. Wait a minute.", 503, {"Retry-After": "60"})
        return None

    async def _begin_session(self, scope: Scope, path: str) -> tuple[Response | None, tuple[str, Session] | None]:
        if not self._limiter.allow(get_source(scope)):
            return PlainTextResponse("Too many requests. Wait a minute.", 429, {"Retry-After": "60"}), None
        if scope["method"] not in _SAFE_METHODS:
            return PlainTextResponse("Sign in first.", 401), None
        try:
            role = await self._find_anonymous_role()
        except ApiError as error:
            return PlainTextResponse(f"{error} Reload this page in a moment.", 503), None
        if role is None:
            root = scope.get("root_path", "")
            return RedirectResponse(f"{root}{SIGN_IN_PATH}?next={quote(path, safe='')}", 303), None
        return None, self._sessions.create(None, role)

    def _is_own(self, scope: Scope, headers: Headers) -> bool:
        """Return whether host and origin are the console's own."""
        host = headers.get("host", "")
        if not is_host_allowed(host, self._settings.hosts):
            return False
        if headers.get("sec-fetch-site") == "cross-site" and scope.get("method", "") not in _SAFE_METHODS:
            return False
        origin = headers.get("origin")
        return origin is None or origin in (f"http://{host}", f"https://{host}", self._settings.console_public_url)

    def find_session(self, headers: Headers) -> Session | None:
        return self._sessions.find(read_cookie(headers, self._settings))


def get_source(scope: Scope) -> str:
    """Return the source of a request; see `get_connection_source`."""
    client = scope.get("client")
    return get_connection_source(str(client[0]) if client else None)


def get_cookie_name(settings: ConsoleSettings) -> str:
    """Return the cookie's name.

    It has the port: cookies do not tell ports apart, and two consoles may run on one machine.
    """
    return "__Host-console" if settings.has_secure_cookies else f"console_{settings.console_port}"


def read_cookie(headers: Headers, settings: ConsoleSettings) -> str | None:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(get_cookie_name(settings))
    except CookieError:
        return None
    return cookie.value if cookie else None


def build_cookie(value: str, settings: ConsoleSettings) -> str:
    """Return the header `Set-Cookie`; an empty value deletes the cookie."""
    age = f"; Max-Age={int(settings.console_session_seconds) if value else 0}"
    secure = "; Secure" if settings.has_secure_cookies else ""
    return f"{get_cookie_name(settings)}={value}; Path=/; HttpOnly; SameSite=Strict{age}{secure}"


def get_session(request: Request) -> Session:
    return request.state.session


async def _read_body(scope: Scope, receive: Receive, *, is_form: bool) -> tuple[Response | None, Receive]:
    """Read a form or an uploaded image, or make a refusal."""
    max_bytes = _MAX_FORM_BYTES if is_form else _MAX_UPLOAD_BYTES
    try:
        body = await read_body(scope, receive, max_bytes=max_bytes, timeout_seconds=_BODY_TIMEOUT_SECONDS)
    except BodyRejected as error:
        return PlainTextResponse(error.message, error.status, {"Connection": "close"}), receive
    return None, replay_body(body, receive)


def _with_cookie(send: Send, value: str, settings: ConsoleSettings) -> Send:
    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("Set-Cookie", build_cookie(value, settings))
        await send(message)

    return send_with_cookie


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            if not str(scope["path"]).startswith(_ASSET_PREFIX):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers

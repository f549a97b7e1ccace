"""Signing in and out: plain pages, which cost no NiceGUI client."""

from html import escape
from pathlib import Path
from urllib.parse import parse_qs, unquote

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway_console.api import ApiError, GatewayClient
from gateway_console.security import SIGN_IN_PATH, build_cookie, get_source, read_cookie
from gateway_console.sessions import RequestLimiter, SessionStore
from gateway_console.settings import ConsoleSettings

_PAGE = (Path(__file__).parent / "assets" / "sign_in.html").read_text()


class SignInPages:
    """The routes that begin and end sessions."""

    def __init__(
        self, settings: ConsoleSettings, sessions: SessionStore, client: GatewayClient, limiter: RequestLimiter
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._client = client
        self._limiter = limiter

    @property
    def routes(self) -> list[Route]:
        return [
            Route(SIGN_IN_PATH, self.show, methods=["GET"]),
            Route(SIGN_IN_PATH, self.sign_in, methods=["POST"]),
            Route("/sign-out", self.sign_out, methods=["POST"]),
            Route("/health", self.report_health, methods=["GET"]),
        ]

    async def show(self, request: Request) -> Response:
        return _render(request, 200)

    async def sign_in(self, request: Request) -> Response:
        """Exchange a valid credential for a session with a new id."""
        if not self._limiter.allow(get_source(request.scope)):
            return PlainTextResponse("Too many requests. Wait a minute.", 429, {"Retry-After": "60"})
        credential = await _read_credential(request)
        if credential is None:
            return _render(request, 400, "The form was not understood.")
        try:
            role = await self._client.find_role(credential)
        except ApiError as error:
            return _render(request, 503, str(error))
        if role is None:
            return _render(request, 401, "The gateway does not accept this key or token.")
        self._sessions.close(read_cookie(request.headers, self._settings))
        identifier, _ = self._sessions.create(credential, role)
        target = f"{request.scope.get('root_path', '')}{_read_next(request)}"
        return RedirectResponse(target, 303, {"Set-Cookie": build_cookie(identifier, self._settings)})

    async def sign_out(self, request: Request) -> Response:
        self._sessions.close(read_cookie(request.headers, self._settings))
        target = f"{request.scope.get('root_path', '')}{SIGN_IN_PATH}"
        return RedirectResponse(target, 303, {"Set-Cookie": build_cookie("", self._settings)})

    async def report_health(self, _request: Request) -> Response:
        return PlainTextResponse("ok")


async def _read_credential(request: Request) -> str | None:
    try:
        credential = parse_qs((await request.body()).decode("ascii")).get("credential", [""])[0].strip()
    except ValueError:
        return None
    return credential if credential and credential.isascii() and credential.isprintable() else None


def _read_next(request: Request) -> str:
    """Return the path of the page to show after signing in."""
    path = unquote(request.query_params.get("next", "/"))
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


def _render(request: Request, status: int, error: str = "") -> Response:
    message = f'<p class="error" role="alert">{escape(error)}</p>' if error else ""
    query = f"?{request.url.query}" if request.url.query else ""
    action = f"{request.scope.get('root_path', '')}{SIGN_IN_PATH}{query}"
    return HTMLResponse(_PAGE.replace("sign-in-action", escape(action)).replace("<!-- error -->", message), status)

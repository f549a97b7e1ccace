"""Sign-in to protected MCP servers.

The API, and the pages for the user's browser.
"""

from html import escape
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Cookie, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.datastructures import Headers

from gateway.api.deps import AuthenticatorDep, PrincipalDep, SettingsDep, ToolboxDep, list_visible_servers
from gateway.api.http.errors import ErrorBody
from gateway.api.security.authentication import Authenticator
from gateway.api.security.middleware import get_source_address
from gateway.common.urls import strip_url_secrets
from gateway.domain.errors import Forbidden, GatewayError, NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.ports.tools import Toolbox

router = APIRouter(tags=["MCP servers"])

_COOKIE = "agent_gateway_login"
_COOKIE_PATH = "/api/v1/mcp/oauth"
_COOKIE_SECONDS = 600
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # else the form's request would have no origin, and would be rejected
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}
_PAGE = """\
<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:1.1em system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}}
button{{font:inherit;padding:.5em 1.5em}}</style>
<h1>{title}</h1><p>{text}</p>{more}</html>
"""
_CREDENTIAL_FIELD = """\
<p><label>Your key or token for the gateway:<br>
<input type="password" name="credential" required autocomplete="off" size="40"></label></p>
"""
_MAX_FORM_BYTES = 32 * 1024
ServerName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Ticket = Annotated[str, Query(max_length=100)]
_ERRORS: dict[int | str, JsonObject] = {
    403: {"model": ErrorBody, "description": "Only admins may sign in for all users"},
    404: {"model": ErrorBody, "description": "The server was not found"},
    409: {"model": ErrorBody, "description": "The server does not use sign-in"},
}


class SignInPage(BaseModel):
    """URL that the user opens in a browser to sign in."""

    url: str


@router.post("/api/v1/mcp/servers/{name}/sign-in", summary="Sign in to a protected MCP server", responses=_ERRORS)
async def sign_in(name: ServerName, principal: PrincipalDep, toolbox: ToolboxDep) -> SignInPage:
    """Return the URL at which a browser signs in.

    It is valid for seven days. If the server's `share` is `all`, an admin signs in for all users.
    """
    _require_reachable(name, principal, toolbox)
    return SignInPage(url=await toolbox.sign_in.create_sign_in_url(name, principal))


@router.delete(
    "/api/v1/mcp/servers/{name}/sign-in",
    summary="Sign out of a protected MCP server",
    status_code=204,
    responses=_ERRORS,
)
async def sign_out(name: ServerName, principal: PrincipalDep, toolbox: ToolboxDep) -> None:
    """Delete the tokens that the server's authorization server issued."""
    _require_reachable(name, principal, toolbox)
    await toolbox.sign_in.sign_out(name, principal)


def _require_reachable(name: str, principal: Principal, toolbox: Toolbox) -> None:
    is_hidden = principal.toolset is not None and all(
        status.name != name for status in list_visible_servers(toolbox, principal)
    )
    if is_hidden or not principal.can_use_server(name):
        raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")


@router.get(f"{_COOKIE_PATH}/client.json", include_in_schema=False)
async def get_client_document(toolbox: ToolboxDep) -> JsonObject:
    """Return the gateway's client id metadata document, which authorization servers fetch."""
    return toolbox.sign_in.get_client_metadata()


@router.get(f"{_COOKIE_PATH}/start", response_class=HTMLResponse, include_in_schema=False)
async def show_start_page(ticket: Ticket, toolbox: ToolboxDep, auth: AuthenticatorDep) -> HTMLResponse:
    """Show the server and the user of a sign-in.

    The user confirms both, with a key of the gateway, so that a link cannot trick a user into signing in for another
    user.
    """
    try:
        request = await toolbox.sign_in.get_request(ticket)
    except GatewayError as error:
        return _render_page("Sign-in", error.message, status=error.status)
    users = f"the gateway's user {request.owner}" if request.owner else "all users of the gateway"
    server = f"{request.server} ({strip_url_secrets(request.url)})"
    text = f"{request.by} requested that the agent gateway may use the MCP server {server} for {users}."
    field = _CREDENTIAL_FIELD if await auth.requires_credential() else ""
    return _render_page(
        f"Sign in to {request.server}?", text, more=f'<form method="post">{field}<button>Sign in</button></form>'
    )


@router.post(f"{_COOKIE_PATH}/start", response_class=Response, include_in_schema=False)
async def start_sign_in(
    ticket: Ticket, request: Request, toolbox: ToolboxDep, settings: SettingsDep, auth: AuthenticatorDep
) -> Response:
    """Redirect to the authorization server.

    The form proves that the browser is that of the user who asked for the sign-in. The cookie binds the callback to
    this browser.
    """
    try:
        await _require_requester(ticket, request, toolbox, auth)
        url = await toolbox.sign_in.begin_sign_in(ticket)
    except GatewayError as error:
        return _render_page("The sign-in cannot start", error.message, status=error.status)
    response = RedirectResponse(url, status_code=303, headers=_HEADERS)
    secure = settings.public_url.startswith("https://")
    response.set_cookie(
        _COOKIE,
        ticket,
        max_age=_COOKIE_SECONDS,
        path=f"{settings.root_path}{_COOKIE_PATH}",
        httponly=True,
        samesite="lax",
        secure=secure,
    )
    return response


@router.get(f"{_COOKIE_PATH}/callback", response_class=HTMLResponse, include_in_schema=False)
async def finish_sign_in(
    request: Request,
    toolbox: ToolboxDep,
    settings: SettingsDep,
    ticket: Annotated[str, Cookie(alias=_COOKIE, max_length=100)] = "",
) -> HTMLResponse:
    """Finish the sign-in when the authorization server redirects the browser back."""
    answer = {name: value[:4_000] for name, value in request.query_params.items()}
    try:
        await toolbox.sign_in.finish_sign_in(ticket, answer)
    except GatewayError as error:
        page = _render_page("The sign-in failed", error.message, status=error.status)
    else:
        page = _render_page("Signed in", "You can close this page. The conversation continues automatically.")
    page.delete_cookie(_COOKIE, path=f"{settings.root_path}{_COOKIE_PATH}")
    return page


async def _require_requester(ticket: str, request: Request, toolbox: Toolbox, auth: Authenticator) -> None:
    """Check that the user who asked for the sign-in sends the request.

    The credential is in the form, or in the headers, where a proxy adds it.

    Raises:
        NotAuthenticated: the request has no credential, or an invalid one.
        Forbidden: the credential is that of another user.
    """
    if not await auth.requires_credential():
        return
    sign_in = await toolbox.sign_in.get_request(ticket)
    form = parse_qs((await request.body())[:_MAX_FORM_BYTES].decode("utf-8", "replace"))
    credential = form.get("credential", [""])[0].strip()
    headers = Headers({"x-api-key": credential}) if credential else request.headers
    principal = await auth.authenticate_request(headers, get_source_address(request.scope))
    if principal.user != sign_in.by:
        raise Forbidden("Another user of the gateway asked for this sign-in. Ask for one of your own.")


def _render_page(title: str, text: str, *, more: str = "", status: int = 200) -> HTMLResponse:
    body = _PAGE.format(title=escape(title), text=escape(text), more=more)
    return HTMLResponse(body, status_code=status, headers=_HEADERS)

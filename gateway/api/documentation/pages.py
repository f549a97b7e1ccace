"""`/docs` and `/redoc`: Swagger UI and Redoc for the OpenAPI document."""

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from gateway_runtime.http_protocol import REMOVED_SLASHES_SCOPE_KEY

router = APIRouter(include_in_schema=False)

_ASSETS = Path(__file__).parent / "assets"
_MEDIA_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start-swagger-ui.js": "text/javascript",
    "oauth2-redirect.js": "text/javascript",
    "redoc.standalone.js": "text/javascript",
}
_HEADERS = {
    # Redoc searches in a worker that it makes itself. Both write styles into the page.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "worker-src 'self' blob:; connect-src 'self'; font-src 'self'; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    )
}
_METHODS = ["GET", "HEAD"]
_ASSET_HEADERS = {"Cache-Control": "public, max-age=3600"}
_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MCP agent gateway</title><link rel="icon" href="data:,">{head}</head><body>{body}</body></html>
"""
# Relative addresses also work behind a proxy that adds a prefix to the paths.
_SWAGGER_UI = _PAGE.format(
    head='<link rel="stylesheet" href="docs/assets/swagger-ui.css">',
    body='<div id="swagger-ui"></div><script src="docs/assets/swagger-ui-bundle.js"></script>'
    '<script src="docs/assets/start-swagger-ui.js"></script>',
)
_REDOC = _PAGE.format(
    head="<style>body{margin:0}</style>",
    body='<redoc spec-url="openapi.json"></redoc><script src="docs/assets/redoc.standalone.js"></script>',
)
_OAUTH2_REDIRECT = _PAGE.format(head="", body='<script src="assets/oauth2-redirect.js"></script>')


@router.api_route("/docs", methods=_METHODS, response_class=HTMLResponse)
async def show_swagger_ui(request: Request) -> Response:
    """Show the OpenAPI document in Swagger UI."""
    return _show_page(request, _SWAGGER_UI)


@router.api_route("/docs/oauth2-redirect", methods=_METHODS, response_class=HTMLResponse)
async def show_oauth2_redirect(request: Request) -> Response:
    """Return the page that ends a sign-in of Swagger UI."""
    return _show_page(request, _OAUTH2_REDIRECT)


@router.api_route("/redoc", methods=_METHODS, response_class=HTMLResponse)
async def show_redoc(request: Request) -> Response:
    """Show the OpenAPI document in Redoc."""
    return _show_page(request, _REDOC)


@router.api_route("/docs/assets/{name}", methods=_METHODS, response_class=Response)
async def get_asset(name: str) -> FileResponse:
    """Return a file of the pages."""
    if name not in _MEDIA_TYPES:
        raise HTTPException(404)
    return FileResponse(_ASSETS / name, media_type=_MEDIA_TYPES[name], headers=_ASSET_HEADERS)


def _show_page(request: Request, page: str) -> Response:
    """Return a page, at its address without a last slash.

    With a last slash, its relative links would lead elsewhere.
    """
    if slashes := request.scope.get(REMOVED_SLASHES_SCOPE_KEY, 0):
        name = request.url.path.rpartition("/")[2]
        return RedirectResponse("../" * slashes + name, headers=_HEADERS)
    return HTMLResponse(page, headers=_HEADERS)

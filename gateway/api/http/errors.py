"""Error responses: `{"error": {"code", "message", "param"?, "request_id"}}`.

Under `/v1/` they have OpenAI's shape, and Anthropic's for its routes and clients.
"""

import asyncio
import re
from collections.abc import Sequence

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http.request_context import ANTHROPIC_PREFIX, ERROR_SCOPE_KEY, STARTED_SCOPE_KEY, TURN_SCOPE_KEY
from gateway.api.security.permissions import MCP_SCOPES, list_methods
from gateway.common.logging import get_logger, request_id
from gateway.common.validation_errors import describe_problem, list_causes, remove_tags
from gateway.config import Settings
from gateway.domain.errors import (
    ErrorInfo,
    GatewayError,
    InvalidRequest,
    PayloadTooLarge,
    ScopeMissing,
    ServerStopping,
)
from gateway.domain.messages import JsonObject
from gateway.domain.toolsets import is_mcp_path
from gateway.wire.anthropic import answers as anthropic
from gateway.wire.openai.error_codes import get_problem_code
from gateway.wire.openai_chat_answers import build_error_body
from gateway.wire.request_model import UNION_TAG_PREFIX

log = get_logger(__name__)

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: PayloadTooLarge.code,
    415: "unsupported_encoding",
}

_UNION_TAG = re.compile(
    rf"{UNION_TAG_PREFIX}.*|\w+Choice|\w+Body|(constrained-)?(str|int|float|bool|none|list|dict)"
    r"|(list|dict|literal|nullable|function-\w+)\[.*\]"
)


_ROUTE_ADVICE = (
    "; this API has chat/completions, completions, responses, conversations, messages, embeddings, audio, files, "
    "batches and models under /v1."
)


class ErrorDetail(BaseModel):
    """Error of a request.

    `param` names the invalid field, if there is one.
    """

    code: str
    message: str
    param: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """Body of every error response outside `/v1/`."""

    error: ErrorDetail


def error_response(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    retry_after: float | None = None,
    openai_code: str | None = None,
) -> JSONResponse:
    """Build an error response in the shape of the request's path.

    `retry_after` is in seconds. `openai_code` replaces the code for OpenAI's clients.
    """
    request.scope[ERROR_SCOPE_KEY] = code
    headers: dict[str, str] = {}
    if (turn := request.scope.get(TURN_SCOPE_KEY)) is not None:
        headers["X-Turn-Id"] = turn.id_text
    if status == 401:
        problem = "invalid_token" if "authorization" in request.headers else None
        headers["WWW-Authenticate"] = _build_challenge(request, problem, MCP_SCOPES) or "Bearer"
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, round(retry_after)))
    info = ErrorInfo(code=code, message=message, param=param)
    if request.url.path.startswith(("/v1/", "/openai/v1/")):
        status = 400 if status == 422 else status
        if request.url.path.startswith(ANTHROPIC_PREFIX) or "anthropic-version" in request.headers:
            anthropic_body = anthropic.build_error_body(info, status, request_id.get())
            return JSONResponse(anthropic_body, status_code=status, headers=headers)
        body: JsonObject = build_error_body(info, status, openai_code=openai_code)
        return JSONResponse(body, status_code=status, headers=headers)
    body = {"error": {**msgspec.to_builtins(info), "request_id": request_id.get()}}
    if not request.url.path.startswith("/api/v1/"):
        body["detail"] = message  # legacy clients read the message here
    return JSONResponse(body, status_code=status, headers=headers)


def _build_challenge(request: Request, problem: str | None, scopes: tuple[str, ...]) -> str | None:
    """Build the challenge of a request whose credential does not suffice.

    MCP hosts find their authorization server by it (RFC 9728), and ask it for the scopes. Others get none.
    """
    settings: Settings = request.app.state.settings
    path: str = request.scope["path"].removesuffix("/")
    if not is_mcp_path(path) or not settings.authorization_servers:
        return None
    parameters = [f'error="{problem}"'] if problem else []
    if settings.jwt_scope_claim is not None:
        parameters.append(f'scope="{" ".join(scopes)}"')
    parameters.append(f'resource_metadata="{settings.public_url}/.well-known/oauth-protected-resource{path}"')
    return f"Bearer {', '.join(parameters)}"


def gateway_error(request: Request, error: Exception) -> JSONResponse:
    """Build the response of an error of the gateway's own."""
    assert isinstance(error, GatewayError)
    response = error_response(
        request, error.status, error.code, error.message, error.param, error.retry_after, error.openai_code
    )
    if isinstance(error, ScopeMissing) and (challenge := _build_challenge(request, "insufficient_scope", error.scopes)):
        response.headers["WWW-Authenticate"] = challenge
    return response


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return error_response(request, 422, InvalidRequest.code, "The body is not valid JSON.")
    locations = [remove_tags(_remove_union_tags(problem["loc"][1:]), error.body) for problem in problems]
    causes = list_causes(problems, locations)
    first, location = causes[0]
    param, reason = describe_problem(first, location)
    paths = {describe_problem(*cause)[0] for cause in causes}
    message = f"{param or first['loc'][0]}: {reason}"  # the source: body, query, path, header or cookie
    if (others := len(paths) - 1) > 0:
        message += f" (and {others} more problem{'s' if others > 1 else ''})"
    openai_code = get_problem_code(first)
    return error_response(request, 422, InvalidRequest.code, message, param or None, openai_code=openai_code)


def _remove_union_tags(location: Sequence[int | str]) -> list[int | str]:
    """Leave the members of unions out of a location.

    Pydantic names them by their type, such as `constrained-str`, `list[dict[str,any]]` or a class.
    """
    return [part for part in location if isinstance(part, int) or not _UNION_TAG.fullmatch(part)]


def http_error(request: Request, error: Exception) -> JSONResponse:
    """Build the error response for an `HTTPException`."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # raised by FastAPI for a body that it cannot decode
        return error_response(request, 422, InvalidRequest.code, "The body is not valid JSON.")
    code = _CODES.get(error.status_code, "http_error")
    route = f"{request.method} {request.url.path}: " if error.status_code in (404, 405) else ""
    advice, methods = "", ", ".join(list_methods(request.url.path)) if error.status_code == 405 else ""
    if request.url.path.startswith(("/v1/", "/openai/v1/")):
        advice = f"; send {methods}." if methods else _ROUTE_ADVICE if error.status_code == 404 else ""
    response = error_response(request, error.status_code, code, f"{route}{error.detail}{advice}")
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = methods
    return response


def _internal_error(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return error_response(request, 500, GatewayError.code, GatewayError.default_message)


class ServerErrorMiddleware:
    """Answers 500 for unexpected errors of the application.

    It runs inside the other middleware, which adds its headers to this response too. A response that has begun is
    broken off. uvicorn cancels a request only when its server stops and can wait no longer; that is a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] == "http" and STARTED_SCOPE_KEY not in scope:
                await gateway_error(Request(scope), ServerStopping())(scope, receive, send)
            raise
        except Exception as error:
            if scope["type"] != "http" or STARTED_SCOPE_KEY in scope:
                raise
            await _internal_error(Request(scope), error)(scope, receive, send)


def build_expected_error(
    request: Request, error: GatewayError | RequestValidationError | HTTPException
) -> JSONResponse:
    """Build the response for an error that a route may raise."""
    if isinstance(error, GatewayError):
        return gateway_error(request, error)
    if isinstance(error, RequestValidationError):
        return _validation_error(request, error)
    return http_error(request, error)


def register_error_handlers(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error responses."""
    app.add_exception_handler(GatewayError, gateway_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, _internal_error)

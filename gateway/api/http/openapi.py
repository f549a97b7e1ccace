"""Adds credentials and the errors of middleware to the OpenAPI document."""

import asyncio

import msgspec
from fastapi import FastAPI, Request, Response

from gateway.api.http.request_context import ANTHROPIC_PREFIX
from gateway.api.security.permissions import ROUTES
from gateway.domain.messages import JsonObject

_COMMON_ERRORS = {
    421: "The Host header names another server",
    422: "The request is invalid",
    429: "Too many requests; see Retry-After",
    503: "The database cannot be reached, or the gateway is stopping",
}
_CREDENTIAL_ERRORS = {
    401: "The credential is missing or invalid",
    403: "The credential does not permit this request",
}
_BODY_ERRORS = {
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is compressed",
}
_TURN_ERRORS = {
    400: "The model's server refused the request",
    402: "The budget is exhausted",
    404: "The model, conversation or turn was not found",
    409: "Another turn of the conversation is active",
    413: "The body is too large",
    502: "The model's server failed",
    504: "The turn exceeded its time limit",
}
_OPENAI_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "code": {"type": "string", "description": "The gateway's own code"},
                "param": {"type": ["string", "null"]},
            },
        },
        "request_id": {"type": ["string", "null"]},
    },
}
_A2A_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": ["integer", "string"]},
                "status": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "array"},
            },
        }
    },
}

_CREDENTIALS = {
    "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "HTTPBearer": {"type": "http", "scheme": "bearer"},
}


def install_openapi(app: FastAPI) -> None:
    """Complete the OpenAPI document of `app`, and serve it at `/openapi.json`.

    It is built at the first request, in a thread: that takes a few tenths of a second.
    """
    generate = app.openapi
    lock = asyncio.Lock()
    bodies: list[bytes] = []

    def openapi() -> JsonObject:
        if app.openapi_schema is None:
            _complete_document(generate())
        return generate()

    def build_body() -> bytes:
        return msgspec.json.encode(app.openapi())

    async def get_document(_: Request) -> Response:
        async with lock:
            if not bodies:
                bodies.append(await asyncio.to_thread(build_body))
        return Response(bodies[0], media_type="application/json")

    app.openapi = openapi
    app.add_route("/openapi.json", get_document, include_in_schema=False)


def _complete_document(document: JsonObject) -> None:
    document["components"]["schemas"]["OpenAIErrorBody"] = _OPENAI_ERROR_SCHEMA
    document["components"]["schemas"]["AnthropicErrorBody"] = _ANTHROPIC_ERROR_SCHEMA
    document["components"]["schemas"]["A2aErrorBody"] = _A2A_ERROR_SCHEMA
    document["components"]["securitySchemes"] = _CREDENTIALS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            access = ROUTES.get((method.upper(), path))
            if access is not None and not access.public:
                operation["security"] = [{name: []} for name in _CREDENTIALS]
            for status, description in _list_error_statuses(method.upper(), path, operation).items():
                _declare_response(operation["responses"], path, status, description)


def _list_error_statuses(method: str, path: str, operation: JsonObject) -> dict[int, str]:
    access = ROUTES.get((method, path))
    if access is None or not access.counted:
        return {}
    errors = _COMMON_ERRORS | ({} if access.public else _CREDENTIAL_ERRORS)
    if "requestBody" in operation:
        errors |= _BODY_ERRORS
    if access.route_class == "chat" and method == "POST":
        errors |= _TURN_ERRORS
    if "{" in path:
        errors |= {404: "The object does not exist, or another user owns it"}
    elif path in ("/v1/files", "/v1/batches"):
        errors |= {404: "Files and batches are off here (UPSTREAM_FILES)"}
    if path.startswith("/a2a"):
        errors |= {400: "A2A does not permit this request, or not now", 501: "The extra a2a is not installed"}
    if path == "/chatkit":
        errors |= {501: "The extra chatkit is not installed"}
    return errors


def _declare_response(responses: JsonObject, path: str, status: int, description: str) -> None:
    """Add an error response to an operation.

    Under `/v1/` it has OpenAI's or Anthropic's shape, with 400 instead of 422.
    """
    is_foreign = path.startswith("/v1/")
    if is_foreign and status == 422:
        responses.pop("422", None)
        status = 400
    schema = _find_error_schema(path)
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    declared = responses.get(str(status), {})
    responses[str(status)] = {"description": declared.get("description") or description, "content": content}


def _find_error_schema(path: str) -> str:
    if path.startswith("/v1/"):
        return "AnthropicErrorBody" if path.startswith(ANTHROPIC_PREFIX) else "OpenAIErrorBody"
    return "A2aErrorBody" if path.startswith("/a2a") else "ErrorBody"

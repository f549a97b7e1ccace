"""The OpenAPI document: each operation also tells what stands before every route, the credentials that it asks for and
the refusals in their shape."""

from typing import Any

from fastapi import FastAPI

from gateway.api.security.permissions import ROUTES
from gateway.domain.messages import JsonObject

_EVERYWHERE = {
    421: "The Host header names another server",
    422: "The request is not valid",
    429: "Too many requests; see Retry-After",
    503: "The database cannot be reached, or the gateway is stopping",
}
_ASKED = {
    401: "A credential is asked for, and none or a wrong one came",
    403: "The credential does not open this",
}
_TURNS = {
    400: "The model's server refused the request",
    402: "The budget is used up",
    404: "No such model, conversation or turn",
    409: "Another turn stands against it",
    413: "The body is too large",
    502: "The model's server failed",
    504: "The turn took too long",
}
_OPENAI = {
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

_CREDENTIALS = {
    "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "HTTPBearer": {"type": "http", "scheme": "bearer"},
}


def install_openapi(app: FastAPI) -> None:
    """Complete the document, once, when it is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete_document(generate())
        return generate()

    app.openapi = openapi


def _complete_document(document: JsonObject) -> None:
    document["components"]["schemas"]["OpenAIErrorBody"] = _OPENAI
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
    told = _EVERYWHERE | ({} if access.public else _ASKED)
    if "requestBody" in operation:
        told |= {408: "The body did not arrive in time", 413: _TURNS[413], 415: "The body is compressed"}
    if access.route_class == "chat" and method == "POST":
        told |= _TURNS
    if "{" in path:
        told |= {404: "There is no such thing, or it is another's"}
    return told


def _declare_response(responses: JsonObject, path: str, status: int, description: str) -> None:
    """Under `/v1/` errors have OpenAI's shape, and 422 is 400."""
    openai = path.startswith("/v1/")
    if openai and status == 422:
        responses.pop("422", None)
        status = 400
    shape = "OpenAIErrorBody" if openai else "ErrorBody"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    known = responses.get(str(status), {})
    responses[str(status)] = {"description": known.get("description") or description, "content": content}

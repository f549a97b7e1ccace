"""`/definitions`: list, make, test, change, publish and delete defined tools, for admins.

`AuthenticationMiddleware` admits only tokens of the gateway with the scope for it.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway_runtime.http_tools.definitions import (
    DefinitionCreate,
    DefinitionImport,
    DefinitionPatch,
    DefinitionPublish,
    DefinitionTest,
)
from tools_server.auth import get_request_user
from tools_server.common.database import DatabaseUnavailable
from tools_server.http_tools.errors import DefinitionError
from tools_server.http_tools.openapi.importer import DocumentImporter
from tools_server.http_tools.service import DefinitionService

log = structlog.stdlib.get_logger(__name__)

BodyT = TypeVar("BodyT", bound=BaseModel)
_Handler = Callable[[Request], Awaitable[Response]]


def build_definition_routes(service: DefinitionService, importer: DocumentImporter) -> list[Route]:
    """Build the routes of definitions."""

    async def list_definitions(_request: Request) -> Response:
        return JSONResponse(await service.list_definitions())

    async def create(request: Request) -> Response:
        body = await parse_request_body(request, DefinitionCreate)
        return JSONResponse(await service.create(body, get_request_user(request)), 201)

    async def import_document(request: Request) -> Response:
        body = await parse_request_body(request, DefinitionImport)
        return JSONResponse(await importer.run(body, get_request_user(request)))

    async def get(request: Request) -> Response:
        return JSONResponse(await service.get(_get_name(request)))

    async def change(request: Request) -> Response:
        body = await parse_request_body(request, DefinitionPatch)
        return JSONResponse(await service.change(_get_name(request), body, get_request_user(request)))

    async def test(request: Request) -> Response:
        body = await parse_request_body(request, DefinitionTest)
        return JSONResponse(await service.test(_get_name(request), body.arguments))

    async def publish(request: Request) -> Response:
        body = await parse_request_body(request, DefinitionPublish)
        return JSONResponse(await service.publish(_get_name(request), body.revision, get_request_user(request)))

    async def delete(request: Request) -> Response:
        await service.delete(_get_name(request), get_request_user(request))
        return Response(status_code=204)

    routes: list[tuple[str, str, _Handler]] = [
        ("GET", "/definitions", list_definitions),
        ("POST", "/definitions", create),
        ("POST", "/definitions/import", import_document),
        ("GET", "/definitions/{name}", get),
        ("PATCH", "/definitions/{name}", change),
        ("DELETE", "/definitions/{name}", delete),
        ("POST", "/definitions/{name}/test", test),
        ("POST", "/definitions/{name}/publish", publish),
    ]
    return [Route(path, answer_errors(handler), methods=[method]) for method, path, handler in routes]


def answer_errors(handler: _Handler) -> _Handler:
    """Turn the errors of definitions into answers."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except DefinitionError as error:
            body = {"code": error.code, "message": error.message, "param": error.param}
            return JSONResponse({"error": body}, error.status)
        except DatabaseUnavailable as error:
            message = "The tool server's database cannot be reached now. "
            message += "The change may have been saved." if error.in_doubt else "Nothing was changed."
            return JSONResponse({"error": {"code": "storage_unavailable", "message": message}}, 503)

    return handle


def _get_name(request: Request) -> str:
    return request.path_params["name"]


async def parse_request_body(request: Request, model: type[BodyT]) -> BodyT:
    """Validate a JSON body.

    Raises:
        DefinitionError: it does not fit. The message names the field and no value.
    """
    raw = await request.body()
    try:
        value: Any = json.loads(raw or b"{}")
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no lone surrogates, NaN or infinities
        if "\\u0000" in json.dumps(value):
            raise ValueError
        return model.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))[:200]
        raise DefinitionError(422, "invalid_request", f"{field}: {problem['msg'][:500]}", field) from None
    except (ValueError, RecursionError):
        raise DefinitionError(422, "invalid_request", "The body must be JSON without NUL characters.") from None

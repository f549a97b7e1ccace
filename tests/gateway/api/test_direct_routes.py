"""Routes that are called directly answer as FastAPI's handler would."""

import asyncio
from collections.abc import MutableMapping
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.http import errors
from gateway.api.http.application import GatewayApplication
from gateway.api.http.direct_routes import DirectRouteMiddleware
from gateway.api.routes.registration import list_direct_routes
from gateway.domain.errors import ClientGone, Forbidden
from gateway_runtime.requests.model import ItemList, RequestModel

router = APIRouter()


class Order(RequestModel):
    """A body with limits of each kind."""

    items: ItemList[int] = Field(max_length=3)
    note: str | None = None


@router.post("/orders")
async def create_order(
    body: Order,
    request: Request,
    x_trace: Annotated[str | None, Header(max_length=5)] = None,
    priority: Annotated[int, Header(ge=0)] = 1,
) -> Response:
    if body.note == "forbidden":
        raise Forbidden("Not this one.")
    answer = f"{body.model_dump_json()} {x_trace} {priority}"
    return Response(answer, status_code=201, headers={"X-Path": request.url.path})


def create_app(*, direct: bool) -> FastAPI:
    app = FastAPI()
    errors.register_error_handlers(app)
    app.include_router(router)
    if direct:
        routes = [(route.path, route) for route in router.routes if isinstance(route, APIRoute)]
        app.add_middleware(DirectRouteMiddleware, routes=routes)
    return app


REQUESTS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "valid": ("POST", b'{"items": [1, 2]}', {}),
    "valid with headers": ("POST", b'{"items": [1]}', {"X-Trace": "abc", "Priority": "7"}),
    "another letter case": (
        "POST",
        b'{"items": [1]}',
        {"x-TRACE": "abc", "Content-Type": "Application/JSON; charset=utf-8"},
    ),
    "structured suffix": ("POST", b'{"items": []}', {"Content-Type": "application/vnd.api+json"}),
    "wrong header": ("POST", b'{"items": []}', {"Priority": "high"}),
    "long header": ("POST", b'{"items": []}', {"X-Trace": "abcdef"}),
    "wrong header and body": ("POST", b'{"items": [1, 2, 3, 4]}', {"Priority": "-1"}),
    "wrong items": ("POST", b'{"items": ["a", "b"]}', {}),
    "unknown field": ("POST", b'{"items": [], "color": 1}', {}),
    "list": ("POST", b"[1]", {}),
    "null": ("POST", b"null", {}),
    "number": ("POST", b"1", {}),
    "empty": ("POST", b"", {}),
    "no JSON": ("POST", b"{", {}),
    "no UTF-8": ("POST", b'{"items": "\xff"}', {}),
    "another media type": ("POST", b'{"items": []}', {"Content-Type": "text/xml"}),
    "no media type": ("POST", b'{"items": []}', {"Content-Type": ""}),
    "domain error": ("POST", b'{"items": [], "note": "forbidden"}', {}),
    "another method": ("GET", b"", {}),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_direct_route_answers_like_fastapi(request_: tuple[str, bytes, dict[str, str]]) -> None:
    method, body, headers = request_
    declared = {"Content-Type": "application/json", **headers}
    direct, expected = (
        asyncio.run(answer(create_app(direct=is_direct), method, body, list(declared.items())))
        for is_direct in (True, False)
    )
    assert (direct.status_code, direct.text) == (expected.status_code, expected.text)
    assert direct.headers == expected.headers


async def answer(app: FastAPI, method: str, body: bytes, headers: list[tuple[str, str]]) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        return await client.request(method, "/orders", content=body, headers=headers)


@pytest.mark.parametrize("direct", [True, False])
def test_first_of_several_headers_with_one_name_counts(*, direct: bool) -> None:
    types = [("Content-Type", "application/json"), ("Content-Type", "text/xml")]
    traces = [("X-Trace", "one"), ("X-Trace", "two")]
    response = asyncio.run(answer(create_app(direct=direct), "POST", b'{"items": [1]}', [*types, *traces]))
    assert response.text == '{"items":[1],"note":null} one 1'


def test_requests_pass_added_middleware_once_before_and_after_it_is_built() -> None:
    passed: list[str] = []

    class RecordingMiddleware:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            passed.append(scope["app"].state.name)
            await self._app(scope, receive, send)

    app = GatewayApplication()
    app.state.name = "this one"
    app.include_router(router)
    app.add_middleware(RecordingMiddleware)

    async def answer_twice() -> list[str]:
        json = [("Content-Type", "application/json")]
        return [(await answer(app, "POST", b'{"items": [1]}', json)).text for _ in range(2)]

    first, second = asyncio.run(answer_twice())
    assert first == second == '{"items":[1],"note":null} None 1'
    assert passed == ["this one", "this one"]


def test_client_that_leaves_while_it_sends_is_no_server_error() -> None:
    async def send_half() -> int:
        statuses: list[int] = []
        messages = [{"type": "http.request", "body": b'{"ite', "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.extend(message["status"] for _ in range(message["type"] == "http.response.start"))

        transport_scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/orders",
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        await create_app(direct=True)(transport_scope, receive, send)
        [status] = statuses
        return status

    assert asyncio.run(send_half()) == ClientGone.status


def test_every_route_that_starts_a_turn_in_the_common_formats_is_direct() -> None:
    assert {path for path, _ in list_direct_routes()} == {
        "/api/v1/chat",
        "/api/v1/chat/stream",
        "/v1/chat/completions",
        "/openai/v1/chat/completions",
        "/v1/completions",
        "/openai/v1/completions",
        "/v1/responses",
        "/openai/v1/responses",
        "/v1/messages",
    }

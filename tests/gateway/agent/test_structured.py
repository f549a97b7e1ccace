"""Schemas come from clients and servers: they must not make the gateway ask other addresses."""

from aiohttp import web

from gateway.agent.structured import Form
from tests.tools_server.conftest import serve_web


async def test_reference_to_another_address_is_not_fetched() -> None:
    asked: list[str] = []

    async def schema(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"type": "object"})

    async with serve_web(schema) as url:
        form = Form({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"{url}/schema.json"}}})
        assert form.problem("{}") == "its schema refers to what is not in it"
    assert asked == []

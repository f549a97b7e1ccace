"""Public OpenAPI documents, from npm packages, imported and called.

STAPI (3.0, JSON, forms), Blockfrost (3.0, YAML, keys in headers), Scalar Galaxy (3.1, files, seven kinds of
authentication), and the pet store (3.0, OAuth, composed schemas).
"""

import json
import re
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.e2e.node import NODE, require_node
from tests.tools_server.conftest import connect, serve_tools, text_of
from tests.tools_server.definitions import Api, DefinitionClient, open_client, serve_api

pytestmark = [pytest.mark.node, pytest.mark.timeout(300), require_node("@readme/oas-examples")]
DOCUMENTS = {
    "stapi": "@readme/oas-examples/3.0/json/star-trek.json",
    "blockfrost": "@blockfrost/openapi/openapi.yaml",
    "galaxy": "@scalar/galaxy/dist/latest.yaml",
    "petstore": "@readme/oas-examples/3.0/yaml/petstore.yaml",
}
METHODS = ("get", "head", "post", "put", "patch", "delete")
SAMPLE_DEPTH = 8


@cache
def read_document(name: str) -> str:
    return (NODE / "node_modules" / DOCUMENTS[name]).read_text()


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def defining(database_url: str) -> AsyncGenerator[DefinitionClient]:
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": "a-key-of-the-tests-of-documents"}
    async with serve_tools(database_url=database_url, **options) as address, open_client(address) as client:
        yield client


async def import_document(defining: DefinitionClient, api: Api, name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Import a document, publish its tools, and return the rows by operation."""
    body = {"document": read_document(name), "server_url": f"{api.url}/base", **options}
    status, shown = await defining.send("POST", "/import", body)
    assert status == 200, shown
    secrets = {name: f"value-of-{name}" for name in shown["secrets"]}
    status, report = await defining.send(
        "POST", "/import", {**body, "secrets": secrets, "apply": True, "publish": True}
    )
    assert (status, report["operations"]) == (200, shown["operations"])
    return {row["operation"]: row for row in report["operations"]}


def build_sample(schema: Any, definitions: dict[str, Any], depth: int = 0) -> Any:
    """Build a small value of a schema."""
    if not isinstance(schema, dict) or depth > SAMPLE_DEPTH:
        return "x"
    if "$ref" in schema:
        return build_sample(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth + 1)
    for keyword in ("const", "default"):
        if schema.get(keyword) is not None:
            return schema[keyword]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("allOf"):
        parts = [build_sample(part, definitions, depth + 1) for part in schema["allOf"]]
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()} or parts[0]
    for keyword in ("oneOf", "anyOf"):
        if schema.get(keyword):
            return build_sample(schema[keyword][0], definitions, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: build_sample(properties.get(name), definitions, depth + 1) for name in schema.get("required", [])}
    if kind == "array":
        return [build_sample(schema.get("items"), definitions, depth + 1)] * max(schema.get("minItems", 1), 1)
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 1), 1)
    if kind == "boolean":
        return True
    return "YWJj" if schema.get("contentEncoding") == "base64" else "x" * max(schema.get("minLength", 1), 1)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_each_operation_of_the_document_arrives_at_its_path(
    defining: DefinitionClient, api: Api, name: str
) -> None:
    rows = await import_document(defining, api, name)
    root = yaml.safe_load(read_document(name))
    operations = [
        f"{method.upper()} {path}" for path, item in root["paths"].items() for method in METHODS if method in item
    ]
    assert list(rows) == operations
    skipped = {key: row["reason"] for key, row in rows.items() if row["action"] != "add"}
    assert skipped == {}
    async with connect(defining.address, "auto") as client:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        for key, row in rows.items():
            method, path = key.split(" ", 1)
            schema = tools[row["name"]]
            result = await client.call_tool(row["name"], build_sample(schema, schema.get("$defs", {})))
            assert not result.is_error, (key, text_of(result))
            request = api.requests[-1]
            expected = "".join(
                "[^/?]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]*\})", path)
            )
            assert request["method"] == method
            assert re.fullmatch(rf"/base{expected}(\?.*)?", request["target"]), (key, request["target"])
    assert len(api.requests) == len(rows)
    again = await defining.send("POST", "/import", {"document": read_document(name), "server_url": f"{api.url}/base"})
    assert {row["action"] for row in again[1]["operations"]} == {"keep"}


async def call(defining: DefinitionClient, api: Api, tool: str, **values: Any) -> dict[str, Any]:
    async with connect(defining.address, "auto") as client:
        result = await client.call_tool(tool, values)
    assert not result.is_error, text_of(result)
    return api.requests[-1]


async def test_form_of_stapi_is_sent(defining: DefinitionClient, api: Api) -> None:
    rows = await import_document(defining, api, "stapi", operations=["* /animal*"])
    tool = rows["POST /animal/search"]["name"]
    request = await call(defining, api, tool, pageNumber=1, name="Targ & co", earthAnimal=False, sort="name,ASC")
    assert request["target"] == "/base/animal/search?pageNumber=1&sort=name%2CASC"
    assert request["headers"]["Content-Type"] == "application/x-www-form-urlencoded"
    assert request["body"] == "name=Targ%20%26%20co&earthAnimal=false"


async def test_key_and_query_of_blockfrost_are_sent(defining: DefinitionClient, api: Api) -> None:
    rows = await import_document(defining, api, "blockfrost", operations=["GET /assets*", "POST /tx/submit"])
    tool = rows["GET /assets/{asset}/history"]["name"]
    request = await call(defining, api, tool, asset="b0d0/7", count=5, order="desc")
    assert request["target"] == "/base/assets/b0d0%2F7/history?count=5&order=desc"
    assert request["headers"]["project_id"].startswith("value-of-")


async def test_file_and_authentication_of_the_galaxy_are_sent(defining: DefinitionClient, api: Api) -> None:
    rows = await import_document(defining, api, "galaxy")
    request = await call(defining, api, rows["POST /planets/{planetId}/image"]["name"], planetId=1, image="AAEC")
    assert request["target"] == "/base/planets/1/image"
    assert b'name="image"; filename="image"\r\nContent-Type: ' in request["raw"]
    assert b"\r\n\r\n\x00\x01\x02\r\n" in request["raw"]
    assert request["headers"]["Authorization"].startswith("Bearer value-of-")
    me = await call(defining, api, rows["GET /me"]["name"])
    assert me["headers"]["Authorization"].startswith("Basic ")


async def test_composed_body_of_the_pet_store_is_sent(defining: DefinitionClient, api: Api) -> None:
    rows = await import_document(defining, api, "petstore")
    pet = {"name": "Rex", "photoUrls": ["https://x.example/1"], "status": "sold", "category": {"name": "dogs"}}
    request = await call(defining, api, rows["POST /pet"]["name"], **pet)
    assert json.loads(request["body"]) == pet
    assert request["headers"]["Authorization"] == "Bearer value-of-petstore_auth"
    found = await call(defining, api, rows["GET /pet/findByStatus"]["name"], status=["available", "sold"])
    assert found["target"] == "/base/pet/findByStatus?status=available&status=sold"


async def test_swagger_2_is_refused_with_what_to_do(defining: DefinitionClient) -> None:
    for form in ("json", "yaml"):
        text = (NODE / "node_modules" / "@readme/oas-examples/2.0" / form / f"petstore.{form}").read_text()
        status, answer = await defining.send("POST", "/import", {"document": text})
        assert (status, answer["error"]["param"]) == (422, "document")
        assert "Swagger 2, which must be converted" in answer["error"]["message"]

"""OpenAPI documents become tools, which are called over HTTP."""

import copy
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.tools_server.conftest import connect, serve_tools, text_of
from tests.tools_server.definitions import Api, DefinitionClient, open_client, serve_api
from tests.tools_server.openapi_documents import CHAT, PHONE, SHOP

RELEASED = Path(__file__).parent.parent.parent / "docs" / "releases" / "0.1.0" / "openapi.json"


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def defining(database_url: str) -> AsyncGenerator[DefinitionClient]:
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": "a-key-of-the-tests-of-imports"}
    async with serve_tools(database_url=database_url, **options) as address, open_client(address) as client:
        yield client


async def run_import(defining: DefinitionClient, status: int = 200, **body: Any) -> Any:
    answered, report = await defining.send("POST", "/import", body)
    assert answered == status, report
    return report


def actions(report: Any) -> dict[str, str]:
    return {operation["operation"]: operation["action"] for operation in report["operations"]}


async def test_document_with_shared_schemas_is_imported_by_url_and_called(defining: DefinitionClient, api: Api) -> None:
    api.answer = lambda _: web.Response(text=SHOP, content_type="application/yaml")
    url = f"{api.url}/openapi.yaml"
    report = await run_import(defining, url=url, secrets={"api_key": "key-of-the-shop"}, apply=True)
    assert (report["applied"], report["origin"]) == (True, api.url)
    assert actions(report) == {
        "GET /pet/{petId}": "add",
        "POST /pet/{petId}": "add",
        "PUT /pet": "add",
        "GET /pet/findByTags": "add",
        "POST /pet/{petId}/image": "add",
        "GET /broken": "skip",
    }
    assert set(report["secrets"]) == {"api_key", "petstore_auth"}
    for name in ("getPetById", "findPetsByTags"):
        assert (await defining.send("POST", f"/{name}/publish", {}))[0] == 200
    assert (await defining.send("POST", "/updatePet/publish", {}))[0] == 409  # its secret is not set
    await defining.send("PATCH", "/updatePet", {"secrets": {"petstore_auth": "token-of-the-shop"}})
    assert (await defining.send("POST", "/updatePet/publish", {}))[0] == 200
    api.answer, api.requests[:] = {"ok": 1}, []
    async with connect(defining.address, "auto") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        await client.call_tool("getPetById", {"petId": 7, "X-Trace-Id": "t"})
        await client.call_tool("updatePet", {"name": "Rex", "parent": {"name": "Ada"}, "weight": 3})
        filters = {"tags": ["a", "b c"], "filter": {"age": 2}, "sort": {"by": "name"}}
        await client.call_tool("findPetsByTags", filters)
        wrong = await client.call_tool("updatePet", {"name": "Rex", "weight": 0})
    assert wrong.is_error
    first, second, third = api.requests
    assert first["target"] == "/api/v3/pet/7"
    assert (first["headers"]["api_key"], first["headers"]["X-Trace-Id"]) == ("key-of-the-shop", "t")
    assert second["headers"]["Authorization"] == "Bearer token-of-the-shop"
    assert json.loads(second["body"]) == {"name": "Rex", "parent": {"name": "Ada"}, "weight": 3}
    assert third["target"] == (
        "/api/v3/pet/findByTags?tags%5B%5D=a,b%20c&filter%5Bage%5D=2&sort=%7B%22by%22%3A%20%22name%22%7D"
    )
    assert tools["updatePet"].input_schema["required"] == ["name"]
    assert tools["getPetById"].annotations is not None
    assert tools["getPetById"].annotations.read_only_hint


async def test_document_with_forms_is_imported_and_called(defining: DefinitionClient, api: Api) -> None:
    secrets = {"accountSid_authToken": "AC123:secret-token"}
    options = {"document": PHONE, "server_url": api.url, "secrets": secrets, "apply": True, "publish": True}
    await run_import(defining, **options)
    async with connect(defining.address, "auto") as client:
        values = {"FriendlyName": "a&b", "StickySender": True, "MediaUrl": ["x", "y"], "Card": {"a": {"b": 1}}}
        result = await client.call_tool("CreateService", values)
        assert not result.is_error, text_of(result)
    request = api.requests[0]
    assert request["target"] == "/v1/Services"
    assert request["headers"]["Authorization"] == "Basic QUMxMjM6c2VjcmV0LXRva2Vu"
    assert request["body"] == "FriendlyName=a%26b&StickySender=true&MediaUrl=x&MediaUrl=y&Card%5Ba%5D%5Bb%5D=1"


async def test_generated_document_is_imported_and_called(defining: DefinitionClient, api: Api) -> None:
    report = await run_import(
        defining, document=json.dumps(CHAT), server_url=f"{api.url}/base/", prefix="chat_", apply=True, publish=False
    )
    names = {operation["operation"]: operation["name"] for operation in report["operations"]}
    assert names == {
        "POST /items/{item_id}:archive": "chat_archive_items__item_id__archive_post",
        "GET /items": "chat_get_items",
        "POST /items": "chat_archive_items_item",
    }
    await defining.send("POST", f"/{names['POST /items/{item_id}:archive']}/publish", {})
    async with connect(defining.address, "auto") as client:
        values = {"item_id": "a/b", "body": {"note": None, "n": 1}}
        await client.call_tool(names["POST /items/{item_id}:archive"], values)
    assert api.requests[0]["target"] == "/base/items/a%2Fb:archive"
    assert json.loads(api.requests[0]["body"]) == {"note": None, "n": 1}


async def test_released_document_of_the_gateway_is_imported_whole(defining: DefinitionClient, api: Api) -> None:
    report = await run_import(defining, document=RELEASED.read_text(), server_url=api.url, apply=True)
    assert set(actions(report).values()) == {"add"}
    names = [operation["name"] for operation in report["operations"]]
    assert len(set(names)) == len(names) > 40
    again = await run_import(defining, document=RELEASED.read_text(), server_url=api.url)
    assert set(actions(again).values()) == {"keep"}
    assert [operation["name"] for operation in again["operations"]] == names


async def test_second_reading_shows_what_changes_before_it_changes(defining: DefinitionClient, api: Api) -> None:
    options: dict[str, Any] = {"server_url": api.url}
    assert not (await run_import(defining, document=CHAT, **options))["applied"]
    assert (await defining.send("GET"))[1] == {"definitions": []}
    await run_import(defining, document=CHAT, apply=True, **options)
    await defining.send("PATCH", "/get_items", {"timeout_seconds": 5, "result": {"select": "/x"}})
    newer = copy.deepcopy(CHAT)
    newer["paths"]["/items"]["get"]["summary"] = "List items."
    del newer["paths"]["/items"]["post"]
    newer["paths"]["/more"] = {"get": {"operationId": "get_items"}}
    report = await run_import(defining, document=newer, **options)
    assert actions(report) == {
        "POST /items/{item_id}:archive": "keep",
        "GET /items": "change",
        "GET /more": "add",
        "POST /items": "lost",
    }
    changed = next(row for row in report["operations"] if row["action"] == "change")
    assert changed["changes"] == {"description": ["GET /items", "List items."]}
    assert next(row["name"] for row in report["operations"] if row["action"] == "add") == "get_items_2"
    before = (await defining.send("GET"))[1]
    assert {row["name"] for row in before["definitions"]} == {
        "archive_items__item_id__archive_post", "archive_items_item", "get_items",
    }  # fmt: skip
    await run_import(defining, document=newer, apply=True, remove_missing=True, **options)
    after = {row["name"]: row for row in (await defining.send("GET"))[1]["definitions"]}
    assert set(after) == {"archive_items__item_id__archive_post", "get_items", "get_items_2"}
    assert after["get_items"]["description"] == "List items."
    kept = (await defining.send("GET", "/get_items"))[1]["definition"]
    assert (kept["timeout_seconds"], kept["result"]["select"]) == (5, "/x")


async def test_secrets_go_to_the_server_of_the_document_alone(defining: DefinitionClient, api: Api) -> None:
    error = await run_import(defining, 422, document=PHONE, secrets={"accountSid_authToken": "AC1:abcd"}, apply=True)
    assert "accountSid_authToken" in error["error"]["param"]
    await run_import(defining, document=PHONE, apply=True)
    assert (await defining.send("POST", "/CreateService/publish", {}))[0] == 409


CIRCLE = {"$ref": "#/components/schemas/A"}
BAD_DOCUMENTS: list[tuple[Any, str]] = [
    ({"swagger": "2.0"}, "Swagger 2"),
    ({"openapi": "4.0.0"}, "not OpenAPI"),
    ("[1]", "not an object"),
    ("a: &x [*x]", "inside of its own value"),
    ("a: *x\nb: &x 1", "before it"),
    (
        "\n".join(["a0: &a0 x", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]),
        "aliases counted",
    ),
    (
        "\n".join(["a0: &a0 {k: v}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))]),
        "aliases counted",
    ),
    ("a: !!python/object/apply:os.system [id]", "neither JSON nor YAML"),
    ("\t: {", "neither JSON nor YAML"),
    ("[" * 100_000, "nested"),
    ("- " * 100_000 + "x", "nested"),
    ('{"a":' * 100_000, "nested"),
]


async def test_bad_documents_are_refused(defining: DefinitionClient) -> None:
    for document, problem in BAD_DOCUMENTS:
        error = await run_import(defining, 422, document=document)
        assert problem in error["error"]["message"], document
    for url in ("http://127.0.0.1:9/x", "ftp://x.example/", "http://169.254.169.254/"):
        assert (await run_import(defining, 422, url=url))["error"]["param"] == "url"


async def test_circles_and_large_schemas_stay_bounded(defining: DefinitionClient, api: Api) -> None:
    schemas: dict[str, Any] = {
        "A": {"type": "object", "properties": {"next": CIRCLE}},
        "Loop": {"$ref": "#/components/schemas/Loop"},
        "Wide": {"type": "object", "properties": {f"p{i}": CIRCLE for i in range(3_000)}},
    }
    schemas |= {f"S{i}": {"allOf": [{"$ref": f"#/components/schemas/S{i + 1}"}] * 2} for i in range(40)}
    schemas["S40"] = {"type": "object"}

    def post(name: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{name}"}
        return {"post": {"operationId": name, "requestBody": {"content": {"application/json": {"schema": schema}}}}}

    paths = {f"/{name}": post(name) for name in ("A", "Loop", "Wide", "S0")}
    paths["/gone"] = post("Missing")
    document = {"openapi": "3.1.0", "paths": paths, "components": {"schemas": schemas}}
    report = await run_import(defining, document=json.dumps(document), server_url=api.url, apply=True)
    outcome = {row["operation"]: (row["action"], row.get("reason", "")) for row in report["operations"]}
    assert outcome["POST /A"][0] == outcome["POST /S0"][0] == "add"
    assert "circle" in outcome["POST /Loop"][1]
    assert "nothing" in outcome["POST /gone"][1]
    for name in ("A", "S0"):
        definition = (await defining.send("GET", f"/{name}"))[1]["definition"]
        assert len(json.dumps(definition)) < 20_000


UPLOADS = """
openapi: 3.2.0
info: {title: Uploads, version: '1'}
servers:
  - url: https://{region}.example.com/{base}
    variables: {region: {default: eu}, base: {default: v2}}
x-limits: &limits {type: integer, minimum: 1, maximum: 100}
paths:
  /files:
    post:
      operationId: createFile
      parameters:
        - {name: lang, in: cookie, schema: {type: string}}
        - {name: session, in: cookie, schema: {type: string}}
      requestBody:
        required: true
        content:
          multipart/form-data:
            schema:
              allOf:
                - {$ref: '#/components/schemas/Named'}
                - type: object
                  required: [file]
                  properties:
                    file: {type: string, format: binary}
                    pictures: {type: array, items: {type: string, contentMediaType: image/png}}
                    count: *limits
                    meta: {type: object, properties: {a: {type: integer}}}
            encoding: {file: {contentType: 'application/pdf, text/plain'}}
  /notes/{id}:
    put:
      operationId: putNote
      parameters: [{name: id, in: path, required: true, schema: {type: string}}]
      requestBody: {required: true, content: {application/xml: {schema: {type: object}}}}
  /any:
    post:
      operationId: sendAny
      requestBody: {content: {application/json: {schema: }}}
  /raw:
    post:
      operationId: putRaw
      requestBody: {content: {application/octet-stream: {}}}
  /search:
    post:
      operationId: search
      requestBody:
        required: true
        content:
          application/json:
            schema:
              oneOf:
                - {type: object, required: [text], properties: {text: {type: string}}}
                - {type: object, required: [ids], properties: {ids: {type: array, items: *limits}}}
components:
  schemas:
    Named: {required: [title], properties: {title: {type: string}}}
"""


async def test_files_texts_and_bytes_of_a_document_are_called(defining: DefinitionClient, api: Api) -> None:
    report = await run_import(defining, document=UPLOADS)
    assert report["origin"] == "https://eu.example.com"
    await run_import(defining, document=UPLOADS, server_url=f"{api.url}/v2", apply=True, publish=True)
    async with connect(defining.address, "auto") as client:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        values = {"title": "ä", "file": "YWJj", "file_file_name": "a.pdf", "pictures": ["AA==", "AQ=="], "count": 2}
        await client.call_tool("createFile", values | {"meta": {"a": 1}, "session": "s"})
        await client.call_tool("putNote", {"id": "1", "body": "<a/>"})
        await client.call_tool("putRaw", {"body": "AAEC"})
        await client.call_tool("sendAny", {"body": [None, {"a": 1}]})
        await client.call_tool("search", {"body": {"ids": [1, 2]}})
        wrong = await client.call_tool("search", {"body": {"ids": [101]}})
        late = await client.call_tool("createFile", {"title": "x"})
    assert (wrong.is_error, late.is_error) == (True, True)
    assert sorted(tools["createFile"]["required"]) == ["file", "title"]
    upload, note, raw, anything, search = api.requests
    assert json.loads(anything["body"]) == [None, {"a": 1}]
    assert upload["headers"]["Cookie"] == "session=s"
    for part in (
        b'name="title"\r\n\r\n\xc3\xa4\r\n',
        b'name="file"; filename="a.pdf"\r\nContent-Type: application/pdf\r\n\r\nabc\r\n',
        b'name="pictures"; filename="pictures"\r\nContent-Type: application/octet-stream\r\n\r\n\x00\r\n',
        b'name="count"\r\n\r\n2\r\n',
        b'name="meta"\r\nContent-Type: application/json\r\n\r\n{"a": 1}\r\n',
    ):
        assert part in upload["raw"]
    assert (note["target"], note["headers"]["Content-Type"], note["body"]) == ("/v2/notes/1", "application/xml", "<a/>")
    assert (raw["headers"]["Content-Type"], raw["raw"]) == ("application/octet-stream", b"\x00\x01\x02")
    assert json.loads(search["body"]) == {"ids": [1, 2]}


COLORS, MIX = ["blue", "black", "br own"], {"R": 100, "G": 200}
STYLES: list[tuple[str, str, bool | None, Any, str]] = [
    ("path", "simple", None, COLORS, "blue,black,br%20own"),
    ("path", "simple", True, MIX, "R=100,G=200"),
    ("path", "simple", False, MIX, "R,100,G,200"),
    ("path", "label", False, COLORS, ".blue,black,br%20own"),
    ("path", "label", True, COLORS, ".blue.black.br%20own"),
    ("path", "label", True, MIX, ".R=100.G=200"),
    ("path", "matrix", False, COLORS, ";color=blue,black,br%20own"),
    ("path", "matrix", True, COLORS, ";color=blue;color=black;color=br%20own"),
    ("path", "matrix", True, MIX, ";R=100;G=200"),
    ("query", "form", None, COLORS, "color=blue&color=black&color=br%20own"),
    ("query", "form", False, COLORS, "color=blue,black,br%20own"),
    ("query", "form", None, MIX, "R=100&G=200"),
    ("query", "form", False, MIX, "color=R,100,G,200"),
    ("query", "spaceDelimited", False, COLORS, "color=blue%20black%20br%20own"),
    ("query", "pipeDelimited", False, COLORS, "color=blue%7Cblack%7Cbr%20own"),
    ("query", "deepObject", True, MIX, "color%5BR%5D=100&color%5BG%5D=200"),
    ("header", "simple", None, COLORS, "blue,black,br own"),
    ("header", "simple", None, MIX, "R,100,G,200"),
    ("header", "simple", True, MIX, "R=100,G=200"),
    ("cookie", "form", False, COLORS, "color=blue,black,br%20own"),
    ("cookie", "form", None, "bl;ue", "color=bl%3Bue"),
]


@pytest.mark.faults
async def test_each_style_of_openapi_arrives_as_its_table_says(defining: DefinitionClient, api: Api) -> None:
    kinds = {list: "array", dict: "object", str: "string"}
    paths: dict[str, Any] = {}
    for number, (place, style, explode, value, _) in enumerate(STYLES):
        parameter = {"name": "color", "in": place, "style": style, "schema": {"type": kinds[type(value)]}}
        parameter |= {"required": place == "path"} | ({} if explode is None else {"explode": explode})
        path = f"/p{number}/{'{color}' if place == 'path' else ''}"
        paths[path] = {"get": {"operationId": f"op{number}", "parameters": [parameter]}}
    document = {"openapi": "3.1.0", "info": {"title": "Styles", "version": "1"}, "paths": paths}
    await run_import(defining, document=document, server_url=api.url, apply=True, publish=True)
    async with connect(defining.address, "auto") as client:
        for number, (_, _, _, value, _) in enumerate(STYLES):
            result = await client.call_tool(f"op{number}", {"color": value})
            assert not result.is_error, text_of(result)
    for number, (place, _, _, _, expected) in enumerate(STYLES):
        request = api.requests[number]
        targets = {"path": f"/p{number}/{expected}", "query": f"/p{number}/?{expected}"}
        assert request["target"] == targets.get(place, f"/p{number}/")
        if place in ("header", "cookie"):
            assert request["headers"]["color" if place == "header" else "Cookie"] == expected

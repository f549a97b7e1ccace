"""Bodies, forms and cookies of defined tools at a server."""

import base64
import email.policy
from collections.abc import AsyncGenerator
from email.parser import BytesParser
from typing import Any

import pytest
from aiohttp import web

from tests.tools_server.conftest import connect, serve_tools, text_of
from tests.tools_server.definitions import Api, DefinitionClient, arguments, open_client, serve_api

BYTES = bytes(range(256))


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    async with serve_api() as api:
        yield api


@pytest.fixture
async def defining(database_url: str) -> AsyncGenerator[DefinitionClient]:
    options = {"tools_private_targets": ("127.0.0.1:*",), "tools_encryption_key": "a-key-of-the-tests-of-bodies"}
    async with serve_tools(database_url=database_url, **options) as address, open_client(address) as client:
        yield client


async def call(defining: DefinitionClient, tool: str, /, **values: Any) -> Any:
    async with connect(defining.address, "auto") as client:
        return await client.call_tool(tool, values)


def parse_multipart(request: dict[str, Any]) -> list[tuple[str, str | None, str | None, bytes]]:
    """Return name, file name, media type and content of each part."""
    head = f"Content-Type: {request['headers']['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + request["raw"])
    assert not message.defects
    return [
        (
            str(part.get_param("name", header="content-disposition")),
            part.get_filename(),
            part.get_content_type() if part["Content-Type"] else None,
            part.get_payload(decode=True) or b"",
        )
        for part in message.iter_parts()  # pyright: ignore[reportAttributeAccessIssue]
    ]


async def test_multipart_form_has_texts_lists_json_and_files(defining: DefinitionClient, api: Api) -> None:
    await defining.define(
        "upload", f"{api.url}/upload", method="POST", form_type="multipart",
        input_schema=arguments(file=None, name=None, tags={"type": "array"}, meta={"type": "object"}, note=None),
        form=[
            {"name": "file", "argument": "file", "base64": True, "file_name": "{name}", "media_type": "image/png"},
            {"name": "tags", "argument": "tags"},
            {"name": "joined", "argument": "tags", "explode": False},
            {"name": "meta", "argument": "meta", "style": "json"},
            {"name": "note", "argument": "note"},
            {"name": "key", "value": "{secret.key}"},
            {"name": "fixed", "value": "1"},
        ],
        secrets={"key": "a-secret-key"},
    )  # fmt: skip
    values = {"file": base64.b64encode(BYTES).decode(), "name": "pic.png", "tags": ["a", "b"], "meta": {"ä": [1]}}
    result = await call(defining, "upload", **values)
    assert not result.is_error, text_of(result)
    assert parse_multipart(api.requests[0]) == [
        ("file", "pic.png", "image/png", BYTES),
        ("tags", None, None, b"a"),
        ("tags", None, None, b"b"),
        ("joined", None, None, b"a,b"),
        ("meta", None, "application/json", '{"ä": [1]}'.encode()),
        ("key", None, None, b"a-secret-key"),
        ("fixed", None, None, b"1"),
    ]
    await call(defining, "upload", file="")
    assert parse_multipart(api.requests[1])[0] == ("file", "file", "image/png", b"")


async def test_argument_cannot_leave_its_part(defining: DefinitionClient, api: Api) -> None:
    await defining.define(
        "upload", f"{api.url}/", method="POST", form_type="multipart", input_schema=arguments(text=None, name=None),
        form=[{"name": "a", "argument": "text", "file_name": "{name}"}, {"name": "role", "value": "user"}],
    )  # fmt: skip
    attack = 'x\r\n--{b}\r\nContent-Disposition: form-data; name="role"\r\n\r\nadmin'
    name = 'x"; name="role"\r\nX-Evil: 1\r\n\r\nadmin'
    assert not (await call(defining, "upload", text=attack, name=name)).is_error
    boundary = api.requests[0]["headers"]["Content-Type"].partition("boundary=")[2]
    await call(defining, "upload", text=attack.replace("{b}", boundary), name=name)
    for request in api.requests:
        parts = parse_multipart(request)
        assert [part[0] for part in parts] == ["a", "role"]
        assert parts[1][3] == b"user"
        assert b"X-Evil" not in request["raw"].split(b"\r\n")
    assert boundary not in api.requests[1]["headers"]["Content-Type"]  # nobody can know the next one


async def test_texts_and_bytes_are_sent_as_they_are(defining: DefinitionClient, api: Api) -> None:
    text = '<note to="ä">&amp;</note>\n'
    await defining.define(
        "send_xml", f"{api.url}/xml", method="PUT", input_schema=arguments("body", body=None), body="{body}",
        body_format="text", headers={"Content-Type": "application/xml"},
    )  # fmt: skip
    await defining.define(
        "send_bytes", f"{api.url}/raw", method="POST", input_schema=arguments(body=None), body="{body}",
        body_format="base64",
    )  # fmt: skip
    await call(defining, "send_xml", body=text)
    await call(defining, "send_bytes", body=base64.b64encode(BYTES).decode())
    await call(defining, "send_bytes")
    wrong = await call(defining, "send_bytes", body="not base64!")
    assert (wrong.is_error, "base64" in text_of(wrong)) == (True, True)
    assert [request["raw"] for request in api.requests] == [text.encode(), BYTES, b""]
    types = [request["headers"].get("Content-Type") for request in api.requests[:2]]
    assert types == ["application/xml", "application/octet-stream"]


async def test_absent_cookies_are_left_out_one_by_one(defining: DefinitionClient, api: Api) -> None:
    await defining.define(
        "visit", f"{api.url}/", input_schema=arguments(a=None, b=None), headers={"Cookie": "a={a}; b={b}; c=1"}
    )
    await defining.define("quiet", f"{api.url}/", input_schema=arguments(a=None), headers={"Cookie": "a={a}"})
    await call(defining, "visit", b="x; c=2")
    await call(defining, "quiet")
    assert [request["headers"].get("Cookie") for request in api.requests] == ["b=x%3B%20c%3D2; c=1", None]


async def test_large_body_is_refused_before_it_is_sent(defining: DefinitionClient, api: Api) -> None:
    await defining.define(
        "send", f"{api.url}/", method="POST", input_schema=arguments(body=None), body="{body}{body}", body_format="text"
    )
    assert (await call(defining, "send", body="x" * 600_000)).is_error
    assert api.requests == []


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({"form_type": "multipart"}, "form_type"),
    ({"body": {"a": 1}, "body_format": "text"}, "body"),
    ({"body": "{q}", "form": [{"name": "a", "value": "1"}]}, "form"),
    ({"form": [{"name": "a", "argument": "q", "base64": True}]}, "form.0"),
    ({"query": [{"name": "a", "argument": "q", "file_name": "x"}]}, "query.0"),
    ({"form_type": "multipart", "form": [{"name": "a", "argument": "q", "style": "deepObject"}]}, "form.0"),
    ({"form_type": "multipart", "form": [{"name": "a", "argument": "q", "media_type": "a/b\r\nX: y"}]}, "form.0"),
    ({"form_type": "multipart", "form": [{"name": "a", "argument": "none"}]}, "form"),
    (
        {"form_type": "multipart", "form": [], "headers": {"content-type": "multipart/form-data"}},
        "headers.Content-Type",
    ),
]


async def test_bodies_that_make_no_sense_are_refused_with_their_field(defining: DefinitionClient) -> None:
    good = {"name": "t", "description": "d", "method": "POST", "url": "https://x.example/"}
    for change, field in BAD_BODIES:
        status, body = await defining.send("POST", "", good | {"input_schema": arguments(q=None)} | change)
        assert (status, body["error"]["param"]) == (422, field), (change, body)


async def test_answer_that_is_not_text_is_named_only(defining: DefinitionClient, api: Api) -> None:
    api.answer = lambda _: web.Response(body=BYTES, content_type="image/png")
    await defining.define("picture", f"{api.url}/")
    assert text_of(await call(defining, "picture")) == "[256 bytes of image/png, not shown]"

"""Tests of undeclared JSON bodies, last slashes and language codes."""

import json
from typing import Any

import pytest
from yarl import URL

from tests.auth_helpers import Keyring
from tests.stack import Gateway

CHAT = {"messages": [{"role": "user", "content": "What is 23*19?"}]}
BODIES: dict[str, Any] = {
    "/api/v1/chat": CHAT,
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "What is 23*19?"},
    "/stream": {"prompt": "What is 23*19?"},
    "/api/chat/stream": {"user_prompt": "What is 23*19?"},
    "/api/ada/chat": {"message": "What is 23*19?"},
    "/api/v1/tools/calculator": {"expression": "23*19"},
}
FORM = "application/x-www-form-urlencoded"


async def post(gateway: Gateway, path: str, data: bytes, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.session.post(
        URL(f"{gateway.base_url}{path}", encoded=True), data=data, headers=named, skip_auto_headers=["Content-Type"]
    ) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("content_type", [None, FORM, f"{FORM}; charset=utf-8", "text/plain;charset=UTF-8", ""])
async def test_json_is_read_whatever_a_program_declares(shared_gateway: Gateway, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content_Type": content_type}
    for path, body in BODIES.items():
        for data in (json.dumps(body).encode(), b" \r\n\t" + json.dumps(body, indent=1).encode()):
            status, text = await post(shared_gateway, path, data, **headers)
            assert (status, "437" in text) == (200, True), (path, text)


@pytest.mark.parametrize("data", [b"{oops", b"{"])
async def test_undeclared_body_that_is_not_json_is_a_422(shared_gateway: Gateway, data: bytes) -> None:
    status, text = await post(shared_gateway, "/api/v1/chat", data)
    assert (status, json.loads(text)["error"]["message"]) == (422, "The body is not valid JSON.")


@pytest.mark.parametrize("data", [b"prompt=hello", b"", b"hello"])
async def test_form_without_json_is_a_422(shared_gateway: Gateway, data: bytes) -> None:
    assert (await post(shared_gateway, "/api/v1/chat", data, Content_Type=FORM))[0] == 422


@pytest.mark.parametrize("content_type", [FORM, "text/plain", None])
async def test_page_of_another_origin_gains_nothing_by_it(shared_gateway: Gateway, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content_Type": content_type}
    for origin in ("https://evil.example", "null"):
        for path, body in BODIES.items():
            status, text = await post(shared_gateway, path, json.dumps(body).encode(), Origin=origin, **headers)
            assert (status, "437" in json.loads(text)["error"]["message"]) == (403, False), (path, text)


async def test_mcp_still_requires_a_declared_body(shared_gateway: Gateway) -> None:
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    for content_type in (FORM, "text/plain"):
        status, _ = await post(shared_gateway, "/mcp", message, Content_Type=content_type)
        assert status in (400, 415)


async def test_last_slash_is_the_same_path(shared_gateway: Gateway) -> None:
    for path, body in BODIES.items():
        status, text = await post(shared_gateway, f"{path}/", json.dumps(body).encode())
        assert (status, "437" in text) == (200, True), (path, text)
    for path in (
        "/health/",
        "/ready/",
        "/docs/",
        "/openapi.json/",
        "/api/v1/models/",
        "/v1/models/openai/gpt-oss-120b/",
        "/api/v1/history/?limit=1",
        "/history/?limit=1&offset=0",
        "/search/?query=x",
        "/api/v1/conversations//",
    ):
        assert (await get_status(shared_gateway, path)) == (await get_status(shared_gateway, remove_slash(path))), path
        assert (await get_status(shared_gateway, path))[0] == 200, path


async def get_status(gateway: Gateway, path: str) -> tuple[int, str | None]:
    async with gateway.session.get(f"{gateway.base_url}{path}") as response:
        await response.read()
        return response.status, response.headers.get("content-security-policy")


def remove_slash(path: str) -> str:
    name, separator, query = path.partition("?")
    return name.rstrip("/") + separator + query


async def test_last_slash_changes_no_permission_and_finds_no_other_path(keyring: Keyring) -> None:
    for path in ("/api/v1/chat/", "/api/v1/history/", "/api/v1/admin/stats//", "/mcp/"):
        assert (await keyring.gateway.get(path)).status == 401
    assert (await keyring.gateway.get("/no/such/path/")).status == 401
    assert (await keyring.gateway.get("/health/")).status == 200


@pytest.mark.parametrize("lang", ["en", "EN", "en-US", "en_GB", "english", "English"])
async def test_language_code_is_its_text_search_configuration(gateway: Gateway, lang: str) -> None:
    await gateway.chat("The foxes were jumping")
    for path in ("/search", "/api/v1/search"):
        found = (await gateway.get(f"{path}?query=jump+fox&lang={lang}")).body["items"]
        assert [item["prompt"] for item in found] == ["The foxes were jumping"]


@pytest.mark.parametrize(("lang", "status"), [("de", 200), ("fr", 200), ("simple", 200), ("tlh", 422), ("", 422)])
async def test_unknown_language_is_a_422_that_lists_the_known_ones(
    shared_gateway: Gateway, lang: str, status: int
) -> None:
    reply = await shared_gateway.get(f"/search?query=foobar&limit=10&offset=0&lang={lang}")
    assert reply.status == status
    assert status == 200 or ("english" in reply.body["error"]["message"] and reply.body["error"]["param"] == "lang")

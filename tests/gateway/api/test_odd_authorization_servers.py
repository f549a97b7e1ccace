"""Sign-ins at authorization servers that differ from the standards in small ways."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.mcp_client.oauth.sign_in import MAX_CALL_SIGN_INS
from tests.conftest import ServeSharedGateway
from tests.eventually import eventually
from tests.gateway.api.test_sign_in import Browser
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.odd_oauth_server import CLIENTS, OddOAuthServer
from tests.stack import Gateway, find_free_port, serve_asgi

Servers = tuple[Gateway, OddOAuthServer]
ENTRIES: dict[str, dict[str, Any]] = {
    kind: {"client_id": name, "client_secret": secret} for kind, (name, secret) in CLIENTS.items()
}
ENTRIES["basic_by_entry"]["token_endpoint_auth_method"] = "client_secret_basic"
USABLE = [
    *CLIENTS,
    "secret_basic",
    "secret_no_method",
    "secret_post_only",
    "secret_empty_method",
    "null_registration",
    "no_methods",
    "empty_methods",
    "null_metadata",
    "query",
    "slash_in_issuer",
    "slash_in_resource",
    "slash_in_answer",
    "form_unless_json",
    "always_form",
    "expires_text",
    "expires_fraction",
    "expires_null",
    "expires_never",
    "expires_huge",
    "expires_word",
    "type_lower",
    "type_null",
    "scope_list",
    "scope_commas",
    "scope_empty",
    "refresh_empty",
    "refresh_null",
    "error_null",
    "not_rotated",
]
REFUSED = {
    "other_issuer": "issuer mismatch",
    "wrong_answer": "iss mismatch",
    "unknown_type": "did not give a token",
}


@pytest.fixture(scope="module")
async def servers(
    serve_shared_gateway: ServeSharedGateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Servers]:
    """A gateway beside the odd servers. Each test adds its own one."""
    port, gateway_port = find_free_port(), find_free_port()
    server = OddOAuthServer(port)
    settings = {"gateway_data_dir": tmp_path_factory.mktemp("odd"), "mcp_server_url": "http://127.0.0.1:9/mcp"}
    async with serve_asgi(server.create_app(), port):
        gateway = await serve_shared_gateway(
            port=gateway_port, gateway_public_url=f"http://127.0.0.1:{gateway_port}", **settings
        )
        yield gateway, server


@asynccontextmanager
async def added(servers: Servers, kind: str, **fields: Any) -> AsyncGenerator[None]:
    """Add the server of a kind for a block."""
    gateway, server = servers
    oauth = {"oauth": ENTRIES[kind]} if kind in ENTRIES else {}
    body = {"name": kind, "url": f"{server.origin}/{kind}/mcp", **oauth, **fields}
    reply = await gateway.post("/api/v1/mcp/servers", body)
    assert reply.status == 201, reply.body
    yield
    async with gateway.session.delete(f"{gateway.base_url}/api/v1/mcp/servers/{kind}") as response:
        assert response.status == 204


async def sign_in(gateway: Gateway, name: str) -> tuple[int, str]:
    reply = await gateway.post(f"/api/v1/mcp/servers/{name}/sign-in", {})
    assert reply.status == 200, reply.body
    return await Browser(gateway.session).open("POST", reply.body["url"])


async def call_tool(gateway: Gateway, name: str) -> str:
    """Call a server's tool, and return the text of its result."""

    await eventually(lambda: gateway.state.toolbox.find_tool(f"{name}_open"))
    reply = await gateway.post(f"/api/v1/tools/{name}_open", {})
    return json.dumps(reply.body)


@pytest.mark.parametrize("kind", USABLE)
async def test_sign_in_call_and_refresh_work(servers: Servers, kind: str) -> None:
    gateway, server = servers
    async with added(servers, kind):
        status, page = await sign_in(gateway, kind)
        assert (status, "Signed in" in page) == (200, True), page
        assert f"the vault of {kind}" in await call_tool(gateway, kind)
        if not kind.startswith("refresh_"):
            for _ in range(2):
                server.revoke_access(kind)
                assert f"the vault of {kind}" in await call_tool(gateway, kind)
    first, *later = server.token_requests[kind]
    assert first[0]["grant_type"] == "authorization_code"
    assert all(form["grant_type"] == "refresh_token" for form, _, _ in later)
    assert len(later) == (0 if kind.startswith("refresh_") else 2)
    assert {authorization for _, authorization, _ in later} <= {first[1]}
    assert {accept for _, _, accept in (first, *later)} == {"application/json"}


@pytest.mark.parametrize("kind", REFUSED)
async def test_sign_in_is_refused_for_a_reason(servers: Servers, kind: str) -> None:
    async with added(servers, kind):
        status, page = await sign_in(servers[0], kind)
    assert (status, REFUSED[kind] in page) == (502, True), page


async def test_error_with_status_200_at_refresh_asks_for_a_new_sign_in(servers: Servers) -> None:
    """GitHub answers like this."""
    gateway, server = servers
    async with added(servers, "error_200"):
        assert (await sign_in(gateway, "error_200"))[0] == 200
        assert "the vault" in await call_tool(gateway, "error_200")
        server.revoke_access("error_200")
        reply = await gateway.post("/api/v1/tools/error_200_open", {})
        assert "Sign in to error_200" in json.dumps(reply.body)
    assert len(server.token_requests["error_200"]) == 2


async def test_sign_in_after_a_refused_call_asks_for_its_scopes_too(servers: Servers) -> None:
    gateway, server = servers
    async with added(servers, "step_up", oauth={"client_id": "cid", "scope": "read"}):
        assert (await sign_in(gateway, "step_up"))[0] == 200
        assert "the vault" in await call_tool(gateway, "step_up")
        server.step_up["step_up"] = "write admin"
        assert "Sign in to step_up" in await call_tool(gateway, "step_up")
        assert (await sign_in(gateway, "step_up"))[0] == 200
        assert "the vault" in await call_tool(gateway, "step_up")
        assert (await sign_in(gateway, "step_up"))[0] == 200
    scopes = [request["scope"].split() for request in server.authorize_requests["step_up"]]
    assert scopes == [["read"], ["read", "write", "admin"], ["read"]]


async def test_call_asks_for_few_sign_ins_if_the_server_accepts_none(servers: Servers) -> None:
    """The server accepts each token, but not for calls."""
    gateway, server = servers
    async with added(servers, "refusing"):
        assert (await sign_in(gateway, "refusing"))[0] == 200
        await eventually(lambda: gateway.state.toolbox.find_tool("refusing_open"))
        server.refused_calls.add("refusing")
        reply = await gateway.chat_stream("call refusing_open {}")
        turn, answered = f"/api/v1/turns/{reply.headers['x-turn-id']}", list[str]()

        async def find_question() -> dict[str, Any] | str | None:
            view = (await gateway.get(turn)).body
            new = [question for question in view["inputs"] if question["id"] not in answered]
            return new[0] if new else view["status"] if view["status"] in ("completed", "failed") else None

        while isinstance(question := await eventually(find_question), dict):
            answered.append(question["id"])
            assert len(answered) <= MAX_CALL_SIGN_INS
            assert (await Browser(gateway.session).open("POST", question["question"]["url"]))[0] == 200
    assert (question, len(answered)) == ("completed", MAX_CALL_SIGN_INS)
    results = [event.data for event in await read_turn_events(gateway, turn.rpartition("/")[2])]
    assert ["refuses the credentials" in json.dumps(result) for result in results].count(True) >= 1


async def test_issuer_that_differs_by_a_slash_is_refused_if_strict(
    serve_shared_gateway: ServeSharedGateway, servers: Servers, tmp_path: Path
) -> None:
    port = find_free_port()
    settings = {"gateway_data_dir": tmp_path, "mcp_oauth_strict_issuer": True}
    gateway = await serve_shared_gateway(port=port, gateway_public_url=f"http://127.0.0.1:{port}", **settings)
    for kind in ("slash_in_issuer", "slash_in_resource", "slash_in_answer"):
        async with added((gateway, servers[1]), kind):
            status, page = await sign_in(gateway, kind)
        assert (status, "issuer mismatch" in page) == (502, True), page

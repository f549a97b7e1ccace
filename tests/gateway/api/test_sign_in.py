"""MCP servers with OAuth: a turn waits while its user signs in."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from gateway.domain.messages import PendingInput, Principal, ToolResult
from gateway.ports.tools import ToolCallRequest
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import read_turn_events
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, find_free_port, serve_asgi, serve_gateway

ADA, BOB = Principal("ada"), Principal("bob")
Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
async def protected_server() -> AsyncGenerator[OAuthMcpServer]:
    port = find_free_port()
    server = OAuthMcpServer(port)
    async with serve_asgi(server.create_app(), port):
        yield server


@pytest.fixture
def serve(database_url: str, simulator: Simulator, protected_server: OAuthMcpServer, tmp_path: Path) -> Serve:
    """Serve gateways whose only MCP server is the protected one."""

    @asynccontextmanager
    async def serve_with_entry(public_port: int = 0, **entry: Any) -> AsyncGenerator[Gateway]:
        port = find_free_port()
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": {"vault": {"url": protected_server.url, **entry}}}))
        settings = {"gateway_public_url": f"http://127.0.0.1:{public_port or port}", "gateway_data_dir": tmp_path}
        async with serve_gateway(database_url, simulator, None, port=port, mcp_config=file, **settings) as gateway:
            yield gateway

    return serve_with_entry


class Browser:
    """Follows redirects with its own cookies, up to the next page."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.cookies: dict[str, str] = {}

    async def open(self, method: str, url: str, *, follow: bool = True) -> tuple[int, str]:
        while True:
            headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
            request_headers = headers if "/api/v1/" in url else {}
            if method == "POST":
                request_headers = request_headers | {"Origin": "{0.scheme}://{0.netloc}".format(urlsplit(url))}
            async with self._session.request(method, url, headers=request_headers, allow_redirects=False) as response:
                for line in response.headers.getall("Set-Cookie", []):
                    self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
                if response.status not in (302, 303) or not follow:
                    return response.status, response.headers.get("Location") or await response.text()
                method, url = "GET", response.headers["Location"]

    async def sign_in(self, url: str) -> tuple[int, str]:
        """Open the sign-in page, submit its form, and consent."""
        status, page = await self.open("GET", url)
        assert (status, "Sign in to vault?" in page) == (200, True), page
        return await self.open("POST", url)


async def call_protected_tool(gateway: Gateway, principal: Principal) -> Any:
    spec = gateway.state.toolbox.find_tool("vault_whose_vault")
    assert spec is not None
    return await gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, principal))


def get_text(result: ToolResult | PendingInput) -> str:
    assert isinstance(result, ToolResult), result
    return str(result.content[0]["text"])


async def sign_in_as_admin(gateway: Gateway) -> None:
    """Sign in as an administrator, and wait for the server's tools."""
    reply = await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})
    assert reply.status == 200, reply.body
    status, page = await Browser(gateway.session).sign_in(reply.body["url"])
    assert (status, "Signed in" in page) == (200, True), page
    await eventually(lambda: gateway.state.toolbox.find_tool("vault_whose_vault"))


async def get_connected_server(gateway: Gateway) -> Any:
    """Return the server once its first connection attempt ended, else `None`."""
    server = (await gateway.get("/api/v1/mcp/servers")).body["servers"][0]
    return server if server["state"] != "connecting" else None


@pytest.mark.parametrize("share", ["user", "all"])
async def test_turn_asks_for_sign_in_and_resumes_afterwards(serve: Serve, share: str) -> None:
    async with serve(share=share) as gateway:
        server = await eventually(lambda: get_connected_server(gateway))
        assert server["state"] == "needs_auth"
        reply = await gateway.chat_stream("call vault_sign_in {}")
        assert reply.get_event_data("input.required"), reply.events
        question = reply.get_event_data("input.required")[0]
        assert (question["kind"], reply.events[-1].type) == ("authorization", "stream.closing")
        status, _ = await Browser(gateway.session).sign_in(question["url"])
        assert status == 200
        events = await read_turn_events(gateway, reply.headers["x-turn-id"])
        event_types = [event.type for event in events]
        assert event_types[-2:] == ["turn.completed", None] or event_types[-1] == "turn.completed", event_types
        (result,) = [event.data for event in events if event.type == "tool.result"]
        assert result["outcome"] == "ok", result
        assert "vault_whose_vault" in result["content"][0]["text"]
        second_reply = await gateway.chat_stream("call vault_whose_vault {}")
        assert second_reply.get_event_data("tool.result")[0]["content"][0]["text"].startswith("the vault of")


async def test_declined_sign_in_denies_the_call(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        reply = await gateway.chat_stream("call vault_sign_in {}")
        turn_id, question = reply.headers["x-turn-id"], reply.get_event_data("input.required")[0]
        body = {"input_id": question["input_id"], "action": "decline"}
        assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
        events = await read_turn_events(gateway, turn_id)
        assert [event.data["outcome"] for event in events if event.type == "tool.result"] == ["denied"]


async def test_users_sign_in_separately_without_shared_connections(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        await sign_in(gateway, ADA)
        ada_text = get_text(await call_protected_tool(gateway, ADA))
        assert isinstance(await call_protected_tool(gateway, BOB), PendingInput)
        await sign_in(gateway, BOB)
        assert get_text(await call_protected_tool(gateway, BOB)) != ada_text


async def sign_in(gateway: Gateway, principal: Principal) -> None:
    url = await gateway.state.toolbox.sign_in.create_sign_in_url("vault", principal)
    status, page = await Browser(gateway.session).sign_in(url)
    assert status == 200, page
    spec = gateway.state.toolbox.find_tool("vault_sign_in") or gateway.state.toolbox.find_tool("vault_whose_vault")
    assert spec is not None
    assert isinstance(await gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, principal)), ToolResult)


async def test_only_an_admin_is_asked_to_sign_in_to_a_shared_server(serve: Serve) -> None:
    async with serve() as gateway:
        spec = gateway.state.toolbox.find_tool("vault_sign_in")
        assert spec is not None
        result = await gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, ADA))
        assert isinstance(result, ToolResult)
        assert result.outcome == "error"
        admin = await gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, Principal("eve", role="admin")))
        assert isinstance(admin, PendingInput)


async def test_revoked_access_token_is_refreshed_during_the_call(
    serve: Serve, protected_server: OAuthMcpServer
) -> None:
    async with serve() as gateway:
        await sign_in_as_admin(gateway)
        protected_server.revoke_access()
        assert get_text(await call_protected_tool(gateway, ADA)).startswith("the vault of")
        assert protected_server.refreshed == 1


async def test_expiring_token_is_refreshed_once_across_workers(serve: Serve, protected_server: OAuthMcpServer) -> None:
    protected_server.lifetime = 30  # seconds; the gateway refreshes tokens before they are this close to expiry
    async with serve() as first, serve() as second:
        await sign_in_as_admin(first)
        for gateway in (first, second):
            await eventually(lambda gateway=gateway: gateway.state.toolbox.find_tool("vault_whose_vault"))  # type: ignore[misc]
        protected_server.lifetime, refreshes_before = 3600, protected_server.refreshed
        for _ in range(2):  # the first calls may use the token of a refresh that was under way
            calls = [call_protected_tool(gateway, ADA) for gateway in (first, second) for _ in range(5)]
            assert {get_text(result).split(" of ")[0] for result in await asyncio.gather(*calls)} == {"the vault"}
        assert protected_server.refreshed - refreshes_before == 1


async def test_client_unknown_to_the_authorization_server_registers_again(
    serve: Serve, protected_server: OAuthMcpServer
) -> None:
    async with serve(share="user") as gateway:
        await sign_in(gateway, ADA)
        (client_before,) = protected_server.clients
        protected_server.clients.clear()
        protected_server.revoke_access()
        pending = await call_protected_tool(gateway, ADA)
        assert isinstance(pending, PendingInput)
        url = pending.questions[0].url
        assert url is not None
        assert (await Browser(gateway.session).sign_in(url))[0] == 200
        assert client_before not in get_text(await call_protected_tool(gateway, ADA))


async def test_denied_consent_is_reported_on_the_callback_page(serve: Serve, protected_server: OAuthMcpServer) -> None:
    protected_server.deny = True
    async with serve() as gateway:
        reply = await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})
        status, page = await Browser(gateway.session).sign_in(reply.body["url"])
        assert status >= 400
        assert "access_denied" in page


async def test_callback_with_wrong_cookie_or_state_is_rejected(serve: Serve) -> None:
    async with serve() as gateway:
        url = (await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
        browser = Browser(gateway.session)
        _, consent = await browser.open("POST", url, follow=False)
        _, callback = await browser.open("GET", consent, follow=False)
        assert (await Browser(gateway.session).open("GET", callback))[0] == 404
        forged_callback = callback.replace("state=", "state=x")
        assert (await browser.open("GET", forged_callback))[0] == 404
        status, _ = await Browser(gateway.session).sign_in(url)
        assert status == 200


async def test_callback_is_accepted_by_another_worker(serve: Serve) -> None:
    async with serve() as first:
        port = urlsplit(first.base_url).port
        assert port is not None
        async with serve(public_port=port) as second:
            url = (await second.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
            browser = Browser(second.session)
            second_worker_url = url.replace(first.base_url, second.base_url)
            _, consent = await browser.open("POST", second_worker_url, follow=False)
            status, page = await browser.open("GET", consent)
            assert (status, "Signed in" in page) == (200, True), page


async def test_sign_in_restarted_on_another_worker_replaces_the_first(serve: Serve) -> None:
    async with serve() as first:
        port = urlsplit(first.base_url).port
        assert port is not None
        async with serve(public_port=port) as second:
            url = (await first.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
            second_worker_url = url.replace(first.base_url, second.base_url)
            for _ in range(3):
                assert (await Browser(first.session).open("POST", url, follow=False))[0] in (302, 303)
                browser = Browser(second.session)
                _, consent = await browser.open("POST", second_worker_url, follow=False)
            status, page = await browser.open("GET", consent)
            assert (status, "Signed in" in page) == (200, True), page
            assert (await second.state.audit.list_entries(action="login.failed", limit=5)).items == []


async def test_tokens_are_encrypted_in_the_database(
    serve: Serve, protected_server: OAuthMcpServer, db: asyncpg.Connection
) -> None:
    async with serve() as gateway:
        await sign_in_as_admin(gateway)
        (row,) = await db.fetch("SELECT sealed FROM oauth_grants")
        assert not any(
            token.encode() in row["sealed"] for token in [*protected_server.access, *protected_server.refresh]
        )
        rows_text = json.dumps([str(dict(row)) for row in await db.fetch("SELECT * FROM oauth_logins")])
        assert not any(token in rows_text for token in [*protected_server.access, *protected_server.refresh])
        assert await db.fetchval("SELECT count(*) FROM audit_log WHERE action = 'login.granted'") == 1


async def test_sign_out_requires_a_new_sign_in(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        await sign_in(gateway, ADA)
        for _ in range(2):
            await gateway.state.toolbox.sign_in.sign_out("vault", ADA)
        assert isinstance(await call_protected_tool(gateway, ADA), PendingInput)
        audit_entries = [
            (row.actor, row.action, row.subject) for row in (await gateway.state.audit.list_entries(limit=9)).items
        ]
        assert audit_entries == [("ada", "login.forgotten", "server vault"), ("ada", "login.granted", "server vault")]


@pytest.mark.parametrize("share", ["user", "all"])
async def test_list_of_servers_tells_whether_the_caller_is_signed_in(serve: Serve, share: str) -> None:
    async with serve(share=share) as gateway:

        async def is_signed_in() -> Any:
            servers = (await gateway.get("/api/v1/mcp/servers")).body["servers"]
            return next(server["signed_in"] for server in servers if server["name"] == "vault")

        assert await is_signed_in() is False
        if share == "user":
            await sign_in(gateway, ADA)
            assert await is_signed_in() is False  # another user's token
        await sign_in_as_admin(gateway)
        assert await is_signed_in() is True
        url = f"{gateway.base_url}/api/v1/mcp/servers/vault/sign-in"
        async with gateway.session.delete(url) as response:
            assert response.status == 204
        assert await is_signed_in() is False
        if share == "user":
            assert not isinstance(await call_protected_tool(gateway, ADA), PendingInput)


async def test_server_with_a_configured_credential_rejects_sign_in(serve: Serve) -> None:
    async with serve(headers={"Authorization": "Bearer wrong"}) as gateway:
        assert (await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})).status == 409
        assert (await gateway.post("/api/v1/mcp/servers/unknown/sign-in", {})).status == 404
        assert (await gateway.get("/api/v1/mcp/servers")).body["servers"][0]["signed_in"] is None
        assert gateway.state.toolbox.list_specs() == ()

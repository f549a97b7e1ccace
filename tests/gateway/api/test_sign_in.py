"""OAuthMcpServer MCP servers: a turn asks its user to sign in, a browser does, the turn goes on."""

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
from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.api.test_turns import events_of
from tests.gateway.mcp_client.oauth_server import OAuthMcpServer
from tests.stack import Gateway, free_port, serve_asgi, serve_gateway

ADA, BOB = Principal("ada"), Principal("bob")
Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
async def vault() -> AsyncGenerator[OAuthMcpServer]:
    port = free_port()
    server = OAuthMcpServer(port)
    async with serve_asgi(server.create_app(), port):
        yield server


@pytest.fixture
def serve(database_url: str, simulator: Simulator, vault: OAuthMcpServer, tmp_path: Path) -> Serve:
    """Gateways in front of the vault."""

    @asynccontextmanager
    async def serving(public_port: int = 0, **entry: Any) -> AsyncGenerator[Gateway]:
        port = free_port()
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": {"vault": {"url": vault.url, **entry}}}))
        settings = {"gateway_public_url": f"http://127.0.0.1:{public_port or port}", "gateway_data_dir": tmp_path}
        async with serve_gateway(database_url, simulator, None, port=port, mcp_config=file, **settings) as gateway:
            yield gateway

    return serving


class Browser:
    """Follows redirects with its own cookies, as far as a person has to look."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.cookies: dict[str, str] = {}

    async def open(self, method: str, url: str, *, follow: bool = True) -> tuple[int, str]:
        while True:
            headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
            own = headers if "/api/v1/" in url else {}
            if method == "POST":
                own = own | {"Origin": "{0.scheme}://{0.netloc}".format(urlsplit(url))}
            async with self._session.request(method, url, headers=own, allow_redirects=False) as response:
                for line in response.headers.getall("Set-Cookie", []):
                    self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
                if response.status not in (302, 303) or not follow:
                    return response.status, response.headers.get("Location") or await response.text()
                method, url = "GET", response.headers["Location"]

    async def sign_in(self, url: str) -> tuple[int, str]:
        """Read the page, press its button, consent."""
        status, page = await self.open("GET", url)
        assert (status, "Sign in to vault?" in page) == (200, True), page
        return await self.open("POST", url)


async def whose(gateway: Gateway, principal: Principal) -> Any:
    spec = gateway.state.toolbox.find("vault_whose_vault")
    assert spec is not None
    return await gateway.state.toolbox.call(spec, {}, principal=principal)


def told(result: ToolResult | PendingInput) -> str:
    assert isinstance(result, ToolResult), result
    return str(result.content[0]["text"])


async def signed_in(gateway: Gateway) -> None:
    """An administrator has signed in, and the server's tools are there."""
    reply = await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})
    assert reply.status == 200, reply.body
    status, page = await Browser(gateway.session).sign_in(reply.body["url"])
    assert (status, "Signed in" in page) == (200, True), page
    await eventually(lambda: gateway.state.toolbox.find("vault_whose_vault"))


async def tried_server(gateway: Gateway) -> Any:
    """The one server, once it has been tried."""
    server = (await gateway.get("/api/v1/mcp/servers")).body["servers"][0]
    return server if server["state"] != "connecting" else None


@pytest.mark.parametrize("share", ["user", "all"])
async def test_turn_asks_for_sign_in_and_resumes_afterwards(serve: Serve, share: str) -> None:
    async with serve(share=share) as gateway:
        server = await eventually(lambda: tried_server(gateway))
        assert server["state"] == "needs_auth"
        reply = await gateway.chat_stream("call vault_sign_in {}")
        assert reply.of("input.required"), reply.events
        asked = reply.of("input.required")[0]
        assert (asked["kind"], reply.events[-1].type) == ("authorization", "stream.closing")
        status, _ = await Browser(gateway.session).sign_in(asked["url"])
        assert status == 200
        events = await events_of(gateway, reply.headers["x-turn-id"])
        kinds = [event.type for event in events]
        assert kinds[-2:] == ["turn.completed", None] or kinds[-1] == "turn.completed", kinds
        (result,) = [event.data for event in events if event.type == "tool.result"]
        assert result["outcome"] == "ok", result
        assert "vault_whose_vault" in result["content"][0]["text"]
        again = await gateway.chat_stream("call vault_whose_vault {}")
        assert again.of("tool.result")[0]["content"][0]["text"].startswith("the vault of")


async def test_declined_sign_in_denies_the_call(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        reply = await gateway.chat_stream("call vault_sign_in {}")
        turn_id, asked = reply.headers["x-turn-id"], reply.of("input.required")[0]
        body = {"input_id": asked["input_id"], "action": "decline"}
        assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
        events = await events_of(gateway, turn_id)
        assert [event.data["outcome"] for event in events if event.type == "tool.result"] == ["denied"]


async def test_users_sign_in_separately_without_shared_connections(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        await signed_in_as(gateway, ADA)
        adas = told(await whose(gateway, ADA))
        assert isinstance(await whose(gateway, BOB), PendingInput)
        await signed_in_as(gateway, BOB)
        assert told(await whose(gateway, BOB)) != adas


async def signed_in_as(gateway: Gateway, principal: Principal) -> None:
    url = await gateway.state.toolbox.sign_in.offer("vault", principal)
    status, page = await Browser(gateway.session).sign_in(url)
    assert status == 200, page
    spec = gateway.state.toolbox.find("vault_sign_in") or gateway.state.toolbox.find("vault_whose_vault")
    assert spec is not None
    assert isinstance(await gateway.state.toolbox.call(spec, {}, principal=principal), ToolResult)


async def test_only_an_admin_is_asked_to_sign_in_to_a_shared_server(serve: Serve) -> None:
    async with serve() as gateway:
        spec = gateway.state.toolbox.find("vault_sign_in")
        assert spec is not None
        result = await gateway.state.toolbox.call(spec, {}, principal=ADA)
        assert isinstance(result, ToolResult)
        assert result.outcome == "error"
        admin = await gateway.state.toolbox.call(spec, {}, principal=Principal("eve", role="admin"))
        assert isinstance(admin, PendingInput)


async def test_revoked_access_token_is_refreshed_during_the_call(serve: Serve, vault: OAuthMcpServer) -> None:
    async with serve() as gateway:
        await signed_in(gateway)
        vault.revoke_access()
        assert told(await whose(gateway, ADA)).startswith("the vault of")
        assert vault.refreshed == 1


async def test_expiring_token_is_refreshed_once_across_workers(serve: Serve, vault: OAuthMcpServer) -> None:
    vault.lifetime = 30  # less than the gateway lets a token live on
    async with serve() as first, serve() as second:
        await signed_in(first)
        for gateway in (first, second):
            await eventually(lambda gateway=gateway: gateway.state.toolbox.find("vault_whose_vault"))  # type: ignore[misc]
        vault.lifetime, before = 3600, vault.refreshed
        calls = [whose(gateway, ADA) for gateway in (first, second) for _ in range(5)]
        assert {told(result).split(" of ")[0] for result in await asyncio.gather(*calls)} == {"the vault"}
        assert vault.refreshed - before == 1


async def test_client_unknown_to_the_authorization_server_registers_again(serve: Serve, vault: OAuthMcpServer) -> None:
    async with serve(share="user") as gateway:
        await signed_in_as(gateway, ADA)
        (before,) = vault.clients
        vault.clients.clear()
        vault.revoke_access()
        needed = await whose(gateway, ADA)
        assert isinstance(needed, PendingInput)
        url = needed.questions[0].url
        assert url is not None
        assert (await Browser(gateway.session).sign_in(url))[0] == 200
        assert before not in told(await whose(gateway, ADA))


async def test_denied_consent_is_reported_on_the_callback_page(serve: Serve, vault: OAuthMcpServer) -> None:
    vault.deny = True
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
        forged = callback.replace("state=", "state=x")
        assert (await browser.open("GET", forged))[0] == 404
        status, _ = await Browser(gateway.session).sign_in(url)
        assert status == 200


async def test_callback_is_accepted_by_another_worker(serve: Serve) -> None:
    async with serve() as first:
        port = urlsplit(first.base_url).port
        assert port is not None
        async with serve(public_port=port) as second:
            url = (await second.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
            browser = Browser(second.session)
            begun_elsewhere = url.replace(first.base_url, second.base_url)
            _, consent = await browser.open("POST", begun_elsewhere, follow=False)
            status, page = await browser.open("GET", consent)
            assert (status, "Signed in" in page) == (200, True), page


async def test_sign_in_restarted_on_another_worker_replaces_the_first(serve: Serve) -> None:
    async with serve() as first:
        port = urlsplit(first.base_url).port
        assert port is not None
        async with serve(public_port=port) as second:
            url = (await first.post("/api/v1/mcp/servers/vault/sign-in", {})).body["url"]
            elsewhere = url.replace(first.base_url, second.base_url)
            for _ in range(3):
                assert (await Browser(first.session).open("POST", url, follow=False))[0] in (302, 303)
                browser = Browser(second.session)
                _, consent = await browser.open("POST", elsewhere, follow=False)
            status, page = await browser.open("GET", consent)
            assert (status, "Signed in" in page) == (200, True), page
            assert await second.state.audit.page(action="login.failed", limit=5) == []


async def test_tokens_are_encrypted_in_the_database(
    serve: Serve, vault: OAuthMcpServer, db: asyncpg.Connection
) -> None:
    async with serve() as gateway:
        await signed_in(gateway)
        (row,) = await db.fetch("SELECT sealed FROM oauth_grants")
        assert not any(token.encode() in row["sealed"] for token in [*vault.access, *vault.refresh])
        dump = json.dumps([str(dict(row)) for row in await db.fetch("SELECT * FROM oauth_logins")])
        assert not any(token in dump for token in [*vault.access, *vault.refresh])
        assert await db.fetchval("SELECT count(*) FROM audit_log WHERE action = 'login.granted'") == 1


async def test_sign_out_requires_a_new_sign_in(serve: Serve) -> None:
    async with serve(share="user") as gateway:
        await signed_in_as(gateway, ADA)
        for _ in range(2):
            await gateway.state.toolbox.sign_in.forget("vault", ADA)
        assert isinstance(await whose(gateway, ADA), PendingInput)
        audited = [(row.actor, row.action, row.subject) for row in await gateway.state.audit.page(limit=9)]
        assert audited == [("ada", "login.forgotten", "server vault"), ("ada", "login.granted", "server vault")]


async def test_server_with_a_configured_credential_rejects_sign_in(serve: Serve) -> None:
    async with serve(headers={"Authorization": "Bearer wrong"}) as gateway:
        assert (await gateway.post("/api/v1/mcp/servers/vault/sign-in", {})).status == 409
        assert (await gateway.post("/api/v1/mcp/servers/nobody/sign-in", {})).status == 404
        assert gateway.state.toolbox.specs() == ()

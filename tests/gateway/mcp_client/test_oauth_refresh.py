"""Refreshing of grants: claims in the database, and the time limit."""

import asyncio
import time

import httpx2
import msgspec
import pytest
from aiohttp import web

from gateway.domain.grants import Grant
from gateway.mcp_client.http.pooled_transport import PooledServerTransport
from gateway.mcp_client.http_transport import get_ssl_context
from gateway.mcp_client.oauth import refresh
from gateway.mcp_client.oauth.refresh import GrantRefresher
from gateway.mcp_client.oauth.tokens import AccessTokenProvider, AuthorizedTransport
from gateway.ports.servers import ServerConfig
from gateway.store.database import Database
from gateway.store.encryption import Cipher
from gateway.store.oauth_grants import PostgresGrantStore
from tests.tools_server.conftest import serve_web

SERVER = ServerConfig(name="vault", url="http://127.0.0.1:9/mcp")
KEY = ("vault", "ada", SERVER.url)
CLIENT = {"client_id": "gateway", "token_endpoint_auth_method": "none", "redirect_uris": ["http://127.0.0.1/cb"]}


def make_grant(token_endpoint: str = "http://127.0.0.1:9/token", token: str = "old") -> Grant:
    return Grant(CLIENT, token, f"refresh-{token}", time.time() - 1, "read", token_endpoint)


async def store_grant(grants: PostgresGrantStore, grant: Grant | None) -> None:
    async with grants.begin_transaction(*KEY) as transaction:
        transaction.grant = grant


async def test_drip_feeding_token_endpoint_meets_one_total_deadline(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte arrives in time, but the answer never ends."""
    database = Database(database_url)
    grants = PostgresGrantStore(database, Cipher("a secret of the tests"))
    was_asked, dripped = asyncio.Event(), 0

    async def drip(request: web.Request) -> web.StreamResponse:
        nonlocal dripped
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        was_asked.set()
        while True:
            await response.write(b" ")
            dripped += 1
            await asyncio.sleep(0.01)

    async with serve_web(drip) as address:
        await store_grant(grants, make_grant(f"{address}/token"))
        monkeypatch.setattr(refresh, "REFRESH_TIMEOUT_SECONDS", 2.0)
        attempt = asyncio.create_task(GrantRefresher(grants, SERVER, "ada").refresh(None))
        async with asyncio.timeout(30):
            await was_asked.wait()
            assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            with pytest.raises(httpx2.ReadTimeout):
                await attempt
        assert dripped > 1
        assert await grants.claim_refresh(*KEY, seconds=60) is not None  # the claim was given back
    await database.close()


async def test_claim_of_a_dead_worker_expires(database_url: str) -> None:
    database = Database(database_url)
    grants = PostgresGrantStore(database, Cipher("a secret of the tests"))
    await store_grant(grants, make_grant())
    assert await grants.claim_refresh(*KEY, seconds=60) is not None
    assert await grants.claim_refresh(*KEY, seconds=60) is None
    await store_grant(grants, make_grant(token="signed-in-again"))  # a new sign-in ends the claim
    assert await grants.claim_refresh(*KEY, seconds=-1) is not None  # already over
    assert await grants.claim_refresh(*KEY, seconds=60) is not None
    await database.close()


@pytest.mark.parametrize("signs_in_again", [True, False])
async def test_change_during_a_refresh_wins_over_the_refreshed_grant(database_url: str, signs_in_again: bool) -> None:
    """A user signs in again, or out, while the authorization server answers."""
    database = Database(database_url)
    grants = PostgresGrantStore(database, Cipher("a secret of the tests"))
    newer = make_grant(token="newer") if signs_in_again else None

    async def issue(_request: web.Request) -> web.Response:
        await store_grant(grants, newer)
        return web.json_response({"access_token": "refreshed", "token_type": "Bearer", "expires_in": 3600})

    async with serve_web(issue) as address:
        await store_grant(grants, make_grant(f"{address}/token"))
        assert await GrantRefresher(grants, SERVER, "ada").refresh(None) == newer
    assert await grants.get_grant(*KEY) == newer
    await database.close()


async def test_call_cancelled_while_its_token_is_refreshed_closes_its_connection(database_url: str) -> None:
    database = Database(database_url)
    grants = PostgresGrantStore(database, Cipher("a secret of the tests"))
    is_refreshing, is_closed = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            is_refreshing.set()
            await is_closed.wait()
            return web.Response(status=500)
        response = web.StreamResponse(status=401)
        await response.prepare(request)
        try:
            await asyncio.Event().wait()
        finally:  # the client has closed the connection
            is_closed.set()
        return response

    async with serve_web(answer) as address, asyncio.timeout(30):
        server = ServerConfig(name="vault", url=f"{address}/mcp")
        async with grants.begin_transaction("vault", "ada", server.url) as transaction:
            transaction.grant = msgspec.structs.replace(make_grant(f"{address}/token"), expires_at=time.time() + 3600)
        tokens = AccessTokenProvider(grants, server, "ada")
        async with httpx2.AsyncClient(
            transport=AuthorizedTransport(PooledServerTransport(get_ssl_context()), tokens)
        ) as client:
            call = asyncio.create_task(client.post(server.url))
            await is_refreshing.wait()
            call.cancel()
            await is_closed.wait()
    assert call.cancelled()
    await database.close()

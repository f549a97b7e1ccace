"""Refreshing of grants: claims in the database, and the time limit."""

import asyncio
import time

import httpx2
import pytest
from aiohttp import web

from gateway.domain.grants import Grant
from gateway.mcp_client.oauth import refresh
from gateway.mcp_client.oauth.refresh import GrantRefresher
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

"""Health and readiness."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.common.concurrency import SupervisedTask
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.conftest import count_lock_waits
from tests.eventually import eventually
from tests.stack import TIMEOUTS, Gateway, serve_asgi, serve_gateway


async def test_ready_fails_while_a_vital_background_task_is_down(gateway: Gateway) -> None:
    async def run() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ValueError
        await asyncio.Event().wait()

    runs = list[int]()
    vital = SupervisedTask("writer", run, vital=True, min_backoff_seconds=3600)
    gateway.state.tasks.add(vital)
    ready = await gateway.get("/ready")
    assert (ready.status, ready.body["background_tasks"]) == (200, {"ok": True, "reason": None})

    vital.start()
    while not vital.is_down:
        await asyncio.sleep(0)
    ready = await gateway.get("/ready")
    assert (ready.status, ready.body["status"]) == (503, "unavailable")
    assert ready.body["background_tasks"] == {"ok": False, "reason": "failed: writer"}
    assert ready.body["database"]["ok"]

    vital.restart_now()
    while len(runs) < 2:
        await asyncio.sleep(0)
    assert (await gateway.get("/ready")).status == 200
    await vital.stop()


async def test_ready_fails_without_a_lease(database_url: str, simulator: Simulator, db: asyncpg.Connection) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        await eventually(lambda: is_ready(gateway))
        async with db.transaction():
            await db.execute("SELECT FROM workers FOR UPDATE")
            gateway.state.lease.end()
            ready = await gateway.get("/ready")
            assert (ready.status, ready.body["status"]) == (503, "unavailable")
            assert ready.body["database"] == {"ok": False, "reason": "the worker could not renew its lease"}
        await eventually(lambda: is_ready(gateway))


async def is_ready(gateway: Gateway) -> bool:
    return (await gateway.get("/ready")).status == 200


class ModelList:
    """Model server that only lists its models, and counts the requests."""

    def __init__(self) -> None:
        self.base_url = ""
        self.requests = 0
        self.status = 200
        self.app = Starlette(routes=[Route("/openai/v1/models", self.list_models)])

    async def list_models(self, _request: Request) -> JSONResponse:
        self.requests += 1
        return JSONResponse({"data": []}, self.status)


@pytest.fixture
async def model_list() -> AsyncGenerator[Any]:
    models = ModelList()
    async with serve_asgi(models.app) as models.base_url:
        yield models


async def test_only_admins_see_reasons_and_servers_in_readiness(
    database_url: str, model_list: Any, tools_url: str
) -> None:
    async with serve_gateway(database_url, model_list, tools_url) as gateway:
        open_ready = (await gateway.get("/ready")).body
        assert [server["name"] for server in open_ready["mcp_servers"]] == ["tools"]
        rebound = await gateway.get("/ready", headers={"Host": "evil.example"})
        assert (rebound.status, rebound.body["mcp_servers"]) == (200, [])
        keyring = Keyring(gateway)
        for owner, role in (("root", "admin"), ("ada", "user"), ("eve", "viewer")):
            await keyring.create_key(owner, role=role)  # type: ignore[arg-type]
        await keyring.create_key("narrow", role="admin", scopes=("chat",))
        model_list.status = 401
        key_headers = [keyring.headers(owner) for owner in ("ada", "eve", "narrow")]
        for headers in ({}, {"X-API-Key": "agw_00000000_guess"}, *key_headers):
            body = (await gateway.get("/ready", headers=headers)).body
            assert body["mcp_servers"] == []
            assert [body[name]["reason"] for name in ("database", "model", "background_tasks")] == [None] * 3
            assert (body["status"], body["model"]["ok"]) == ("degraded", False)
            assert tools_url not in str(body)
        body = (await keyring.get("root", "/ready")).body
        assert [server["name"] for server in body["mcp_servers"]] == ["tools"]
        assert body["model"]["reason"]


async def test_keys_cannot_be_guessed_at_readiness_without_limit(
    database_url: str, simulator: Simulator, db: asyncpg.Connection
) -> None:
    limits = {"rate_limit_requests": 3, "api_key": SecretStr("k" * 20)}
    async with serve_gateway(database_url, simulator, None, **limits) as gateway:
        for number in range(5):
            reply = await gateway.get("/ready", headers={"X-API-Key": f"guess {number}"})
            assert reply.headers["X-RateLimit-Remaining"] == str(max(0, 2 - number))
        assert (await gateway.get("/api/v1/models")).status == 429
        assert "X-RateLimit-Remaining" not in (await gateway.get("/ready")).headers
        await eventually(lambda: db.fetchval("SELECT count(*) FROM audit_log WHERE action = 'login.refused'"))


async def test_many_readiness_requests_ask_the_model_once_and_the_database_over_its_own_connection(
    database_url: str, model_list: Any, db: asyncpg.Connection
) -> None:
    timeouts = dataclasses.replace(TIMEOUTS, health=600.0, model_health=600.0)
    async with serve_gateway(database_url, model_list, None, timeouts=timeouts, database_pool_size=1) as gateway:
        paths = ["/ready", "/health"] * 100
        await eventually(lambda: model_list.requests)  # for the catalogue, at the start
        asked = model_list.requests
        replies = await asyncio.gather(*(gateway.get(path) for path in paths))
        assert {reply.status for reply in replies} == {200}
        assert model_list.requests == asked + 1
        async with db.transaction():
            # The probe of an expired state waits for this lock, and other requests do not wait for the probe.
            await db.execute("LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE")
            gateway.state.storage_health._problem._fetched = None
            gateway.state.storage_health._conversation_count._fetched = None
            waiting = [asyncio.create_task(gateway.get(path)) for path in paths]
            await eventually(lambda: count_lock_waits(db))
            for _ in range(10):
                assert (await gateway.get("/api/v1/keys")).status == 200
            replies = await asyncio.gather(*waiting)
        assert {reply.status for reply in replies[0::2]} == {503}
        assert {(reply.status, reply.body["conversations"]) for reply in replies[1::2]} == {(200, None)}


async def test_readiness_and_health_answer_while_all_pooled_connections_are_in_use(
    database_url: str, simulator: Simulator
) -> None:
    async with serve_gateway(database_url, simulator, None, database_pool_size=1) as gateway, AsyncExitStack() as stack:
        assert (await gateway.get("/ready")).status == 200
        for _ in range(2):
            session = await stack.enter_async_context(gateway.state.database.session())
            await session.connection()
        for path in ("/ready", "/health"):
            reply = await gateway.get(path)
            assert (path, reply.status) == (path, 200)
        assert reply.body["conversations"] == 0

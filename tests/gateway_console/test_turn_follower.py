"""Tests of the console's follower of a turn."""

import asyncio
from typing import Any, cast

import httpx
import pytest

from gateway.simulator import Simulator
from gateway_console.api import Api, GatewayClient
from gateway_console.components.turn_follower import TurnFollower
from gateway_console.components.turn_view import TurnView
from gateway_console.sessions import SessionStore
from tests.eventually import eventually
from tests.postgres_faults import serve_proxy
from tests.stack import serve_gateway

pytestmark = [pytest.mark.database, pytest.mark.faults]


class RecordingView:
    """View without a browser."""

    def __init__(self) -> None:
        self.turn_id: str | None = None
        self.is_finished = False

    def apply(self, event: dict[str, Any]) -> None:
        self.is_finished = self.is_finished or event["type"] == "turn.completed"

    def flush(self) -> None:
        pass


async def test_turn_is_followed_again_when_the_database_is_back(database_url: str, simulator: Simulator) -> None:
    limits: dict[str, Any] = {
        "database_statement_timeout_seconds": 1.0,
        "database_lock_timeout_seconds": 1.0,
        "database_silence_timeout_seconds": 2.0,
    }
    async with (
        serve_proxy(database_url) as (proxy, url),
        serve_gateway(url, simulator, None, **limits) as gateway,
    ):
        turn_id = (await gateway.chat("Hello")).body["turn_id"]
        sessions = SessionStore(600.0, 10)
        client = GatewayClient(gateway.base_url)
        requests: list[httpx.Request] = []

        async def record(request: httpx.Request) -> None:
            requests.append(request)

        client.http.event_hooks = {"request": [record], "response": []}
        api, view = Api(client, sessions.create(None, "user")[1], sessions), RecordingView()
        proxy.become_silent()
        following = asyncio.create_task(TurnFollower(api, cast(TurnView, view)).follow(turn_id))
        try:
            await eventually(lambda: len(requests) > 1 or following.done(), timeout_seconds=50)
            proxy.heal()
            await following
        finally:
            following.cancel()
            await client.close()
        assert view.is_finished

"""Several workers on one database, and a model that takes its time."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from gateway.llm.simulator import Simulator, SimulatorSettings, serve_simulator
from tests.keyring import Keyring
from tests.stack import Gateway, serve_gateway


@pytest.fixture
async def slow_simulator() -> AsyncGenerator[Simulator]:
    async with serve_simulator(SimulatorSettings(tokens_per_second=300, first_token_delay=0)) as running:
        yield running


@pytest.fixture
async def workers(database_url: str, slow_simulator: Simulator, tools_url: str) -> AsyncGenerator[list[Gateway]]:
    """Two gateways on one database."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serve_gateway(database_url, slow_simulator, tools_url, heartbeat_seconds=0.2)
            )
            for _ in range(2)
        ]


@pytest.fixture
async def locked(gateway: Gateway) -> Keyring:
    """The gateway with a stored key, so that it asks everyone for one."""
    ring = Keyring(gateway)
    await ring.make("root", role="admin")
    return ring

"""Several workers on one database, a model that takes its time, and what is logged."""

import io
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack

import pytest

from gateway.common.logging import configure_logging
from gateway.simulator import Simulator, SimulatorSettings, serve_simulator
from tests.auth_helpers import Keyring
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
                serve_gateway(database_url, slow_simulator, tools_url, heartbeat_seconds=0.5)
            )
            for _ in range(2)
        ]


@pytest.fixture
async def locked(gateway: Gateway) -> Keyring:
    """The gateway with a stored key, so that it asks everyone for one."""
    ring = Keyring(gateway)
    await ring.make("root", role="admin")
    return ring


@pytest.fixture
def log_text(request: pytest.FixtureRequest) -> Generator[io.StringIO]:
    """All that is logged, as in a deployment, or as at a terminal."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    text = io.StringIO()
    configure_logging(json=getattr(request, "param", True))
    assert isinstance(root.handlers[0], logging.StreamHandler)
    root.handlers[0].setStream(text)
    yield text
    root.handlers = handlers
    root.setLevel(level)

"""Fixtures: two workers, a slow model, a keyring and captured logs."""

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
    async with serve_simulator(SimulatorSettings(tokens_per_second=300, first_token_delay=0)) as simulator:
        yield simulator


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
async def keyring(gateway: Gateway) -> Keyring:
    """Keys of a gateway with a stored admin key, which enables authentication."""
    keyring = Keyring(gateway)
    await keyring.create_key("root", role="admin")
    return keyring


@pytest.fixture
def log_text(request: pytest.FixtureRequest) -> Generator[io.StringIO]:
    """Captured log: JSON lines, or terminal format with the parameter `False`."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    text = io.StringIO()
    configure_logging(json=getattr(request, "param", True))
    assert isinstance(root.handlers[0], logging.StreamHandler)
    root.handlers[0].setStream(text)
    yield text
    root.handlers = handlers
    root.setLevel(level)

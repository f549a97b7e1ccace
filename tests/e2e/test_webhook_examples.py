"""The receivers of webhooks in examples/, told by a gateway."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.simulator import Simulator
from tests.e2e.node import NODE_22, build_program, require_node
from tests.e2e.running_stack import ROOT
from tests.gateway.api.test_webhooks import SECRETS
from tests.stack import find_free_port, serve_gateway

pytestmark = pytest.mark.faults


@asynccontextmanager
async def start_receiver(*command: str, port: int) -> AsyncGenerator[asyncio.StreamReader]:
    """Start a receiver; yield its output after the first line."""
    environment = os.environ | {"WEBHOOK_SECRET": SECRETS[0].get_secret_value(), "PORT": str(port)}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await read_line(process.stdout) == f"listening on http://127.0.0.1:{port}/"
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def read_line(output: asyncio.StreamReader) -> str:
    async with asyncio.timeout(60):
        return (await output.readline()).decode().strip()


async def check_receiver(database_url: str, simulator: Simulator, port: int, *command: str) -> None:
    address = f"127.0.0.1:{port}"
    settings = {
        "webhook_hosts": ("127.0.0.1",),
        "webhook_secrets": SECRETS,
        "webhook_private_targets": (address,),
    }
    async with (
        start_receiver(*command, port=port) as output,
        serve_gateway(database_url, simulator, None, **settings) as gateway,
    ):
        reply = await gateway.chat("Hello.", webhook_url=f"http://{address}/")
        assert await read_line(output) == f"turn.completed {reply.body['turn_id']}"
        forged = {"webhook-id": "1", "webhook-timestamp": "1700000000", "webhook-signature": "v1,AAAA"}
        body = b'{"type": "turn.completed", "data": {"turn_id": "forged"}}'
        for headers in (forged, {}, forged | {"webhook-timestamp": "x"}):
            async with gateway.session.post(f"http://{address}/", data=body, headers=headers) as response:
                assert response.status == 401
            assert await read_line(output) == "refused"


async def test_receiver_takes_genuine_messages_only(database_url: str, simulator: Simulator) -> None:
    program = str(ROOT / "examples" / "webhook_receiver.py")
    await check_receiver(database_url, simulator, find_free_port(), sys.executable, program)


@require_node("standardwebhooks")
async def test_receiver_of_node_takes_genuine_messages_only(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    program = str(await build_program("webhook_receiver.ts", tmp_path))
    await check_receiver(database_url, simulator, find_free_port(), str(NODE_22), program)

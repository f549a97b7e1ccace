"""Release of a dead worker's turns by the process that started it."""

from uuid import UUID

import msgspec

from gateway.domain.bus import BusKind, BusMessage
from gateway.store.bus import CHANNEL
from gateway.store.errors import raise_gateway_errors
from gateway_runtime.postgres.connections import PostgresConnector


async def release_dead_worker(url: str, worker_id: UUID) -> None:
    """Let other workers claim the turns of a dead worker now.

    Raises:
        GatewayError: see `raise_gateway_errors`.
    """
    message = msgspec.json.encode(BusMessage(BusKind.TURN_RUNNABLE, BusMessage.NO_TURN)).decode()
    with raise_gateway_errors():
        connection = await PostgresConnector(url).connect()
        try:
            async with connection.transaction():
                await connection.execute("DELETE FROM workers WHERE id = $1", worker_id)
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)
        finally:
            connection.terminate()

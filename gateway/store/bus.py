"""LISTEN/NOTIFY: how the workers of one database tell each other of turns.

Only a hint: whoever listens also looks for itself now and then, so a lost message costs time, not truth.
"""

import asyncio
from collections.abc import Callable

import asyncpg
import msgspec

from gateway.common.logging import get_logger
from gateway.domain.messages import BusMessage

log = get_logger(__name__)

CHANNEL = "agent_gateway"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BusMessage).decode


class PostgresBus:
    """One connection that listens and tells. Made again when it is lost."""

    def __init__(self, dsn: str, on_message: Callable[[BusMessage], None]) -> None:
        self._dsn = dsn
        self._on_message = on_message
        self._outbox: dict[BusMessage, None] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bus")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def publish(self, message: BusMessage) -> None:
        """Tell all workers, this one included. The same message waiting to be told is told once."""
        self._outbox[message] = None
        self._work.set()

    async def _run(self) -> None:
        pause = 0.05
        while True:
            try:
                connection = await asyncpg.connect(self._dsn, timeout=5)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.debug("bus_waits_for_database", error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                continue
            pause = 0.05
            try:
                await connection.add_listener(CHANNEL, self._heard)
                connection.add_termination_listener(lambda _connection: self._work.set())
                await self._tell(connection)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                log.warning("bus_lost")
            finally:
                connection.terminate()

    async def _tell(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        while not connection.is_closed():
            self._work.clear()
            messages, self._outbox = self._outbox, {}
            if messages:
                rows = [(CHANNEL, _encode(message).decode()) for message in messages]
                await connection.executemany("SELECT pg_notify($1, $2)", rows, timeout=5)
            await self._work.wait()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            message = _decode(str(payload))
        except msgspec.DecodeError:
            log.warning("bus_strange_message")
            return
        self._on_message(message)

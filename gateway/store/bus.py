"""LISTEN/NOTIFY: messages between the workers of one database.

A message is only a hint. Every subscriber also polls, so a lost message costs time and nothing else.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import asyncpg
import msgspec

from gateway.common.logging import get_logger
from gateway.domain.messages import BusKind, BusMessage
from gateway.ports.store import Bus

log = get_logger(__name__)

CHANNEL = "agent_gateway"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BusMessage).decode


class PostgresBus(Bus):
    """One connection that listens and notifies; it is opened again after a failure."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._handlers: defaultdict[BusKind, list[Callable[[BusMessage], None]]] = defaultdict(list)
        self._outbox: dict[BusMessage, None] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bus")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def subscribe(self, kind: BusKind, handler: Callable[[BusMessage], None]) -> None:
        """See `Bus.subscribe`."""
        self._handlers[kind].append(handler)

    def publish(self, message: BusMessage) -> None:
        """See `Bus.publish`. Equal messages that wait to be sent are sent once."""
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
                await connection.add_listener(CHANNEL, self._on_notification)
                connection.add_termination_listener(lambda _connection: self._work.set())
                await self._send(connection)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                log.warning("bus_lost")
            finally:
                connection.terminate()

    async def _send(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        while not connection.is_closed():
            self._work.clear()
            messages, self._outbox = self._outbox, {}
            if messages:
                rows = [(CHANNEL, _encode(message).decode()) for message in messages]
                await connection.executemany("SELECT pg_notify($1, $2)", rows, timeout=5)
            await self._work.wait()

    def _on_notification(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            message = _decode(str(payload))
        except msgspec.DecodeError:
            log.warning("bus_strange_message")
            return
        for handler in self._handlers[message.kind]:
            try:
                handler(message)
            except Exception:  # one handler must not keep the message from the others
                log.exception("bus_handler_failed", kind=message.kind)

"""LISTEN/NOTIFY: messages between the workers of one database.

A message is only a hint. Every subscriber also polls, so a lost message costs time and nothing else.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import asyncpg
import msgspec

from gateway.common.concurrency import Backoff, SupervisedTask
from gateway.common.logging import get_logger
from gateway.domain.messages import BusKind, BusMessage
from gateway.ports.store import Bus

log = get_logger(__name__)

CHANNEL = "agent_gateway"
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BusMessage).decode


class PostgresBus(Bus):
    """Connection for LISTEN and NOTIFY, reopened after a failure."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._handlers: defaultdict[BusKind, list[Callable[[BusMessage], None]]] = defaultdict(list)
        self._outbox: dict[BusMessage, None] = {}
        self._work = asyncio.Event()
        self.task = SupervisedTask("bus", self._run)

    def subscribe(self, kind: BusKind, handler: Callable[[BusMessage], None]) -> None:
        """See `Bus.subscribe`."""
        self._handlers[kind].append(handler)

    def publish(self, message: BusMessage) -> None:
        """See `Bus.publish`.

        Equal messages that wait to be sent are sent once.
        """
        self._outbox[message] = None
        self._work.set()

    async def _run(self) -> None:
        backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while True:
            try:
                connection = await asyncpg.connect(self._dsn, timeout=5)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.debug("bus_connect_failed", error=type(error).__name__)
                await asyncio.sleep(backoff.next_delay())
                continue
            backoff.reset()
            try:
                await connection.add_listener(CHANNEL, self._on_notification)
                connection.add_termination_listener(lambda _connection: self._work.set())
                await self._send(connection)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                log.warning("bus_connection_lost")
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
            log.warning("bus_message_rejected")
            return
        for handler in self._handlers[message.kind]:
            try:
                handler(message)
            except Exception:  # a failing handler must not withhold the message from the others
                log.exception("bus_handler_failed", kind=message.kind)

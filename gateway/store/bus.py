"""LISTEN/NOTIFY: messages between the workers of one database.

A message is only a hint. Every subscriber also polls, so a lost message costs time and nothing else.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import asyncpg
import msgspec
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.concurrency import Backoff, SupervisedTask, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.bus import BusKind, BusMessage
from gateway.ports.store import Bus
from gateway.store.errors import is_database_error
from gateway_runtime.postgres.connections import PostgresConnector

log = get_logger(__name__)

CHANNEL = "agent_gateway"
_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_CHECK_SECONDS = 30.0
NOTIFY = "SELECT pg_notify(:channel, :payload)"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BusMessage).decode


def encode_message(message: BusMessage) -> str:
    """Encode a message for a `NOTIFY` in a transaction of its own."""
    return _encode(message).decode()


async def notify_at_commit(session: AsyncSession, kind: BusKind) -> None:
    """Notify all workers of this database at the commit.

    The caller may be a process without a bus.
    """
    payload = encode_message(BusMessage(kind, BusMessage.NO_TURN))
    await (await session.connection()).execute(text(NOTIFY), {"channel": CHANNEL, "payload": payload})


class PostgresBus(Bus):
    """Connection for LISTEN and NOTIFY, reopened after a failure.

    An idle connection is checked often enough to find within the connector's `silence` that the server is silent, or,
    where there are several hosts, that it no longer accepts writes.
    """

    def __init__(self, connector: PostgresConnector) -> None:
        self._connector = connector
        self._check_seconds = connector.limits.silence / 2 or _CHECK_SECONDS
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
                connection = await self._connector.connect(command_seconds=self._check_seconds)
            except Exception as error:
                if not is_database_error(error):
                    raise
                log.debug("bus_connect_failed", error=type(error).__name__)
                await asyncio.sleep(backoff.next_delay())
                continue
            backoff.reset()
            try:
                await connection.add_listener(CHANNEL, self._on_notification)
                connection.add_termination_listener(lambda _connection: self._work.set())
                await self._send(connection)
            except Exception as error:
                if not is_database_error(error):
                    raise
                log.warning("bus_connection_lost", error=type(error).__name__)
                await asyncio.sleep(backoff.next_delay())
            finally:
                connection.terminate()

    async def _send(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Send the messages of the outbox, until the connection cannot be used."""
        while not connection.is_closed():
            self._work.clear()
            messages, self._outbox = self._outbox, {}
            if messages:
                rows = [(CHANNEL, encode_message(message)) for message in messages]
                await connection.executemany("SELECT pg_notify($1, $2)", rows)
            if not await wait_or_poll(self._work, self._check_seconds):
                is_read_only = await connection.fetchval("SHOW transaction_read_only") == "on"
                if is_read_only and self._connector.has_several_hosts:
                    log.warning("bus_host_is_read_only")
                    return

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

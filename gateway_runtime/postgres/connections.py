"""Connections to PostgreSQL that do not wait for ever.

Both servers open all of their connections here. The server ends a statement that takes too long, or waits too long for
a lock. The kernel ends a connection whose packets are not acknowledged. With several hosts, a connection leads to one
that accepts writes.
"""

import asyncio
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from gateway_runtime.postgres.errors import is_database_error, must_reconnect
from gateway_runtime.postgres.tls import build_system_tls
from gateway_runtime.postgres.url import PostgresAddress, parse_address

__all__ = ["CLOSE_SECONDS", "ConnectionTimeouts", "PostgresConnector"]

CLOSE_SECONDS = 1.0
"""Seconds for a graceful close, before the connection is aborted."""
_KEEPALIVE_PROBES = 2
_TRANSACTION_TIMEOUT_VERSION = 17
"""First major version of PostgreSQL that has transaction_timeout."""


@dataclass(frozen=True)
class ConnectionTimeouts:
    """Time limits of a connection, in seconds. 0 means no limit."""

    connect: float = 5.0
    """Until a login is complete, for all hosts together."""
    statement: float = 6.0
    """PostgreSQL's statement_timeout."""
    lock: float = 3.0
    """PostgreSQL's lock_timeout."""
    silence: float = 8.0
    """Without an answer or an acknowledgement from the server; longer than `statement`."""
    transaction: float | None = None
    """Length of a transaction, where PostgreSQL has transaction_timeout. None: as `silence`."""


class PostgresConnector:
    """Opens connections to the PostgreSQL of one address.

    With several hosts, the parameter `target_session_attrs` is `read-write` unless the address says otherwise. Where a
    pooler serves each transaction over another connection, settings are made anew in each transaction, in the same
    round trip as its BEGIN, and no statement is prepared by name. There, a statement with parameters must be part of a
    transaction.

    Raises:
        ValueError: `url` is not an address of PostgreSQL.
    """

    def __init__(self, url: str, limits: ConnectionTimeouts = ConnectionTimeouts()) -> None:
        self.address = parse_address(url)
        self.dsn = self.address.to_dsn()
        self.limits = replace(limits, connect=self.address.connect_timeout or limits.connect)
        self._hosts = self.address.hosts
        self._next_host = 0
        self._distrusted_until = 0.0
        self._parameters = self.address.parameters
        self._set_limits = _build_set_statements(limits, self.address)
        self._connection_class = _build_connection_class(limits.silence)

    @property
    def has_several_hosts(self) -> bool:
        return len(self._hosts) > 1

    async def connect(
        self, *, seconds: float | None = None, command_seconds: float | None = None
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Open a connection, within `seconds` (None: the limit).

        A command on it raises TimeoutError after `command_seconds` (None: the limit, 0: never).

        Raises:
            TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InternalClientError: no host can be used.
        """
        options: dict[str, Any] = {
            "command_timeout": (self.limits.silence if command_seconds is None else command_seconds) or None,
            "server_settings": {} if "application_name" in self._parameters else {"application_name": "agent-gateway"},
            "connection_class": self._connection_class,
            "ssl": build_system_tls(self._parameters),
        }
        if self.address.is_pooled:
            options["statement_cache_size"] = 0
        seconds = (seconds or self.limits.connect) / len(self._hosts)
        if not self.has_several_hosts:
            return await self._open_connection(seconds, options)
        if "target_session_attrs" not in self._parameters:
            options["target_session_attrs"] = "read-write"
        return await self._connect_to_any_host(seconds, options)

    def create_engine(self, **options: Any) -> AsyncEngine:
        """Create SQLAlchemy's engine with a pool of such connections.

        Its commands have no time limit of their own; the caller limits each use as a whole.
        """
        connect: dict[str, Any] = {"async_creator_fn": lambda: self.connect(command_seconds=0)}
        if self.address.is_pooled:
            connect |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
        engine = create_async_engine("postgresql+asyncpg://", connect_args=connect, hide_parameters=True, **options)
        event.listen(engine.sync_engine, "handle_error", _invalidate_unusable_connection)
        event.listen(engine.sync_engine, "connect", _note_opening)
        event.listen(engine.sync_engine, "checkout", self._reject_unusable_connection)
        return engine

    async def limit_transactions(self, connection: "asyncpg.Connection[asyncpg.Record]", seconds: float) -> None:
        """Let the server end each transaction after `seconds`.

        Otherwise a client that is cut off midway holds its locks for longer. No effect before PostgreSQL 17.
        """
        await connection.execute(self._build_transaction_limit(connection, seconds))

    def _build_transaction_limit(self, connection: "asyncpg.Connection[asyncpg.Record]", seconds: float) -> str:
        has_setting = connection.get_server_version().major >= _TRANSACTION_TIMEOUT_VERSION
        if not has_setting or "transaction_timeout" in self._parameters:
            return ""
        return _build_set_statement("transaction_timeout", _to_milliseconds(seconds), self.address.is_pooled)

    def distrust_open_connections(self) -> None:
        """Let the pools replace all open connections, because one is silent.

        Otherwise each of them would be found silent by another use that waits. The next connections lead to another
        host first, if there are several.
        """
        self._distrusted_until = time.monotonic()
        self._next_host = (self._next_host + 1) % len(self._hosts)

    def _reject_unusable_connection(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Let the pool replace a connection that is closed or distrusted."""
        if record.info["opened_at"] < self._distrusted_until:
            connection.driver_connection.terminate()  # a graceful close would wait for the server
        if connection.driver_connection.is_closed():
            raise exc.DisconnectionError

    async def _open_connection(self, seconds: float, options: dict[str, Any]) -> "asyncpg.Connection[asyncpg.Record]":
        async with asyncio.timeout(seconds or None):
            connection: Any = await asyncpg.connect(self.address.to_login_dsn(), **options)
            try:
                transaction = self.limits.silence if self.limits.transaction is None else self.limits.transaction
                statements = self._set_limits + self._build_transaction_limit(connection, transaction)
                if self.address.is_pooled:
                    connection.transaction_settings = statements
                else:
                    await connection.execute(statements)
            except BaseException:
                connection.terminate()
                raise
        return connection

    async def _connect_to_any_host(
        self, seconds: float, options: dict[str, Any]
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Try each host once, first the one that was used last."""
        errors: list[Exception] = []
        for _ in self._hosts:
            host, port = self._hosts[self._next_host]
            attempted, self._next_host = self._next_host, (self._next_host + 1) % len(self._hosts)
            try:
                connection = await self._open_connection(seconds, options | {"host": host, "port": port})
            except Exception as error:
                if not is_database_error(error):
                    raise
                errors.append(error)
            else:
                self._next_host = attempted
                return connection
        is_read_only = asyncpg.exceptions.TargetServerAttributeNotMatched
        raise next((error for error in errors if not isinstance(error, is_read_only)), errors[0])


def _build_set_statements(limits: ConnectionTimeouts, address: PostgresAddress) -> str:
    """Build the SQL that makes the settings of a session.

    Behind a pooler, they are those of a transaction.
    Limits in the address have precedence. They are not startup parameters, because PgBouncer refuses most of those.
    """
    probe_seconds = _get_probe_seconds(limits.silence)
    settings: dict[str, int | str] = {
        "statement_timeout": _to_milliseconds(limits.statement),
        "lock_timeout": _to_milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": _to_milliseconds(limits.silence),
    }
    if not address.is_pooled:  # these are of the server's connection, which is the pooler's
        settings |= {
            "tcp_user_timeout": _to_milliseconds(limits.silence),
            "tcp_keepalives_idle": probe_seconds,
            "tcp_keepalives_interval": probe_seconds,
            "tcp_keepalives_count": _KEEPALIVE_PROBES,
        }
    settings |= {name: value for name, value in address.session_settings.items() if name != "application_name"}
    return "".join(_build_set_statement(name, value, address.is_pooled) for name, value in settings.items())


def _build_set_statement(name: str, value: int | str, is_local: bool) -> str:
    """Build the SQL for one setting.

    Its value may be any text, such as a list of schemas.
    """
    if isinstance(value, int):
        return f"SET {'LOCAL ' if is_local else ''}{name} = {value};"
    name, value = (text.replace("'", "''") for text in (name, value))
    return f"SELECT set_config('{name}', '{value}', {'true' if is_local else 'false'});"


def _to_milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000)) if seconds else 0


def _get_probe_seconds(silence: float) -> int:
    """Return the pause before each keep-alive probe.

    The last probe is missing after `silence` seconds.
    """
    return max(1, int(silence / (1 + _KEEPALIVE_PROBES))) if silence else 0


def _build_connection_class(silence: float) -> "type[asyncpg.Connection[asyncpg.Record]]":
    """Build asyncpg's connection with limits for its socket and for its end."""

    class LimitedConnection(asyncpg.Connection):
        transaction_settings = ""
        """SQL that follows the BEGIN of each transaction."""

        def __init__(self, protocol: Any, transport: asyncio.Transport, *arguments: Any) -> None:
            super().__init__(protocol, transport, *arguments)
            _set_socket_options(transport.get_extra_info("socket"), silence)

        async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
            if self.transaction_settings and query.startswith("BEGIN"):
                query = f"{query};{self.transaction_settings}"
            return await super().execute(query, *arguments, timeout=timeout)

        async def close(self, *, timeout: float | None = None) -> None:
            """Close the connection, or abort it if the server is silent."""
            try:
                await super().close(timeout=CLOSE_SECONDS if timeout is None else min(timeout, CLOSE_SECONDS))
            except TimeoutError:
                self.terminate()

    return LimitedConnection


def _set_socket_options(connection: socket.socket, silence: float) -> None:
    """Let the kernel end a TCP connection without acknowledgements.

    It does so whether data is under way or not.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or not silence:
        return
    probe_seconds = _get_probe_seconds(silence)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values = {
        "TCP_KEEPIDLE": probe_seconds,
        "TCP_KEEPALIVE": probe_seconds,  # its name on macOS
        "TCP_KEEPINTVL": probe_seconds,
        "TCP_KEEPCNT": _KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": _to_milliseconds(silence),
    }
    for name, value in values.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _invalidate_unusable_connection(context: ExceptionContext) -> None:
    """Remove all connections to a silent or demoted server from the pool."""
    error = context.sqlalchemy_exception or context.original_exception
    if isinstance(error, TimeoutError) or must_reconnect(error):
        context.is_disconnect = True


def _note_opening(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["opened_at"] = time.monotonic()

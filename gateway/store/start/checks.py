"""Checks of a database before the gateway uses it."""

import asyncpg

from gateway.store.errors import StorageFailure, classify_error, is_database_error
from gateway_runtime.postgres.connections import PostgresConnector

_POOLER_ROUNDS = 3
_FINAL_CLASSES = ("28", "3D", "3F", "42501")
"""SQLSTATE classes of errors that do not pass with time.

Login refused, unknown database, unknown schema, no privilege.
"""
_SECOND_CONNECTION_SECONDS = 2.0
_NOT_UTF8 = (
    "has the encoding {}, and the gateway needs UTF8: "
    "CREATE DATABASE agent_gateway ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"
)
_POOLED = (
    "is a pooler that shares its connections by transactions: set DATABASE_DIRECT_URL to PostgreSQL's own address, "
    "which LISTEN, migrations and the journal need"
)


def is_temporary(error: asyncpg.PostgresError) -> bool:
    """Return whether a login may succeed later."""
    is_final = (error.sqlstate or "").startswith(_FINAL_CLASSES)
    return classify_error(error) is StorageFailure.UNAVAILABLE and not is_final


async def find_problem(connector: PostgresConnector, connection: "asyncpg.Connection[asyncpg.Record]") -> str | None:
    """Return why the gateway cannot use the database.

    None means that it can. The text follows the address.
    """
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        return _NOT_UTF8.format(encoding)
    if not connector.address.is_pooled and await _shares_connections(connector, connection):
        return _POOLED
    return None


async def _shares_connections(connector: PostgresConnector, connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """Return whether two sessions share a server process.

    They do behind a pooler in transaction mode.
    A pooler tells each client a process id of its own, so one that is right shows PostgreSQL itself.
    """
    if await _get_backend_pid(connection) == connection.get_server_pid():
        return False
    try:
        second = await connector.connect(seconds=_SECOND_CONNECTION_SECONDS)
    except Exception as error:
        if not is_database_error(error):
            raise
        return False  # a pooler in session mode that has no connection left
    try:
        for _ in range(_POOLER_ROUNDS):
            if await _get_backend_pid(connection) == await _get_backend_pid(second):
                return True
    finally:
        second.terminate()
    return False


async def _get_backend_pid(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    async with connection.transaction():  # else a pooler may execute the statement where it is not prepared
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid

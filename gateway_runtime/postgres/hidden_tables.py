"""Tables that exist, and that the role cannot see."""

from collections.abc import Awaitable, Callable

import asyncpg

from gateway_runtime.postgres.errors import StorageFailure, classify_error, get_sqlstate, is_database_error

_UNDEFINED = ("42P01", "42883", "42704")
"""Undefined table, function and object."""
_IS_HIDDEN = "SELECT to_regclass($1) IS NULL AND EXISTS (SELECT FROM pg_class WHERE relname = $1)"


async def is_table_hidden(
    table: str, error: BaseException, connect: "Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]"
) -> bool:
    """Return whether a table that is missing to an error exists.

    PostgreSQL makes no difference: the role may lack USAGE, or the schema may not be in `search_path`.
    """
    if get_sqlstate(error) not in _UNDEFINED:
        return False
    try:
        connection = await connect()
        try:
            return bool(await connection.fetchval(_IS_HIDDEN, table))
        finally:
            connection.terminate()
    except Exception as failure:
        if not is_database_error(failure):
            raise
        return classify_error(failure) is StorageFailure.UNAVAILABLE

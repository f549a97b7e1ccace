"""Classes of errors of PostgreSQL, its driver and the connection pool.

The table follows the SQLSTATE codes of the PostgreSQL manual, appendix A.
"""

from collections.abc import Mapping
from enum import StrEnum

import asyncpg
from asyncpg import exceptions
from sqlalchemy import exc


class StorageFailure(StrEnum):
    """Meaning of a database error for a retry of the statement."""

    UNAVAILABLE = "unavailable"
    """The statement may succeed later, or on another connection."""
    CONTENT = "content"
    """The database refuses these values, and will again."""
    CONFLICT = "conflict"
    """A row with this key exists."""
    TAKEN_OVER = "taken_over"
    """Another worker owns the turn that the statement writes for."""
    INTERNAL = "internal"
    """The statement, the schema or the database itself is wrong."""


TAKEN_OVER_SQLSTATE = "GW001"
"""Error of a write by a worker that lost its turn.

The gateway's own SQL functions raise it.
"""
_BY_SQLSTATE: Mapping[str, StorageFailure] = {
    "08": StorageFailure.UNAVAILABLE,  # connection exception
    "21": StorageFailure.CONTENT,  # cardinality violation: two rows of one statement exclude each other
    "22": StorageFailure.CONTENT,  # data exception
    "23": StorageFailure.CONTENT,  # integrity constraint violation
    "23505": StorageFailure.CONFLICT,  # unique violation
    "23P01": StorageFailure.CONFLICT,  # exclusion violation
    "25": StorageFailure.UNAVAILABLE,  # invalid transaction state: read-only, or idle too long
    "26": StorageFailure.UNAVAILABLE,  # a pooler has changed the server connection of a prepared statement
    "28": StorageFailure.UNAVAILABLE,  # invalid authorization: a login is refused
    "3D": StorageFailure.UNAVAILABLE,  # the database does not exist
    "40": StorageFailure.UNAVAILABLE,  # transaction rollback: deadlock or serialization failure
    "42501": StorageFailure.UNAVAILABLE,  # insufficient privilege
    "42P05": StorageFailure.UNAVAILABLE,  # as 26: the prepared statement exists
    "44": StorageFailure.CONTENT,  # WITH CHECK OPTION violation
    "53": StorageFailure.UNAVAILABLE,  # insufficient resources: disk, memory or connections
    "54": StorageFailure.CONTENT,  # program limit exceeded: a value is too large
    "54001": StorageFailure.CONTENT,  # statement too complex: a value is nested too deeply
    "55": StorageFailure.UNAVAILABLE,  # object not in prerequisite state: locked or in use
    "57": StorageFailure.UNAVAILABLE,  # operator intervention: cancelled, shut down or starting up
    "58": StorageFailure.UNAVAILABLE,  # system error: input or output
    "P0001": StorageFailure.CONTENT,  # RAISE EXCEPTION, by a trigger
    "P0004": StorageFailure.CONTENT,  # ASSERT failure, by a trigger
    TAKEN_OVER_SQLSTATE: StorageFailure.TAKEN_OVER,
}
"""Failures by SQLSTATE code or by its first two characters.

The first two characters are the class of the code. All other codes mean `INTERNAL`: for example 42P01 (undefined
table), 42703 (undefined column), 0A000 (feature not supported), 39000 and XX000 (internal error).
"""
_ENDS_OF_SESSION = ("FATAL", "PANIC")
"""Severities of errors that end the connection, whatever their code."""
_STATES_OF_THE_SERVER = ("25006", "57P01", "57P02", "57P03", "57P04", "57P05")
"""Read-only, shut down, crashed, starting up, database dropped, idle too long."""


def classify_sqlstate(sqlstate: str) -> StorageFailure:
    """Return what an SQLSTATE code means."""
    return _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2], StorageFailure.INTERNAL)


def classify_error(error: BaseException) -> StorageFailure:
    """Return what an error of PostgreSQL, asyncpg or SQLAlchemy means."""
    error = get_driver_error(error)
    if isinstance(error, asyncpg.PostgresError):
        return _classify_postgres_error(error)
    if isinstance(error, asyncpg.DataError):
        return StorageFailure.CONTENT
    if isinstance(error, _UNAVAILABLE):
        return StorageFailure.UNAVAILABLE  # first, because some are ValueErrors
    if isinstance(error, ValueError | TypeError):
        return StorageFailure.CONTENT  # of the encoders of parameters
    return StorageFailure.INTERNAL


_UNAVAILABLE = (
    OSError,  # also TimeoutError
    asyncpg.InterfaceError,  # for example: the connection is closed
    asyncpg.InternalClientError,
    exc.TimeoutError,  # of the pool
    exc.PendingRollbackError,
    RuntimeError,  # of uvloop, for a transport that is closed
)


def _classify_postgres_error(error: asyncpg.PostgresError) -> StorageFailure:
    if getattr(error, "severity_en", None) in _ENDS_OF_SESSION:
        return StorageFailure.UNAVAILABLE
    if isinstance(error, exceptions.InvalidCachedStatementError):  # the schema has changed; a repetition notices it
        return StorageFailure.UNAVAILABLE
    return classify_sqlstate(error.sqlstate or "")


def is_database_error(error: BaseException) -> bool:
    """Return whether the database, the driver or the pool raised an error.

    Errors of the program that uses them do not count.
    """
    if isinstance(error, exc.StatementError):
        return not isinstance(error.orig, exc.SQLAlchemyError)  # that is a statement without its parameters
    if isinstance(error, exc.TimeoutError | exc.PendingRollbackError):
        return True
    return isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def must_reconnect(error: BaseException) -> bool:
    """Return whether the server behind an open connection cannot be used.

    A demoted primary is read-only, and the new primary is reached by a new connection.
    """
    return get_sqlstate(error) in _STATES_OF_THE_SERVER


def get_sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE code of an error.

    Return None for errors that PostgreSQL did not raise.
    """
    error = error and get_driver_error(error)
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def get_driver_error(error: BaseException) -> BaseException:
    """Return the error that SQLAlchemy has wrapped.

    It is an error of asyncpg or of an encoder. Any other error is returned unchanged.
    """
    if not isinstance(error, exc.StatementError) or error.orig is None:
        return error
    return error.orig.__cause__ if isinstance(error, exc.DBAPIError) and error.orig.__cause__ else error.orig

"""Classes of errors of PostgreSQL, its driver and the connection pool.

The table follows the SQLSTATE codes of the PostgreSQL manual, appendix A.
"""

from collections.abc import Mapping
from enum import StrEnum

import asyncpg
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


TAKEN_OVER_SQLSTATE = "GW001"
"""Error of a write by a worker that lost its turn.

The gateway's own SQL functions raise it.
"""
_BY_SQLSTATE: Mapping[str, StorageFailure] = {
    "21": StorageFailure.CONTENT,  # cardinality violation: two rows of one statement exclude each other
    "22": StorageFailure.CONTENT,  # data exception
    "23": StorageFailure.CONTENT,  # integrity constraint violation
    "23505": StorageFailure.CONFLICT,  # unique violation
    "23P01": StorageFailure.CONFLICT,  # exclusion violation
    "44": StorageFailure.CONTENT,  # WITH CHECK OPTION violation
    "54": StorageFailure.CONTENT,  # program limit exceeded: a value is too large
    "54001": StorageFailure.CONTENT,  # statement too complex: a value is nested too deeply
    "P0001": StorageFailure.CONTENT,  # RAISE EXCEPTION, by a trigger
    "P0004": StorageFailure.CONTENT,  # ASSERT failure, by a trigger
    TAKEN_OVER_SQLSTATE: StorageFailure.TAKEN_OVER,
}
"""Failures by SQLSTATE code or by its first two characters.

The first two characters are the class of the code. All other codes mean `UNAVAILABLE`.
"""
_STATES_OF_THE_SERVER = ("25006", "57P01", "57P02", "57P03", "57P04", "57P05")
"""Read-only, shut down, crashed, starting up, database dropped, idle too long."""


def classify_sqlstate(sqlstate: str) -> StorageFailure:
    """Return what an SQLSTATE code means."""
    return _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2], StorageFailure.UNAVAILABLE)


def classify_error(error: BaseException) -> StorageFailure:
    """Return what an error of PostgreSQL, asyncpg or SQLAlchemy means.

    An unknown error means `UNAVAILABLE`: a repetition may succeed, and nothing is lost by it.
    """
    error = get_driver_error(error)
    if isinstance(error, asyncpg.PostgresError):
        return classify_sqlstate(error.sqlstate or "")
    if isinstance(error, asyncpg.DataError):
        return StorageFailure.CONTENT
    if isinstance(error, asyncpg.InterfaceError):
        return StorageFailure.UNAVAILABLE  # first, because some are ValueErrors
    if isinstance(error, ValueError | TypeError):
        return StorageFailure.CONTENT  # of the encoders of parameters
    return StorageFailure.UNAVAILABLE


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

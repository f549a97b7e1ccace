"""Errors of the database as errors of the gateway."""

from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from gateway.common.logging import get_logger
from gateway.domain.errors import (
    Conflict,
    GatewayError,
    StorageInternalError,
    StorageRefused,
    StorageUnavailable,
    TurnTakenOver,
    TurnUnreadable,
)
from gateway_runtime.postgres.errors import (
    TAKEN_OVER_SQLSTATE,
    StorageFailure,
    classify_error,
    get_driver_error,
    get_sqlstate,
    is_database_error,
    must_reconnect,
)

__all__ = [
    "TAKEN_OVER_SQLSTATE",
    "StorageFailure",
    "classify_error",
    "get_driver_error",
    "get_sqlstate",
    "is_database_error",
    "must_reconnect",
    "raise_gateway_errors",
    "raise_unreadable",
    "to_gateway_error",
]

log = get_logger(__name__)

_ERRORS: dict[StorageFailure, type[GatewayError]] = {
    StorageFailure.UNAVAILABLE: StorageUnavailable,
    StorageFailure.CONTENT: StorageRefused,
    StorageFailure.CONFLICT: Conflict,
    StorageFailure.TAKEN_OVER: TurnTakenOver,
    StorageFailure.INTERNAL: StorageInternalError,
}


def to_gateway_error(error: BaseException) -> GatewayError:
    """Convert an error of the database to an error of the gateway.

    The original error is logged.
    """
    failure = classify_error(error)
    cause = get_driver_error(error)
    fields = {
        "error": type(cause).__name__,
        "sqlstate": get_sqlstate(cause),
        "constraint": getattr(cause, "constraint_name", None),
    }
    if failure is StorageFailure.UNAVAILABLE:
        log.warning("database_unreachable", **fields)
    elif failure is StorageFailure.INTERNAL:
        log.error("database_statement_failed", exc_info=error, **fields)
    else:
        log.info("database_refused", failure=failure.value, **fields)
    return _ERRORS[failure]()


@contextmanager
def raise_gateway_errors() -> Generator[None]:
    """Raise errors of the database as errors of the gateway.

    All other errors pass through.

    Raises:
        StorageUnavailable: the database cannot be reached or used now.
        StorageRefused: the database refuses a value.
        Conflict: a row with this key exists.
        TurnTakenOver: another worker owns the turn.
        StorageInternalError: the statement or the schema is wrong.
    """
    try:
        yield
    except Exception as error:
        if not is_database_error(error):
            raise
        raise to_gateway_error(error) from error


@contextmanager
def raise_unreadable(turn_id: UUID) -> Generator[None]:
    """Raise `TurnUnreadable` for stored values that cannot be parsed."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:  # msgspec's errors are ValueErrors
        log.error("turn_unreadable", turn_id=str(turn_id), error=str(error))
        raise TurnUnreadable from error

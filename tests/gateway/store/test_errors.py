import asyncpg
import pytest
from asyncpg import exceptions
from sqlalchemy import exc

from gateway.domain.errors import Conflict, GatewayError, StorageRefused, StorageUnavailable, TurnTakenOver
from gateway.store.database import Database
from gateway.store.errors import TAKEN_OVER_SQLSTATE, StorageFailure, classify_error, is_database_error

UNAVAILABLE_CLASSES = (
    # statement not complete, connection, triggered action, feature, transaction, authorization
    *("03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "24", "25", "26", "27", "28", "2B"),
    # routines, savepoints, catalog, rollback, syntax and privileges, resources, state, operator, system, unknown
    *("2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "72", "F0", "HV", "XX", "QQ"),
)
CONTENT_CLASSES = ("21", "22", "23", "44", "54")
ERRORS = {
    StorageFailure.UNAVAILABLE: StorageUnavailable,
    StorageFailure.CONTENT: StorageRefused,
    StorageFailure.CONFLICT: Conflict,
    StorageFailure.TAKEN_OVER: TurnTakenOver,
}
EXPECTED_FAILURES = {
    **{f"{code}000": StorageFailure.UNAVAILABLE for code in UNAVAILABLE_CLASSES},
    **{f"{code}000": StorageFailure.CONTENT for code in CONTENT_CLASSES},
    "23502": StorageFailure.CONTENT,
    "23505": StorageFailure.CONFLICT,
    "23514": StorageFailure.CONTENT,
    "23P01": StorageFailure.CONFLICT,
    "25006": StorageFailure.UNAVAILABLE,
    "42501": StorageFailure.UNAVAILABLE,
    "53100": StorageFailure.UNAVAILABLE,
    "53300": StorageFailure.UNAVAILABLE,
    "57014": StorageFailure.UNAVAILABLE,
    "57P03": StorageFailure.UNAVAILABLE,
    "P0000": StorageFailure.UNAVAILABLE,
    "P0001": StorageFailure.CONTENT,
    "P0002": StorageFailure.UNAVAILABLE,
    "P0003": StorageFailure.UNAVAILABLE,
    "P0004": StorageFailure.CONTENT,
    TAKEN_OVER_SQLSTATE: StorageFailure.TAKEN_OVER,
}


def list_sqlstates() -> set[str]:
    """List the codes of all errors.

    Warnings (classes 01 and 02) are no errors.
    """
    classes = [value for value in vars(exceptions).values() if isinstance(value, type)]
    errors = [value for value in classes if issubclass(value, asyncpg.PostgresError)]
    return {str(value.sqlstate) for value in errors if value.sqlstate is not None}


def find_expected_failure(sqlstate: str) -> StorageFailure:
    """Find the failure of a code, or else of its class.

    A code of a class that no row of the table names fails.
    """
    return EXPECTED_FAILURES[sqlstate if sqlstate in EXPECTED_FAILURES else f"{sqlstate[:2]}000"]


async def test_every_sqlstate_of_postgres_becomes_the_expected_error(database_url: str) -> None:
    database = Database(database_url)
    sqlstates = list_sqlstates() | set(EXPECTED_FAILURES)
    assert len(sqlstates) > 240
    wrong = {}
    try:
        for sqlstate in sorted(sqlstates):
            expected = find_expected_failure(sqlstate)
            with pytest.raises(GatewayError) as raised:
                await database.fetch_rows(f"DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''{sqlstate}''; END'")
            if type(raised.value) is not ERRORS[expected]:
                wrong[sqlstate] = raised.value.code
    finally:
        await database.close()
    assert wrong == {}


async def raise_in_session(database: Database, sqlstate: str) -> None:
    async with database.session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(f"DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''{sqlstate}''; END'")


async def test_every_error_in_a_session_becomes_the_expected_error(database_url: str) -> None:
    database = Database(database_url)
    try:
        for sqlstate in ("25006", "22001", "23505", TAKEN_OVER_SQLSTATE):
            with pytest.raises(ERRORS[find_expected_failure(sqlstate)]):
                await raise_in_session(database, sqlstate)
    finally:
        await database.close()


def test_unavailable_storage_tells_the_client_when_to_retry() -> None:
    assert StorageUnavailable().status == 503
    assert StorageUnavailable().retry_after is not None


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConnectionResetError(), StorageFailure.UNAVAILABLE),
        (TimeoutError(), StorageFailure.UNAVAILABLE),
        (asyncpg.InterfaceError("connection is closed"), StorageFailure.UNAVAILABLE),
        (exceptions.ClientConfigurationError("invalid DSN"), StorageFailure.UNAVAILABLE),
        (exceptions.InternalClientError("unexpected"), StorageFailure.UNAVAILABLE),
        (exceptions.TargetServerAttributeNotMatched("no primary"), StorageFailure.UNAVAILABLE),
        (exc.TimeoutError("QueuePool limit"), StorageFailure.UNAVAILABLE),
        (exc.PendingRollbackError("rolled back"), StorageFailure.UNAVAILABLE),
        (asyncpg.DataError("invalid input for query argument $1"), StorageFailure.CONTENT),
        (exc.StatementError("", "", {}, TypeError("not serializable")), StorageFailure.CONTENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_of_driver_or_pool_is_classified(error: Exception, failure: StorageFailure) -> None:
    assert is_database_error(error)
    assert classify_error(error) is failure


async def test_value_that_the_driver_cannot_encode_is_refused(database_url: str) -> None:
    database = Database(database_url)
    try:
        with pytest.raises(StorageRefused):
            await database.fetch_rows("SELECT CAST(:value AS int)", value="seven")
        with pytest.raises(StorageRefused):
            await database.fetch_rows("SELECT CAST(:value AS text)", value="nul \x00")
    finally:
        await database.close()


async def test_error_of_the_program_is_not_an_error_of_the_database(database_url: str) -> None:
    database = Database(database_url)
    try:
        with pytest.raises(ZeroDivisionError):
            async with database.session():
                raise ZeroDivisionError
        with pytest.raises(exc.StatementError):
            await database.fetch_rows("SELECT :forgotten")
    finally:
        await database.close()

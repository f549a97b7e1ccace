from urllib.parse import urlsplit

import asyncpg
import pytest
from asyncpg import exceptions
from sqlalchemy import exc
from structlog.testing import capture_logs

from gateway.domain.errors import (
    Conflict,
    GatewayError,
    StorageInternalError,
    StorageRefused,
    StorageUnavailable,
    TurnTakenOver,
)
from gateway.store.database import Database
from gateway.store.errors import TAKEN_OVER_SQLSTATE, StorageFailure, classify_error, get_sqlstate, is_database_error
from tests.postgres_faults import execute

UNAVAILABLE_CLASSES = (
    "08",  # connection exception
    "25",  # invalid transaction state
    "26",  # invalid SQL statement name
    "28",  # invalid authorization specification
    "3D",  # invalid catalog name
    "40",  # transaction rollback
    "53",  # insufficient resources
    "55",  # object not in prerequisite state
    "57",  # operator intervention
    "58",  # system error
)
CONTENT_CLASSES = (
    "21",  # cardinality violation
    "22",  # data exception
    "23",  # integrity constraint violation
    "44",  # WITH CHECK OPTION violation
    "54",  # program limit exceeded
)
INTERNAL_CLASSES = (
    "03",  # SQL statement not yet complete
    "09",  # triggered action exception
    "0A",  # feature not supported
    "0B",  # invalid transaction initiation
    "0F",  # locator exception
    "0L",  # invalid grantor
    "0P",  # invalid role specification
    "0Z",  # diagnostics exception
    "10",  # XQuery error
    "20",  # case not found
    "24",  # invalid cursor state
    "27",  # triggered data change violation
    "2B",  # dependent privilege descriptors still exist
    "2D",  # invalid transaction termination
    "2F",  # SQL routine exception
    "34",  # invalid cursor name
    "38",  # external routine exception
    "39",  # external routine invocation exception
    "3B",  # savepoint exception
    "3F",  # invalid schema name
    "42",  # syntax error or access rule violation
    "72",  # snapshot failure
    "F0",  # configuration file error
    "HV",  # foreign data wrapper error
    "P0",  # PL/pgSQL error
    "XX",  # internal error
    "QQ",  # unknown
)
ERRORS = {
    StorageFailure.UNAVAILABLE: StorageUnavailable,
    StorageFailure.CONTENT: StorageRefused,
    StorageFailure.CONFLICT: Conflict,
    StorageFailure.TAKEN_OVER: TurnTakenOver,
    StorageFailure.INTERNAL: StorageInternalError,
}
EXPECTED_FAILURES = {
    **{f"{code}000": StorageFailure.UNAVAILABLE for code in UNAVAILABLE_CLASSES},
    **{f"{code}000": StorageFailure.CONTENT for code in CONTENT_CLASSES},
    **{f"{code}000": StorageFailure.INTERNAL for code in INTERNAL_CLASSES},
    "23502": StorageFailure.CONTENT,
    "23505": StorageFailure.CONFLICT,
    "23514": StorageFailure.CONTENT,
    "23P01": StorageFailure.CONFLICT,
    "25006": StorageFailure.UNAVAILABLE,
    "42501": StorageFailure.UNAVAILABLE,
    "42601": StorageFailure.INTERNAL,
    "42703": StorageFailure.INTERNAL,
    "42P01": StorageFailure.INTERNAL,
    "42P05": StorageFailure.UNAVAILABLE,
    "53100": StorageFailure.UNAVAILABLE,
    "53300": StorageFailure.UNAVAILABLE,
    "57014": StorageFailure.UNAVAILABLE,
    "57P03": StorageFailure.UNAVAILABLE,
    "P0001": StorageFailure.CONTENT,
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
            with capture_logs() as logs, pytest.raises(GatewayError) as raised:
                await database.fetch_rows(f"DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''{sqlstate}''; END'")
            has_traceback = any(isinstance(entry.get("exc_info"), Exception) for entry in logs)
            if type(raised.value) is not ERRORS[expected] or has_traceback is not (expected is StorageFailure.INTERNAL):
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


async def test_refused_login_is_an_outage_whatever_its_code(database_url: str) -> None:
    database = Database(database_url.replace(urlsplit(database_url).path, "/missing", 1))
    try:
        with pytest.raises(StorageUnavailable) as raised:
            await database.fetch_rows("SELECT 1")
    finally:
        await database.close()
    assert get_sqlstate(raised.value.__cause__) == "3D000"


async def test_statement_that_a_change_of_the_schema_invalidates_succeeds_when_it_is_repeated(
    database_url: str,
) -> None:
    database = Database(database_url, pool_size=1)

    async def read() -> int:
        async with database.session() as session:
            return len((await (await session.connection()).exec_driver_sql("SELECT * FROM changing")).keys())

    try:
        async with database.session() as session:
            await (await session.connection()).exec_driver_sql("CREATE TABLE changing (id int)")
        assert await read() == 1
        await execute(database_url, "ALTER TABLE changing ADD COLUMN more int")
        with pytest.raises(StorageUnavailable):
            await read()
        assert await read() == 2
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

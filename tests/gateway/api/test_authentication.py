"""The static API key, CORS, and secrets that logs must not contain."""

import io
import json
import logging
import re
from collections.abc import AsyncGenerator

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from gateway.common.logging import get_logger
from gateway.domain.errors import Conflict, StorageRefused
from gateway.simulator import Fault, Simulator
from gateway.store.database import Database
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

KEY = "a-key-of-the-tests"
_ANSI_CODES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
async def protected_gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    options = {"api_key": SecretStr(KEY), "cors_origins": ("https://app.example",)}
    async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"X-API-Key": KEY}, 200),
        ({"X-API-Key": "kéy"}, 401),
    ],
)
async def test_all_routes_but_health_and_ready_require_the_key(
    protected_gateway: Gateway, headers: dict[str, str], status: int
) -> None:
    reply = await protected_gateway.get("/api/v1/tools", headers=headers)
    assert reply.status == status
    if status == 401:
        assert reply.body["error"]["code"] == "not_authenticated"
    for path in ("/health", "/ready"):
        assert (await protected_gateway.get(path, headers=headers)).status == 200


async def test_credential_is_ignored_when_authentication_is_disabled(gateway: Gateway) -> None:
    assert (await gateway.get("/api/v1/models", headers={"Authorization": "Bearer unknown"})).status == 200


@pytest.mark.parametrize(("origin", "allowed"), [("https://app.example", True), ("https://evil.example", False)])
async def test_only_configured_origins_pass_cors(protected_gateway: Gateway, origin: str, allowed: bool) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with protected_gateway.session.options(
        f"{protected_gateway.base_url}/api/v1/chat", headers=headers
    ) as response:
        assert (response.headers.get("access-control-allow-origin") == origin) is allowed


async def test_logs_contain_no_prompt_answer_arguments_or_key(
    protected_gateway: Gateway, log_text: io.StringIO
) -> None:
    headers = {"X-API-Key": KEY}
    protected_gateway.simulator.faults.add_faults(
        Fault(kind="status", status=500, match="zebra", times=9, body="zebra broke")
    )
    for prompt in ("Add a task to feed the camel", "zebra"):
        body = {"messages": [{"role": "user", "content": prompt}]}
        await protected_gateway.post("/api/v1/chat", body, headers=headers)
    await protected_gateway.get("/api/v1/tools?api_key=geheim-1234", headers={"X-API-Key": "geheim-5678"})
    lines = [json.loads(line) for line in log_text.getvalue().splitlines()]
    assert {"tool_called", "request"} <= {line["event"] for line in lines}
    assert {"completed", "failed"} <= {line.get("turn") for line in lines}
    for secret in ("camel", "zebra", KEY, "geheim", "simulated"):
        assert secret not in log_text.getvalue()
    assert all(line.get("request_id") for line in lines if line["event"] == "request")


@pytest.mark.parametrize("log_text", [False], indirect=True, ids=["terminal"])
async def test_statuses_are_numbers_in_the_log(shared_gateway: Gateway, log_text: io.StringIO) -> None:
    """The MCP SDK answers with members of an enumeration."""
    assert (await shared_gateway.post("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"})).status == 400
    assert (await shared_gateway.get("/nothing")).status == 404
    for number in (400, 404):
        await eventually(lambda number=number: f"status={number}" in _ANSI_CODES.sub("", log_text.getvalue()))
    assert "HTTPStatus" not in log_text.getvalue()


@pytest.mark.parametrize("log_text", [True, False], indirect=True, ids=["json", "terminal"])
async def test_failed_sql_statement_logs_no_row_values(database_url: str, log_text: io.StringIO) -> None:
    database = Database(database_url)
    log = get_logger("test")
    row = {"hash": "geheim-hash", "prefix": "geheim-prefix", "name": "geheim\nname", "owner": "geheim-owner"}
    values_sql = "gen_random_uuid(), :hash, :prefix, :name, :owner, 'user', 'x'"
    insert = (
        f"INSERT INTO api_keys (id, hash, prefix, name, owner, role, created_by) VALUES ({values_sql}) RETURNING id"
    )
    try:
        await database.fetch_rows(insert, **row)
        for statement, values in (
            (insert, row),
            (insert, row | {"prefix": None}),
            ("SELECT CAST(:value AS uuid)", {"value": "geheim-id"}),
            ("SELECT CAST(CAST(:value AS text) AS uuid)", {"value": "geheim-id"}),
        ):
            try:
                try:
                    await database.fetch_rows(statement, **values)
                except (Conflict, StorageRefused) as error:
                    cause = error.__cause__
                    if statement is insert:
                        assert isinstance(cause, DBAPIError)
                        log.error("logged", error=str(cause), original=repr(cause.orig))
                    raise ExceptionGroup("several", [error]) from error
            except ExceptionGroup as error:
                log.error("broke", exc_info=error)
                logging.getLogger("library").exception("broke too")
    finally:
        await database.close()
    text = log_text.getvalue()
    for message in ("IntegrityError", "UniqueViolationError", "sqlstate=23505", "constraint_name=ux_api_keys_", "rows"):
        assert message in text
    assert "geheim" not in text


@pytest.mark.parametrize("log_text", [False], indirect=True, ids=["terminal"])
async def test_terminal_control_characters_are_escaped_in_logs(shared_gateway: Gateway, log_text: io.StringIO) -> None:
    await shared_gateway.get("/y%1b%5b31mred%c2%9b%e2%80%ae%0aforged")
    log = get_logger("test")
    log.warning("event\x1b[2J", deep={"a\x1b": ["\u202e"]}, flat="x\x1b[31m")
    try:
        raise ValueError("of\x1b[31ma message")
    except ValueError:
        log.exception("broke")
    logging.getLogger("library").error("message \x9b2J")
    # The line of the request follows its response.
    await eventually(lambda: "\\nforged" in log_text.getvalue())
    text = log_text.getvalue()
    assert "\\x1b[31mred\\x9b\\u202e\\nforged" in text
    assert "of\\x1b[31ma message" in text
    assert not set(text) & {"\x1b", "\x9b", "\u202e"}


@pytest.mark.parametrize("log_text", [True, False], indirect=True, ids=["json", "terminal"])
def test_secrets_are_masked_in_logs(log_text: io.StringIO) -> None:
    log = get_logger("test")
    log.warning(
        "logged", api_key="abc", note="Bearer abcdefghijk and gsk_1234567890abcdef", url="postgres://u:p4ss@h/d"
    )
    log.warning(
        "logged", note="agw_0123abcd_the-rest-of-a-key and eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
    )
    log.warning(
        "logged", headers={"Authorization": "Basic deep-1"}, items=["x", {"refresh_token": "deep-2"}], tokens=31
    )
    log.warning("logged", note="redis://:p4ss@h, postgres://u:a@p4ss@h/d, tvly-the-rest-of-a-key, Basic dXNlcjpwYXNz")
    try:
        password = "p4ss-of-a-local"
        raise ValueError(f"{len(password)} for gsk_of-a-message")
    except ValueError:
        log.exception("broke")
    logging.getLogger("library").error("no postgres://u:%s@h", "p4ss")
    text = log_text.getvalue()
    for secret in (
        "abcdefghijk",
        "gsk_1234567890",
        "p4ss",
        "abc",
        "the-rest-of-a-key",
        "c2lnbmF0dXJl",
        "deep-",
        "dXNlcjpwYXNz",
        "of-a-message",
    ):
        assert secret not in text
    assert "ValueError" in text
    assert "31" in text


class FailingStrError(Exception):
    """An exception whose text cannot be formatted."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("log_text", [True, False], indirect=True, ids=["json", "terminal"])
def test_logging_failure_does_not_raise(log_text: io.StringIO) -> None:
    log = get_logger("test")
    try:
        raise FailingStrError
    except FailingStrError:
        log.exception("broke")
    assert json.loads(log_text.getvalue())["event"] == "line_not_logged"
    log_text.close()
    log.warning("logged")  # the stream is closed

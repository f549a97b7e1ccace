"""The audit log, feedback on turns, and daily statistics."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from gateway.simulator import Simulator
from gateway.store import usage
from gateway_runtime.postgres.url import plain_dsn
from tests.auth_helpers import Keyring
from tests.stack import serve_gateway

ROLE_SQL = Path(__file__).parent.parent.parent.parent / "docs" / "application_role.sql"


async def get_audit_actions(keyring: Keyring, query: str = "") -> list[tuple[str, str]]:
    reply = await keyring.get("root", f"/api/v1/audit{query}")
    assert reply.status == 200
    return [(item["actor"], item["action"]) for item in reply.body["items"]]


async def test_audit_log_lists_actors_and_actions_for_admins(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    created = (await keyring.post("ada", "/api/v1/keys", {})).body
    await keyring.request_status("DELETE", "ada", f"/api/v1/keys/{created['id']}")
    turn = (await keyring.chat("ada", "hello", conversation_id="new")).body
    await keyring.request_status("DELETE", "ada", f"/api/v1/conversations/{turn['conversation_id']}")
    response = (await keyring.post("ada", "/v1/responses", {"input": "hello"})).body
    await keyring.request_status("DELETE", "ada", f"/v1/responses/{response['id']}")
    server = {"name": "more", "url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": "Bearer of-the-server"}}
    await keyring.post("root", "/api/v1/mcp/servers", server)
    await keyring.request_status("DELETE", "root", "/api/v1/mcp/servers/more")
    expected = [
        ("root", "server.remove"),
        ("root", "server.put"),
        ("ada", "turn.delete"),
        ("ada", "conversation.delete"),
        ("ada", "key.revoke"),
        ("ada", "key.create"),
        ("test", "key.create"),
        ("test", "key.create"),
    ]
    assert await get_audit_actions(keyring) == expected
    assert await get_audit_actions(keyring, "?action=key.create&actor=ada") == [("ada", "key.create")]
    first_page = (await keyring.get("root", "/api/v1/audit?limit=5")).body
    second_page = (await keyring.get("root", f"/api/v1/audit?limit=5&before={first_page['next']}")).body
    assert [(i["actor"], i["action"]) for i in first_page["items"] + second_page["items"]] == expected
    assert second_page["next"] is None
    assert "of-the-server" not in str(first_page)
    assert (await keyring.get("ada", "/api/v1/audit")).status == 403


@pytest.mark.parametrize(
    "change", ["UPDATE audit_log SET actor = 'changed'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
async def test_audit_log_is_append_only(keyring: Keyring, db: asyncpg.Connection, change: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await db.execute(change)
    assert await db.fetchval("SELECT count(*) FROM audit_log") == 1


async def test_application_role_can_only_append_to_the_audit_log(
    database_url: str, db: asyncpg.Connection, simulator: Simulator, tools_url: str
) -> None:
    await db.execute(ROLE_SQL.read_text())
    await db.execute("ALTER ROLE gateway_app LOGIN")
    try:
        url = make_url(database_url).set(username="gateway_app").render_as_string(hide_password=False)
        async with serve_gateway(url, simulator, tools_url) as gateway:
            keyring = Keyring(gateway)
            await keyring.create_key("root", role="admin")
            turn = (await keyring.chat("root", "Add a task to rest", conversation_id="new", approval="never")).body
            assert turn["tool_calls"][0]["outcome"] == "ok"
            feedback = await keyring.post("root", f"/api/v1/turns/{turn['turn_id']}/feedback", {"rating": "up"})
            assert feedback.status == 200
            path = f"/api/v1/conversations/{turn['conversation_id']}"
            assert await keyring.request_status("DELETE", "root", path) in (200, 204)
            assert await get_audit_actions(keyring) == [("root", "conversation.delete"), ("test", "key.create")]
        connection = await asyncpg.connect(plain_dsn(url))
        try:
            for change in (
                "UPDATE audit_log SET actor = 'changed'",
                "DELETE FROM audit_log",
                "TRUNCATE audit_log",
                "INSERT INTO audit_log SELECT * FROM audit_log ON CONFLICT (id) DO UPDATE SET actor = 'changed'",
                "ALTER TABLE audit_log DISABLE TRIGGER ALL",
                "DROP TRIGGER audit_log_append_only ON audit_log",
                "DROP TABLE audit_log",
                "CREATE OR REPLACE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE sql AS ''",
                "SET session_replication_role = replica",
                "UPDATE alembic_version SET version_num = 'none'",
            ):
                with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)):
                    await connection.execute(change)
        finally:
            await connection.close()
        assert await db.fetchval("SELECT count(*) FROM audit_log WHERE actor <> 'changed'") == 2
    finally:
        await db.execute("DROP OWNED BY gateway_app")
        await db.execute("ALTER ROLE gateway_app NOLOGIN")


async def test_owner_can_rate_a_turn_and_change_the_rating(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("ada")
    await keyring.create_key("bob")
    turn = (await keyring.chat("ada", "hello")).body["turn_id"]
    path = f"/api/v1/turns/{turn}/feedback"
    first = await keyring.post("ada", path, {"rating": "up", "comment": "right\x00"})
    assert (first.status, first.body["rating"], first.body["comment"]) == (200, "up", "right\ufffd")
    await keyring.post("ada", path, {"rating": "down"})
    rows = [tuple(row) for row in await db.fetch("SELECT owner, rating, comment FROM turn_feedback")]
    assert rows == [("ada", "down", None)]
    assert (await keyring.post("bob", path, {"rating": "up"})).status == 404
    assert (await keyring.post("ada", path, {"rating": "sideways"})).status == 422
    [today] = (await keyring.get("ada", "/api/v1/budget")).body["days"]
    assert (today["turns"], today["up"], today["down"]) == (1, 0, 1)
    assert (await keyring.get("bob", "/api/v1/budget")).body["days"] == []


async def test_comment_on_an_ephemeral_turn_is_not_stored(keyring: Keyring, db: asyncpg.Connection) -> None:
    turn = (await keyring.chat("root", "hello", store=False)).body["turn_id"]
    await keyring.post("root", f"/api/v1/turns/{turn}/feedback", {"rating": "up", "comment": "it said that I am ill"})
    assert await db.fetchval("SELECT comment FROM turn_feedback") is None


async def test_stats_count_turns_tokens_cost_errors_and_tools_by_day(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("ada")
    await keyring.chat("ada", "What is 23*19?")
    await keyring.chat("root", "What is 1/0?")
    failed = await keyring.chat("root", "hello", model="openai/gpt-oss-20b", response_format={"type": "json_object"})
    await db.execute("UPDATE turn_usage SET at = at - interval '1 day' WHERE owner = 'ada'")
    stats = (await keyring.get("root", "/api/v1/admin/stats?days=2")).body
    today, yesterday = stats["days"]
    assert today["turns"] == 2
    assert yesterday["turns"] == yesterday["completed"] == 1
    assert yesterday["total_tokens"] == yesterday["prompt_tokens"] + yesterday["completion_tokens"] > 0
    assert 0 < yesterday["cost_usd"] < 1
    assert {model["model"] for model in stats["models"]} == {"openai/gpt-oss-120b", "openai/gpt-oss-20b"}
    [calculator] = [tool for tool in stats["tools"] if tool["tool"] == "calculator"]
    assert (calculator["server"], calculator["calls"], calculator["errors"]) == ("tools", 2, 1)
    assert len((await keyring.get("root", "/api/v1/admin/stats?days=1")).body["days"]) == 1
    assert (await keyring.get("ada", "/api/v1/admin/stats")).status == 403
    assert failed.status in (200, 502)


@pytest.mark.parametrize(
    ("query", "owner"),
    [
        ("BY_DAY", False),
        ("BY_DAY", True),
        ("RATINGS", False),
        ("RATINGS", True),
        ("BY_MODEL", False),
        ("ERRORS", False),
        ("TOOLS", False),
    ],
)
async def test_stats_queries_use_indexes(db: asyncpg.Connection, query: str, owner: bool) -> None:
    statement: str = getattr(usage, query)
    statement = statement.replace(":days", "30")
    statement = statement.replace(":owner", "'ada'" if owner else "NULL")
    await db.execute("SET enable_seqscan = off")
    plan: list[Any] = await db.fetch(f"EXPLAIN {statement}")
    plan_text = "\n".join(row[0] for row in plan)
    assert "Index" in plan_text
    assert "Seq Scan" not in plan_text

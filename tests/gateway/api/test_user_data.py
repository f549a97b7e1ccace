"""Export and erasure of a user's data, and retention of turns."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.test_cli_keys import run_command
from tests.stack import serve_gateway

USER = "zoe-7391"
SECRET = "the-marker-5512"


async def create_data(keyring: Keyring) -> None:
    """Create rows of a user in every table that may name users."""
    gateway = keyring.gateway
    headers = await keyring.create_key(USER)
    prompt = {"messages": [{"role": "user", "content": f"Add a task to {SECRET}"}]}
    turn = (await gateway.post("/api/v1/chat", {**prompt, "conversation_id": "new"}, headers=headers)).body
    rating = {"rating": "up", "comment": SECRET}
    assert (await gateway.post(f"/api/v1/turns/{turn['turn_id']}/feedback", rating, headers=headers)).status == 200
    cached = {"messages": [{"role": "user", "content": f"Say {SECRET}"}], "cache": {"ttl": 600}}
    assert (await gateway.post("/api/v1/chat", cached, headers=headers)).status == 200
    await gateway.post("/api/v1/chat", {**prompt, "approval": "always"}, headers=headers)
    await keyring.post(USER, "/api/v1/keys", {"name": f"key of {USER}"})
    grants: Any = gateway.state.user_data
    async with grants._database.session() as session:
        from sqlmodel import text

        connection = await session.connection()
        await connection.execute(
            text("INSERT INTO oauth_grants (server, owner, url, sealed) VALUES ('s', :user, 'u', 'x')"), {"user": USER}
        )
        await connection.execute(
            text(
                "INSERT INTO oauth_logins (ticket, login, expires_at)"
                " VALUES ('t', jsonb_build_object('owner', cast(:user AS text), 'by', cast(:user AS text)), now())"
            ),
            {"user": USER},
        )
        await connection.execute(text("INSERT INTO mcp_servers (name, changed_by) VALUES ('s', :user)"), {"user": USER})
        await connection.execute(
            text(
                "INSERT INTO tools.http_tools (name, draft, origin, revision, updated_by)"
                " VALUES ('t', '{}', 'https://x.example', 1, :user)"
            ),
            {"user": USER},
        )
        await connection.execute(
            text(
                "INSERT INTO tools.http_tool_secrets (origin, name, value, updated_by)"
                " VALUES ('https://x.example', 'token', 'sealed', :user)"
            ),
            {"user": USER},
        )


async def find_tables(db: asyncpg.Connection, *texts: str) -> set[str]:
    """List the tables that contain one of the texts, in any column."""
    tables = await db.fetch(
        "SELECT table_schema || '.' || table_name FROM information_schema.tables"
        " WHERE table_schema IN ('public', 'tools') AND table_type = 'BASE TABLE'"
    )
    found = set[str]()
    for (table,) in tables:
        for value in texts:
            if await db.fetchval(f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%' || $1 || '%'", value):
                found.add(table.removeprefix("public."))
    return found


async def test_export_has_every_table_of_a_user_without_secrets(keyring: Keyring, db: asyncpg.Connection) -> None:
    await create_data(keyring)
    await keyring.create_key("bob")
    await keyring.chat("bob", "not yours")
    url = f"{keyring.gateway.base_url}/api/v1/admin/user-data?user={USER}"
    async with keyring.gateway.session.get(url, headers=keyring.headers("root")) as response:
        assert response.status == 200
        text = await response.text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["table"] for row in rows} >= await find_tables(db, USER, SECRET)
    assert {row["table"] for row in rows} >= {"turn_events", "tool_calls", "turn_inputs"}
    assert "not yours" not in text
    for row in (row["row"] for row in rows if row["table"] in ("api_keys", "oauth_grants", "tools.http_tool_secrets")):
        assert not {"hash", "sealed", "value"} & set(row)
    assert (await keyring.get("bob", f"/api/v1/admin/user-data?user={USER}")).status == 403
    by_command = await run_command(str(keyring.gateway.state.settings.database_url), "users", "export", USER)
    assert by_command.count('"table":"turns"') == text.count('"table":"turns"') > 0


async def erase_and_check(keyring: Keyring, db: asyncpg.Connection, *, by_command: bool) -> None:
    gateway = keyring.gateway
    await keyring.create_key("bob")
    await keyring.chat("bob", f"{SECRET} of bob", conversation_id="new")
    bobs = await db.fetchval("SELECT count(*) FROM turn_events JOIN turns ON turns.id = turn_id WHERE owner = 'bob'")
    await create_data(keyring)
    statistics = await db.fetchval("SELECT sum(total_tokens) FROM turn_usage")
    before = await find_tables(db, USER)
    assert before >= {"turns", "conversations", "turn_usage", "api_keys", "oauth_grants", "oauth_logins", "tools.tasks"}
    assert before >= {"cached_responses", "turn_feedback", "mcp_servers", "tools.http_tools", "tools.http_tool_secrets"}
    if by_command:
        await run_command(str(gateway.state.settings.database_url), "users", "erase", USER, "--yes")
    else:
        url = f"{gateway.base_url}/api/v1/admin/user-data?user={USER}"
        async with gateway.session.delete(url, headers=keyring.headers("bob")) as refused:
            assert refused.status == 403
        async with gateway.session.delete(url, headers=keyring.headers("root")) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["rows"]["turns"] == 3
    assert await find_tables(db, USER) == {"audit_log"}
    leftovers = await find_tables(db, f"task to {SECRET}")
    assert leftovers <= {"audit_log"}
    orphans = "SELECT count(*) FROM turn_events WHERE turn_id NOT IN (SELECT id FROM turns)"
    assert await db.fetchval(orphans) == 0
    assert await db.fetchval("SELECT sum(total_tokens) FROM turn_usage") >= statistics
    kept = await db.fetchval("SELECT count(*) FROM turn_events JOIN turns ON turns.id = turn_id WHERE owner = 'bob'")
    assert kept == bobs

    async def is_refused() -> bool:
        return (await keyring.get(USER, "/v1/models")).status == 401

    await eventually(is_refused)
    assert (await keyring.get("root", "/v1/models")).status == 200


async def test_erasure_by_route_leaves_nothing_of_the_user(keyring: Keyring, db: asyncpg.Connection) -> None:
    await erase_and_check(keyring, db, by_command=False)


async def test_erasure_by_command_leaves_nothing_of_the_user(keyring: Keyring, db: asyncpg.Connection) -> None:
    await erase_and_check(keyring, db, by_command=True)


@pytest.mark.parametrize("way", ["command", "route of another worker"])
async def test_running_turn_of_an_erased_user_is_stopped_and_writes_nothing_more(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection, way: str
) -> None:
    """The model is silent, so no refused write stops the turn."""
    simulator.faults.add_faults(Fault(kind="stall", match="forever", after_chunks=1, times=9))
    async with (
        serve_gateway(database_url, simulator, tools_url) as gateway,
        serve_gateway(database_url, simulator, tools_url) as other_worker,
    ):
        keyring = Keyring(gateway)
        await keyring.create_key("root", role="admin")
        headers = await keyring.create_key(USER)
        await gateway.post("/v1/responses", {"input": "forever", "background": True}, headers=headers)
        await simulator.wait_until(lambda s: s.open_streams == 1)
        if way == "command":
            await run_command(database_url, "users", "erase", USER, "--yes")
        else:
            url = f"{other_worker.base_url}/api/v1/admin/user-data?user={USER}"
            async with other_worker.session.delete(url, headers=keyring.headers("root")) as response:
                assert response.status == 200
        await simulator.wait_until(lambda s: s.open_streams == 0)
        await eventually(lambda: gateway.state.turn_service.running_turns == 0)
        assert other_worker.state.turn_service.running_turns == 0
        assert await find_tables(db, USER) == {"audit_log"}
        assert await db.fetchval("SELECT count(*) FROM turn_events") == 0


async def test_turns_older_than_the_retention_period_are_deleted(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url) as gateway:
        old = (await gateway.chat(f"old {SECRET}", conversation_id="new")).body
        waiting = (await gateway.chat("Add a task to wait", approval="always")).body
        month_ago = datetime.now(UTC) - timedelta(days=31)
        new_id = f"{int(month_ago.timestamp() * 1000) << 80:032x}"
        for table, column in (("turn_events", "turn_id"), ("turn_usage", "turn_id"), ("turns", "id")):
            await db.execute(
                f"UPDATE {table} SET {column} = $1::text::uuid WHERE {column} = $2", new_id, old["turn_id"]
            )
        await db.execute("UPDATE turns SET completed_at = $1 WHERE id = $2::text::uuid", month_ago, new_id)
        conversation = f"{(int(month_ago.timestamp() * 1000) << 80) + 1:032x}"
        await db.execute(
            "INSERT INTO conversations (id, owner, title, updated_at) VALUES ($1::text::uuid, 'x', '', $2)",
            conversation,
            month_ago,
        )
        recent = (await gateway.chat("recent", conversation_id="new")).body
    async with serve_gateway(database_url, simulator, tools_url, turn_retention_days=30) as gateway:
        assert any(task.name == "turn retention" for task in gateway.state.tasks)

        async def is_deleted() -> bool:
            return not await db.fetchval("SELECT count(*) FROM conversations WHERE id = $1::text::uuid", conversation)

        await eventually(is_deleted)
        remaining = {str(row[0]) for row in await db.fetch("SELECT id FROM turns")}
        assert remaining == {waiting["turn_id"], recent["turn_id"]}
        assert await db.fetchval("SELECT count(*) FROM turn_events WHERE turn_id = $1::text::uuid", new_id) == 0
        assert await db.fetchval("SELECT count(*) FROM turn_usage WHERE turn_id = $1::text::uuid", new_id) == 1


@pytest.mark.faults
@pytest.mark.parametrize("way", ["retention", "route"])
async def test_deleted_turn_leaves_no_text_in_its_conversation(
    keyring: Keyring, db: asyncpg.Connection, way: str
) -> None:
    """The conversation goes on, so it stays."""
    await create_data(keyring)
    gateway, headers = keyring.gateway, keyring.headers(USER)
    first = await db.fetchrow("SELECT id, conversation_id FROM turns WHERE owner = $1 ORDER BY id LIMIT 1", USER)
    assert first is not None
    conversation = str(first["conversation_id"])
    more = {"messages": [{"role": "user", "content": "Go on."}], "conversation_id": conversation}
    assert (await gateway.post("/api/v1/chat", more, headers=headers)).status == 200
    if way == "route":
        path = f"/v1/responses/resp_{first['id'].hex}"
        async with gateway.session.delete(f"{gateway.base_url}{path}", headers=headers) as response:
            assert response.status == 200, await response.text()
    else:
        await db.execute("DELETE FROM turn_events WHERE turn_id <> $1", first["id"])
        await db.execute("UPDATE turns SET completed_at = now() - interval '9 days' WHERE id = $1", first["id"])
        old_id = f"{int((datetime.now(UTC) - timedelta(days=9)).timestamp() * 1000) << 80:032x}"
        for table in ("turn_events", "turn_usage", "turn_feedback", "tool_calls", "turn_inputs", "cached_responses"):
            await db.execute(f"DELETE FROM {table} WHERE turn_id = $1", first["id"])
        await db.execute("UPDATE turns SET id = $1::text::uuid WHERE id = $2", old_id, first["id"])
        assert await gateway.state.user_data.delete_old_turns(timedelta(days=8)) == 1
    title = await db.fetchval("SELECT title FROM conversations WHERE id = $1", first["conversation_id"])
    assert title == ""

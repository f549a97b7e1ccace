import asyncio
from pathlib import Path

import asyncpg
import pytest
from mcp import Client, MCPError
from mcp.types import TextContent, TextResourceContents

from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import acting_for
from gateway_runtime import embedded_postgres
from tests.eventually import eventually
from tests.postgres_faults import serve_proxy
from tests.tools_server.conftest import ERAS, NO_DATABASE, connect, serve_tools, settings, text_of
from tools_server.migrations import upgrade, upgrade_when_available
from tools_server.server import create_server
from tools_server.tasks.store import TaskStore, TasksUnavailable, UnknownTask


async def say(client: Client, tool: str, user: str = "ann", **arguments: object) -> str:
    with acting_for(Principal(user)):
        return text_of(await client.call_tool(tool, arguments))


@pytest.mark.parametrize("era", ERAS)
async def test_task_lives_from_add_to_delete(tools: str, era: str, db: asyncpg.Connection) -> None:
    async with connect(tools, era) as client:
        assert await say(client, "list_tasks") == "There are no tasks."
        assert await say(client, "add_task", title="buy milk") == "Added task #1: buy milk"
        assert await say(client, "add_task", title=" call\nAnn ", description="about\nthe car") == (
            "Added task #2: call Ann"
        )
        assert await say(client, "list_tasks") == (
            "#1 [pending] buy milk\n#2 [pending] call Ann\n    Details: about the car"
        )
        assert await say(client, "complete_task", task_id=1) == "Completed task #1: buy milk"
        assert await say(client, "complete_task", task_id=1) == "Completed task #1: buy milk"
        assert await say(client, "list_tasks", status="completed") == "#1 [completed] buy milk"
        assert await say(client, "update_task", task_id=2, title="write to Ann") == "Changed task #2: write to Ann"
        assert await say(client, "delete_task", task_id=1) == "Deleted task #1: buy milk"
        assert await say(client, "list_tasks", status="completed") == "There are no completed tasks."
        assert await say(client, "add_task", title="third") == "Added task #3: third"
    rows = await db.fetch("SELECT user_id, id, title, description, status FROM tools.tasks ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("ann", 2, "write to Ann", "about\nthe car", "pending"),
        ("ann", 3, "third", "", "pending"),
    ]


async def test_structured_content_tells_the_whole_task(tools: str) -> None:
    async with connect(tools, "auto") as client:
        added = (await client.call_tool("add_task", {"title": "t", "description": "d"})).structured_content
        listed = (await client.call_tool("list_tasks", {})).structured_content
    assert added is not None
    assert listed is not None
    assert {"id": 1, "title": "t", "description": "d", "status": "pending", "completed_at": None}.items() <= (
        added["task"].items()
    )
    assert listed == {"tasks": [added["task"]], "total": 1}


@pytest.mark.parametrize("era", ERAS)
async def test_users_on_one_connection_have_nothing_to_do_with_each_others_tasks(tools: str, era: str) -> None:
    """Share a connection between two users.

    The first caller creates the session; each call belongs to the user of its token.
    """
    async with connect(tools, era) as client:
        await say(client, "add_task", "ann", title="ann's own")
        assert await say(client, "list_tasks", "bob") == "There are no tasks."
        for tool, more in (("complete_task", {}), ("delete_task", {}), ("update_task", {"title": "stolen"})):
            refused = await say(client, tool, "bob", task_id=1, **more)
            assert "The user has no task #1. There are: none at all." in refused
        assert await say(client, "add_task", "bob", title="bob's own") == "Added task #1: bob's own"
        assert await say(client, "list_tasks", "ann") == "#1 [pending] ann's own"
        assert text_of(await client.call_tool("list_tasks", {})) == "There are no tasks."  # the gateway's own
        with acting_for(Principal("bob")):
            content = (await client.read_resource("tasks://all")).contents[0]
            assert isinstance(content, TextResourceContents)
            assert content.text == "#1 [pending] bob's own"
            prompt = (await client.get_prompt("plan_day")).messages[0].content
            assert isinstance(prompt, TextContent)
            assert prompt.text.endswith("#1 [pending] bob's own")


@pytest.mark.parametrize("era", ERAS)
async def test_loopback_caller_without_a_token_is_the_user_local(
    database_url: str, era: str, db: asyncpg.Connection
) -> None:
    async with (
        serve_tools(database_url=database_url, tools_server_secret=None) as address,
        Client(f"{address}/mcp", mode=era) as client,  # pyright: ignore[reportArgumentType]
    ):
        assert text_of(await client.call_tool("add_task", {"title": "t"})) == "Added task #1: t"
    assert await db.fetchval("SELECT user_id FROM tools.tasks") == "local"


@pytest.mark.parametrize("era", ERAS)
async def test_calls_of_two_users_at_the_same_time_stay_apart(tools: str, era: str) -> None:
    async with connect(tools, era) as client:

        async def add(user: str, number: int) -> None:
            await say(client, "add_task", user, title=f"{user} {number}")

        await asyncio.gather(*(add(user, number) for number in range(20) for user in ("ann", "bob")))
        for user in ("ann", "bob"):
            listed = (await say(client, "list_tasks", user)).splitlines()
            assert len(listed) == 20
            assert all(f" {user} " in line for line in listed)


@pytest.mark.parametrize("era", ERAS)
async def test_session_opened_by_one_user_serves_the_next_as_himself(tools: str, era: str) -> None:
    """A session id is no credential: the token names the user."""
    with acting_for(Principal("ann")):
        opened = connect(tools, era)
        client = await opened.__aenter__()
    try:
        assert await say(client, "add_task", "bob", title="mine") == "Added task #1: mine"
        assert await say(client, "list_tasks", "ann") == "There are no tasks."
    finally:
        await opened.__aexit__(None, None, None)


async def test_fifty_tasks_added_at_once_get_fifty_numbers(database_url: str) -> None:
    store = TaskStore(database_url, timeout_seconds=60)
    try:
        added = await asyncio.gather(*(store.add_task("ann", f"task {n}", "") for n in range(50)))
        assert sorted(task.id for task in added) == list(range(1, 51))
    finally:
        await store.close()


async def test_number_of_a_deleted_task_is_never_given_again(database_url: str) -> None:
    store = TaskStore(database_url, timeout_seconds=60)
    try:
        for _ in range(3):
            last = await store.add_task("ann", "t", "")
            await store.delete_task("ann", last.id)
        assert (await store.add_task("ann", "t", "")).id == 4
        with pytest.raises(UnknownTask):
            await store.complete_task("ann", 3)
    finally:
        await store.close()


async def test_read_only_database_leaves_the_tasks_readable(database_url: str) -> None:
    store = TaskStore(f"{database_url}&default_transaction_read_only=on", timeout_seconds=60)
    try:
        with pytest.raises(TasksUnavailable):
            await store.add_task("ann", "t", "")
        assert (await store.list_tasks("ann", None)).total == 0
    finally:
        await store.close()


async def test_silent_database_is_answered_in_time(database_url: str) -> None:
    async with serve_proxy(database_url) as (proxy, url):
        store = TaskStore(url, timeout_seconds=2)
        try:
            await eventually(store.is_reachable)
            proxy.become_silent()
            async with asyncio.timeout(30):
                with pytest.raises(TasksUnavailable):
                    await store.add_task("ann", "t", "")
            proxy.heal()
            await eventually(store.is_reachable)
        finally:
            await store.close()


async def test_wrong_schema_is_an_error_without_details(tools: str, db: asyncpg.Connection) -> None:
    async with connect(tools, "auto") as client:
        await db.execute("ALTER TABLE tools.tasks RENAME COLUMN title TO gone")
        assert await say(client, "add_task", title="buy milk") == "Error executing tool add_task"
        await db.execute("ALTER TABLE tools.tasks RENAME COLUMN gone TO title")
        assert await say(client, "add_task", title="buy milk") == "Added task #1: buy milk"


async def test_unknown_number_is_answered_with_those_there_are(tools: str) -> None:
    async with connect(tools, "auto") as client:
        await say(client, "add_task", title="buy milk")
        assert "The user has no task #7. There are: #1 [pending] buy milk." in await say(
            client, "complete_task", task_id=7
        )


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("add_task", {"title": ""}, "title: String should have at least 1 character"),
        ("add_task", {"title": " \0 "}, "The title is empty"),
        ("add_task", {"title": "x" * 201}, "title: String should have at most 200 characters"),
        ("add_task", {"title": "x", "description": "x" * 2001}, "description: String should have at most 2000"),
        ("add_task", {}, "title: Field required"),
        ("list_tasks", {"status": "open"}, "status: Input should be 'all', 'pending' or 'completed'"),
        ("complete_task", {"task_id": 0}, "task_id: Input should be greater than or equal to 1"),
        ("complete_task", {"task_id": 10**12}, "task_id: Input should be less than"),
        ("complete_task", {"task_id": "first"}, "task_id: Input should be a valid integer"),
        ("update_task", {"task_id": 1}, "Give a new title or a new description"),
    ],
)
async def test_wrong_arguments_are_answered_with_what_is_wrong(
    tool: str, arguments: dict[str, object], reason: str
) -> None:
    async with Client(create_server(settings(), TaskStore(NO_DATABASE))) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert reason in text_of(result)
    assert "pydantic" not in text_of(result)


async def test_nul_characters_are_left_out(tools: str) -> None:
    async with connect(tools, "auto") as client:
        assert await say(client, "add_task", title="a\0b", description="\0") == "Added task #1: ab"


async def test_long_list_is_cut_and_says_so(tools: str, db: asyncpg.Connection) -> None:
    await db.execute(
        "INSERT INTO tools.tasks (user_id, id, title, status) "
        "SELECT 'ann', n, 'task ' || n, 'pending' FROM generate_series(1, 250) n"
    )
    async with connect(tools, "auto") as client:
        listed = (await say(client, "list_tasks")).splitlines()
    assert len(listed) == 201
    assert listed[-1] == "… and 50 more."


async def test_full_list_takes_no_more(tools: str, db: asyncpg.Connection) -> None:
    await db.execute(
        "INSERT INTO tools.tasks (user_id, id, title, status) "
        "SELECT 'ann', n, 'task', 'pending' FROM generate_series(1, 10000) n"
    )
    async with connect(tools, "auto") as client:
        assert "which is the maximum. Delete some first." in await say(client, "add_task", title="one more")


async def test_unknown_resource_is_refused_with_those_there_are(tools: str) -> None:
    async with connect(tools, "auto") as client:
        with pytest.raises(MCPError, match="There are tasks://all, tasks://pending and tasks://completed"):
            await client.read_resource("tasks://open")


@pytest.mark.parametrize("era", ERAS)
async def test_without_its_database_only_the_tasks_are_away(era: str) -> None:
    async with serve_tools() as address, connect(address, era) as client:
        away = await client.call_tool("list_tasks", {})
        assert away.is_error
        assert "database cannot be reached now, and nothing was changed" in text_of(away)
        for asking in (client.read_resource("tasks://all"), client.get_prompt("plan_day")):
            with pytest.raises(MCPError, match="database cannot be reached now"):
                await asking
        assert text_of(await client.call_tool("calculator", {"expression": "5*9"})) == "5*9 = 45"


async def test_restart_of_postgres_between_two_calls_is_not_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("restart")
    for path in (directory, *list(directory.parents)[:2]):
        path.chmod(0o755)  # Postgres may run as a user of its own
    server = await asyncio.to_thread(embedded_postgres.find_cluster, Path(directory))
    server.ensure_running()
    try:
        await asyncio.to_thread(upgrade, server.build_url())
        store = TaskStore(server.build_url())
        await asyncio.gather(*(store.add_task("ann", f"before {n}", "") for n in range(6)))
        server.stop_if_started_here()
        server.ensure_running()
        assert (await store.list_tasks("ann", None)).total == 6
        assert (await store.add_task("ann", "after", "")).id == 7
        await store.close()
    finally:
        server.stop_if_started_here()


async def test_schema_comes_as_soon_as_the_database_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("late")
    for path in (directory, *list(directory.parents)[:2]):
        path.chmod(0o755)
    server = await asyncio.to_thread(embedded_postgres.find_cluster, Path(directory))
    migrating = asyncio.create_task(upgrade_when_available(server.build_url()))
    store = TaskStore(server.build_url())
    try:
        async with Client(create_server(settings(), store)) as client:
            assert (await client.call_tool("list_tasks", {})).is_error
            server.ensure_running()
            async with asyncio.timeout(30):
                await migrating
            assert text_of(await client.call_tool("add_task", {"title": "now"})) == "Added task #1: now"
    finally:
        await store.close()
        server.stop_if_started_here()

"""Turns and calls that hosts of `/mcp` follow as tasks."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from starlette.requests import Request

from gateway.domain.messages import JsonObject
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.e2e.node import require_node, run_script
from tests.eventually import eventually
from tests.gateway.api.task_host import TASKS, HostError, open_host
from tests.gateway.api.test_redaction import RULES
from tests.gateway.mcp_client.raw_server import RawError, RawServer, make_raw_tool, serve_raw, wait_unless_disconnected
from tests.gateway.mcp_client.task_server import FORM, TaskServer, make_text_result
from tests.stack import Gateway, serve_gateway

pytestmark = pytest.mark.faults
ERAS = pytest.mark.parametrize("modern", [False, True], ids=["2025-11-25", "2026-07-28"])
ADDRESS = "ada.lovelace@example.com"
RELATED = "io.modelcontextprotocol/related-task"


class SlowServer(RawServer):
    """Answers calls of `slow` when the test says so.

    Other calls are answered at once.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(make_raw_tool("slow", **fields), make_raw_tool("fast"), modern=True)
        self.may_answer = asyncio.Event()
        self.cancelled = 0
        self.result: Any = {**make_text_result("done"), "_meta": {"from": "server"}, "structuredContent": {"n": 1}}
        self.answers["tools/call"] = self._call

    async def _call(self, params: dict[str, Any], request: Request) -> Any:
        if params["name"] != "slow":
            return make_text_result("at once")
        if not await wait_unless_disconnected(self.may_answer, request):
            self.cancelled += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def server() -> SlowServer:
    return SlowServer()


@pytest.fixture
async def slow_gateway(
    database_url: str, simulator: Simulator, tmp_path: Path, server: SlowServer
) -> AsyncGenerator[Gateway]:
    entry: dict[str, tuple[RawServer, JsonObject]] = {"raw": (server, {"tasks": ["slow"]})}
    async with serve_raw(database_url, simulator, tmp_path, entry, heartbeat_seconds=0.5) as gateway:
        yield gateway
        server.may_answer.set()


def get_text(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])


# --- ask_agent


@ERAS
async def test_ask_agent_runs_as_a_task(gateway: Gateway, modern: bool) -> None:
    async with open_host(gateway, modern=modern) as host:
        task_id = await host.start("ask_agent", {"prompt": "What is 17 * 23?"})
        result = await host.fetch(task_id)
        assert "391" in get_text(result)
        assert result["structuredContent"]["turn_id"] == task_id
        task = await host.get(task_id)
        assert task["status"] == "completed"
        assert ("result" in task) is modern
        related = (result.get("_meta") or {}).get(RELATED)
        assert related == (None if modern else {"taskId": task_id})
        ttl, other = ("ttlMs", "ttl") if modern else ("ttl", "ttlMs")
        assert task[ttl] == (86_400_000 if modern else 600_000)
        assert other not in task


async def test_tools_and_handshakes_declare_tasks_as_their_protocol_says(slow_gateway: Gateway) -> None:
    async with open_host(slow_gateway, modern=False) as legacy, open_host(slow_gateway, modern=True) as modern:
        tools = {tool["name"]: tool for tool in (await legacy.send("tools/list"))["tools"]}
        assert {name: tool.get("execution") for name, tool in tools.items()} == {
            "raw_slow": {"taskSupport": "optional"},
            "raw_fast": None,
            "ask_agent": {"taskSupport": "optional"},
        }
        capabilities = (await legacy.initialize())["capabilities"]
        assert capabilities["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
        discovered = (await modern.send("server/discover"))["capabilities"]
        assert discovered["extensions"][TASKS] == {}
        assert "tasks" not in discovered
        assert not any("execution" in tool for tool in (await modern.send("tools/list"))["tools"])


@ERAS
async def test_host_that_does_not_ask_for_tasks_gets_results(slow_gateway: Gateway, modern: bool) -> None:
    async with open_host(slow_gateway, modern=modern, declares=False) as host:
        params = {"name": "ask_agent", "arguments": {"prompt": "Hello"}}
        assert (await host.send("tools/call", params))["content"]
        with pytest.raises(HostError) as refusal:
            await host.send("tasks/get" if modern else "tasks/update", {"taskId": "x", "inputResponses": {}})
    assert refusal.value.code == (-32021 if modern else -32601)


@ERAS
async def test_tool_without_tasks_runs_as_the_protocol_says(slow_gateway: Gateway, modern: bool) -> None:
    async with open_host(slow_gateway, modern=modern) as host:
        if modern:
            assert get_text(await host.call("raw_fast", task={"ttl": 5})) == "at once"
        else:
            with pytest.raises(HostError) as refusal:
                await host.call("raw_fast")
            assert refusal.value.code == -32601


@ERAS
async def test_cancelled_task_stops_the_model(gateway: Gateway, simulator: Simulator, modern: bool) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="Wait here"))
    async with open_host(gateway, modern=modern) as host:
        task_id = await host.start("ask_agent", {"prompt": "Wait here"})
        await eventually(lambda: gateway.state.turn_service.running_turns == 1)
        answer = await host.send("tasks/cancel", {"taskId": task_id})
        assert answer.get("status") == (None if modern else "cancelled")
        assert (await host.wait(task_id))["status"] == "cancelled"
        await eventually(lambda: gateway.state.turn_service.running_turns == 0)
        if modern:
            assert (await host.send("tasks/cancel", {"taskId": task_id}))["resultType"] == "complete"
        else:
            with pytest.raises(HostError, match="has ended"):
                await host.send("tasks/cancel", {"taskId": task_id})


async def test_approval_is_given_by_the_host_of_the_extension(
    approving_gateway: Gateway, db: asyncpg.Connection
) -> None:
    async with open_host(approving_gateway, modern=True) as host:
        task_id = await host.start("ask_agent", {"prompt": "Add a task to buy milk"})
        task = await host.wait(task_id, "input_required")
        [(key, request)] = task["inputRequests"].items()
        assert request["method"] == "elicitation/create"
        assert "buy milk" in request["params"]["message"]
        unknown = {str(uuid4()): {"action": "accept"}, "other": {"action": "accept"}}
        await host.send("tasks/update", {"taskId": task_id, "inputResponses": unknown})
        with pytest.raises(HostError, match="is not an answer"):
            await host.send("tasks/update", {"taskId": task_id, "inputResponses": {key: {"action": "steal"}}})
        assert (await host.get(task_id))["status"] == "input_required"
        responses = {key: {"action": "accept", "content": {}}}
        assert await host.send("tasks/update", {"taskId": task_id, "inputResponses": responses})
        assert (await host.wait(task_id))["status"] == "completed"
        await host.send("tasks/update", {"taskId": task_id, "inputResponses": responses})
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1


@pytest.mark.parametrize("action", ["accept", "decline"])
async def test_approval_is_asked_while_a_legacy_host_waits_for_the_result(
    approving_gateway: Gateway, db: asyncpg.Connection, action: str
) -> None:
    async with open_host(approving_gateway, modern=False) as host:
        host.answer = {"action": action}
        task_id = await host.start("ask_agent", {"prompt": "Add a task to buy milk"})
        await host.wait(task_id, "input_required")
        assert (await host.fetch(task_id))["content"]
    [request] = host.requests
    assert request["params"]["_meta"] == {RELATED: {"taskId": task_id}}
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == (1 if action == "accept" else 0)


@pytest.fixture
async def approving_gateway(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> AsyncGenerator[Gateway]:
    file = tmp_path / "mcp.json"
    entry = {"url": tools_url, "prefix": "", "approval": "always", "identity": "gateway"}
    file.write_text(json.dumps({"mcpServers": {"tools": entry}}))
    async with serve_gateway(database_url, simulator, None, mcp_config=file, heartbeat_seconds=0.5) as gateway:
        await eventually(lambda: all(status.state == "up" for status in gateway.state.toolbox.list_server_statuses()))
        yield gateway


@ERAS
async def test_failed_turn_is_an_error_result(gateway: Gateway, simulator: Simulator, modern: bool) -> None:
    simulator.faults.add_faults(Fault(kind="status", status=400, match="Fail now", times=10))
    async with open_host(gateway, modern=modern) as host:
        task_id = await host.start("ask_agent", {"prompt": "Fail now"})
        result = await host.fetch(task_id)
        assert result["isError"] is True
        assert (await host.get(task_id))["status"] == ("completed" if modern else "failed")


# --- direct calls


@ERAS
async def test_long_call_runs_as_a_task_with_its_whole_result(
    slow_gateway: Gateway, server: SlowServer, simulator: Simulator, modern: bool
) -> None:
    async with open_host(slow_gateway, modern=modern) as host:
        task_id = await host.start("raw_slow", {"size": 3})
        await eventually(lambda: server.count("tools/call") == 1)
        assert (await host.get(task_id))["status"] == "working"
        server.may_answer.set()
        result = await host.fetch(task_id)
    assert get_text(result) == "done"
    assert (result["structuredContent"], result["_meta"]["from"]) == ({"n": 1}, "server")
    assert server.count("tools/call") == 1
    assert not simulator.requests


@ERAS
async def test_large_result_of_a_task_is_whole(slow_gateway: Gateway, server: SlowServer, modern: bool) -> None:
    server.result = make_text_result("x" * 200_000)
    server.may_answer.set()
    async with open_host(slow_gateway, modern=modern) as host:
        assert get_text(await host.fetch(await host.start("raw_slow"))) == "x" * 200_000


@ERAS
async def test_cancelled_task_cancels_the_call(slow_gateway: Gateway, server: SlowServer, modern: bool) -> None:
    async with open_host(slow_gateway, modern=modern) as host:
        task_id = await host.start("raw_slow")
        await eventually(lambda: server.count("tools/call") == 1)
        await host.send("tasks/cancel", {"taskId": task_id})
        assert (await host.wait(task_id))["status"] == "cancelled"
    await eventually(lambda: server.cancelled == 1)
    await eventually(lambda: slow_gateway.state.turn_service.running_turns == 0)


@ERAS
async def test_errors_of_calls_have_the_status_of_their_protocol(
    slow_gateway: Gateway, server: SlowServer, modern: bool
) -> None:
    server.may_answer.set()
    async with open_host(slow_gateway, modern=modern) as host:
        server.result = {**make_text_result("broken"), "isError": True}
        task_id = await host.start("raw_slow")
        assert (await host.wait(task_id))["status"] == ("completed" if modern else "failed")
        assert (await host.fetch(task_id))["isError"] is True
        server.result = RawError(-32050, "no bricks", {"left": 0})
        task_id = await host.start("raw_slow")
        assert (await host.wait(task_id))["status"] == "failed"
        with pytest.raises(HostError) as refusal:
            await host.fetch(task_id)
    assert (refusal.value.code, refusal.value.message, refusal.value.data) == (-32050, "no bricks", {"left": 0})


@ERAS
async def test_task_of_a_server_is_a_task_of_the_host(
    database_url: str, simulator: Simulator, tmp_path: Path, modern: bool
) -> None:
    server = TaskServer(modern=modern)
    entry: dict[str, tuple[RawServer, JsonObject]] = {"raw": (server, {"tasks": ["*"]})}
    async with (
        serve_raw(database_url, simulator, tmp_path, entry, heartbeat_seconds=0.5) as gateway,
        open_host(gateway, modern=modern) as host,
    ):
        task_id = await host.start("raw_build")
        await eventually(lambda: len(server.tasks) == 1)
        await eventually(lambda: not gateway.state.turn_service.running_turns)
        assert (await host.get(task_id))["status"] == "working"
        server.finish("built")
        assert get_text(await host.fetch(task_id)) == "built"
    assert server.count("tools/call") == 1


async def test_questions_of_a_call_are_answered_one_by_one(slow_gateway: Gateway, server: SlowServer) -> None:
    def ask_twice(params: dict[str, Any], _request: Any) -> Any:
        if answers := params.get("inputResponses"):
            return make_text_result(json.dumps(sorted(answers)))
        request = {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": FORM}}
        return {"resultType": "input_required", "inputRequests": {"first": request, "second": request}}

    server.answers["tools/call"] = ask_twice
    async with open_host(slow_gateway, modern=True) as host:
        task_id = await host.start("raw_slow")
        task = await host.wait(task_id, "input_required")
        first, second = task["inputRequests"]
        answer = {"action": "accept", "content": {"color": "red"}}
        with pytest.raises(HostError, match="color"):
            await host.send("tasks/update", {"taskId": task_id, "inputResponses": {first: {"action": "accept"}}})
        await host.send("tasks/update", {"taskId": task_id, "inputResponses": {first: answer}})
        task = await host.get(task_id)
        assert (task["status"], list(task["inputRequests"])) == ("input_required", [second])
        await host.send("tasks/update", {"taskId": task_id, "inputResponses": {second: answer}})
        assert get_text(await host.fetch(task_id)) == '["first", "second"]'


async def test_idempotency_key_starts_one_task_and_no_other_call(slow_gateway: Gateway, server: SlowServer) -> None:
    meta = {"mcp-agent-gateway/idempotency-key": "k-1"}
    async with open_host(slow_gateway, modern=True) as host:
        ids = {await host.start("raw_slow", _meta=meta) for _ in range(3)}
        other = await host.call("ask_agent", {"prompt": "Hello"}, _meta=meta)
    assert len(ids) == 1
    assert "belongs to another call" in get_text(other)


async def test_texts_of_a_call_are_stored_redacted(
    database_url: str, simulator: Simulator, tmp_path: Path, server: SlowServer, db: asyncpg.Connection
) -> None:
    entry: dict[str, tuple[RawServer, JsonObject]] = {"raw": (server, {"tasks": ["slow"]})}
    server.may_answer.set()
    server.result = {**make_text_result(f"to {ADDRESS}"), "_meta": {"to": ADDRESS}}
    async with (
        serve_raw(database_url, simulator, tmp_path, entry, redaction_rules=RULES) as gateway,
        open_host(gateway, modern=True) as host,
    ):
        result = await host.fetch(await host.start("raw_slow", {"to": ADDRESS, "nul": "\0"}))
        assert ADDRESS not in str(result)
        server.result = RawError(-32050, f"no {ADDRESS}", {"to": ADDRESS})
        with pytest.raises(HostError) as refusal:
            await host.fetch(await host.start("raw_slow", {"to": ADDRESS}))
    assert refusal.value.code == -32050
    assert ADDRESS not in str(refusal.value)
    rows = await db.fetch("SELECT turns::text FROM turns")
    events = await db.fetch("SELECT payload FROM turn_events")
    assert len(rows) == 2
    assert ADDRESS not in str(rows)
    assert ADDRESS not in str(events)


# --- who may, and how much


@ERAS
async def test_users_reach_only_their_own_tasks(keyring: Keyring, modern: bool) -> None:
    for owner in ("ada", "bob"):
        await keyring.create_key(owner)
    gateway = keyring.gateway
    async with (
        open_host(gateway, modern=modern, headers=keyring.headers("ada")) as ada,
        open_host(gateway, modern=modern, headers=keyring.headers("bob")) as bob,
    ):
        task_id = await ada.start("ask_agent", {"prompt": "Hello"})
        await ada.wait(task_id)
        turn = await keyring.chat("ada", "Hello")
        methods = ["tasks/get", "tasks/cancel", "tasks/update" if modern else "tasks/result"]
        for host, known in ((bob, task_id), (ada, turn.headers["x-turn-id"]), (ada, "../x"), (ada, "")):
            for method in methods:
                with pytest.raises(HostError) as refusal:
                    await host.send(method, {"taskId": known, "inputResponses": {}}, **{"Mcp-Name": known})
                assert (refusal.value.code, refusal.value.message) == (-32602, "Task not found")
        if not modern:
            assert (await bob.send("tasks/list"))["tasks"] == []
            assert [task["taskId"] for task in (await ada.send("tasks/list"))["tasks"]] == [task_id]


async def test_limited_keys_reach_only_what_they_started(keyring: Keyring) -> None:
    whole = await keyring.create_key("ada")
    limited = await keyring.create_key("ada", tools=["calculator"])
    gateway = keyring.gateway
    async with (
        open_host(gateway, modern=False, headers=whole) as owner,
        open_host(gateway, modern=False, headers=limited) as host,
    ):
        task_id = await owner.start("ask_agent", {"prompt": "Hello"})
        with pytest.raises(HostError, match="Task not found"):
            await host.get(task_id)
        assert (await host.send("tasks/list"))["tasks"] == []
        own = await host.start("ask_agent", {"prompt": "Hello"})
        assert [task["taskId"] for task in (await host.send("tasks/list"))["tasks"]] == [own]
        assert (await owner.get(own))["taskId"] == own


async def test_viewers_start_and_change_no_tasks(keyring: Keyring) -> None:
    viewer = await keyring.create_key("vic", role="viewer")
    async with open_host(keyring.gateway, modern=False, headers=viewer) as host:
        with pytest.raises(HostError, match="viewer"):
            await host.call("ask_agent", {"prompt": "Hello"})
        with pytest.raises(HostError, match="viewer"):
            await host.send("tasks/cancel", {"taskId": "x"})


@ERAS
async def test_open_tasks_of_a_user_are_bounded(
    database_url: str, simulator: Simulator, tmp_path: Path, server: SlowServer, modern: bool
) -> None:
    entry: dict[str, tuple[RawServer, JsonObject]] = {"raw": (server, {"tasks": ["slow"]})}
    async with (
        serve_raw(database_url, simulator, tmp_path, entry, mcp_max_user_tasks=3) as gateway,
        open_host(gateway, modern=modern) as host,
    ):
        results = await asyncio.gather(*(host.call("raw_slow") for _ in range(8)), return_exceptions=True)
        refusals = [result for result in results if "MCP_MAX_USER_TASKS" in str(result)]
        assert len(refusals) == 5, results
        server.may_answer.set()
        await eventually(lambda: not gateway.state.turn_service.running_turns)
        assert await host.start("raw_slow")


async def test_expired_tasks_are_gone(gateway: Gateway, db: asyncpg.Connection) -> None:
    async with open_host(gateway, modern=False) as host:
        task = (await host.call("ask_agent", {"prompt": "Hello"}, task={"ttl": 0}))["task"]
        assert task["ttl"] == 60_000
        task_id = task["taskId"]
        await host.wait(task_id)
        await db.execute("""UPDATE turns SET options = jsonb_set(options, '{echo,mcp_task,ttl}', '1')""")
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            with pytest.raises(HostError, match="has expired") as refusal:
                await host.send(method, {"taskId": task_id})
            assert refusal.value.code == -32602
        assert (await host.send("tasks/list"))["tasks"] == []


@pytest.mark.parametrize("task", [7, {"ttl": -1}, {"ttl": "long"}, {"ttl": True}, []])
async def test_odd_task_requests_are_refused(gateway: Gateway, task: Any, db: asyncpg.Connection) -> None:
    async with open_host(gateway, modern=False) as host:
        with pytest.raises(HostError) as refusal:
            await host.call("ask_agent", {"prompt": "Hello"}, task=task)
    assert refusal.value.code == -32602
    assert await db.fetchval("SELECT count(*) FROM turns") == 0


async def test_list_has_pages_of_tasks_alone(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.mcp.tasks.host_tasks._PAGE_SIZE", 2)
    async with open_host(gateway, modern=False) as host:
        await gateway.chat("Hello")
        ids = [await host.start("ask_agent", {"prompt": f"Hello {number}"}) for number in range(5)]
        listed: list[str] = []
        cursor: dict[str, Any] = {}
        while True:
            page = await host.send("tasks/list", cursor)
            listed += [task["taskId"] for task in page["tasks"]]
            if "nextCursor" not in page:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert listed == ids[::-1]
        with pytest.raises(HostError, match="cursor"):
            await host.send("tasks/list", {"cursor": "'; DROP TABLE turns"})


async def test_routing_header_must_name_the_task(gateway: Gateway) -> None:
    async with open_host(gateway, modern=True) as host:
        task_id = await host.start("ask_agent", {"prompt": "Hello"})
        with pytest.raises(HostError) as refusal:
            await host.send("tasks/get", {"taskId": task_id}, **{"Mcp-Name": "another"})
        assert refusal.value.code == -32020
        for method in ("tasks/list", "tasks/result"):
            with pytest.raises(HostError) as refusal:
                await host.send(method, {"taskId": task_id})
            assert refusal.value.code == -32601


# --- notifications


@ERAS
async def test_hosts_are_told_of_a_task_that_ends(slow_gateway: Gateway, server: SlowServer, modern: bool) -> None:
    async with open_host(slow_gateway, modern=modern) as host:
        if modern:
            task_id = await host.start("raw_slow")
            listening = host.listen({"notifications": {"taskIds": [task_id, "another"]}})
        else:
            listening, task_id = host.listen(), ""
        async with listening as messages, asyncio.timeout(30):
            if modern:
                acknowledged = await anext(messages)
                assert acknowledged["params"]["notifications"]["taskIds"] == [task_id]
            else:
                task_id = await host.start("raw_slow")
            method = "notifications/tasks" if modern else "notifications/tasks/status"
            first = await anext(messages)
            assert (first["method"], first["params"]["taskId"]) == (method, task_id)
            assert first["params"]["status"] == "working"
            server.may_answer.set()
            last = await anext(messages)
            assert (last["method"], last["params"]["status"]) == (method, "completed")
            assert ("result" in last["params"]) is modern


async def test_tasks_on_a_listen_stream_need_the_extension(gateway: Gateway) -> None:
    async with open_host(gateway, modern=True, declares=False) as host:
        async with host.listen({"notifications": {"taskIds": ["x"]}}) as messages:
            with pytest.raises(StopAsyncIteration):
                await anext(messages)
        with pytest.raises(HostError) as refusal:
            await host.send("subscriptions/listen", {"notifications": {"taskIds": ["x"]}})
    assert refusal.value.code == -32021


# --- hosts of others


@pytest.mark.node
@require_node("@modelcontextprotocol/sdk")
async def test_sdk_for_typescript_follows_tasks(
    approving_gateway: Gateway, simulator: Simulator, db: asyncpg.Connection
) -> None:
    simulator.faults.add_faults(Fault(kind="stall", match="Stall here"))
    result = await run_script("host_tasks.mjs", approving_gateway.base_url)
    assert (result["types"][0], result["types"][-1]) == ("taskCreated", "result")
    assert result["text"] == result["fetched"] != ""
    assert (result["polled"], result["related"], result["approved"]) == ([True, "completed"], True, "result")
    [(message, meta)] = result["asked"]
    assert "buy milk" in message
    assert RELATED in meta
    assert result["cancelled"] == "cancelled"
    assert result["listed"] == ["cancelled", "completed", "completed"]
    assert (result["legacy"][0], result["modern"][0]) == ("legacy", "modern")
    assert result["legacy"][1] == result["modern"][1] == result["text"]
    assert result["rawCalls"] >= 2
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 1

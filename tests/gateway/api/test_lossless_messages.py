"""Messages between servers and hosts, which pass `/mcp` unchanged."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    ElicitCompleteNotification,
    ElicitRequestURLParams,
    ElicitResult,
    LoggingMessageNotificationParams,
    PromptReference,
)

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.gateway.mcp_client import rich_server as rich
from tests.gateway.mcp_client.rich_server import RichServer
from tests.stack import Gateway, serve_asgi, serve_gateway

JsonObject = dict[str, Any]


@asynccontextmanager
async def connect_host(gateway: Gateway, mode: str, **options: Any) -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(timeout=30) as http,
        Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http), mode=mode, **options) as client,
    ):
        yield client


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["modern-server", "legacy-server"])
def modern(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server() -> RichServer:
    return RichServer()


@asynccontextmanager
async def serve_entries(
    database_url: str, simulator: Simulator, tmp_path: Path, entries: JsonObject, **settings: Any
) -> AsyncGenerator[Gateway]:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": entries}))
    own = {"mcp_config": file, "gateway_data_dir": tmp_path, **settings}
    async with serve_gateway(database_url, simulator, None, **own) as gateway:
        await eventually(lambda: all(status.state == "up" for status in gateway.state.toolbox.list_server_statuses()))
        yield gateway


@pytest.fixture
async def gateway(
    database_url: str, simulator: Simulator, tmp_path: Path, server: RichServer, modern: bool
) -> AsyncGenerator[Gateway]:
    async with (
        serve_asgi(server.create_app(modern=modern)) as url,
        serve_entries(database_url, simulator, tmp_path, {"rich": {"url": f"{url}/mcp", "prefix": ""}}) as gateway,
    ):
        yield gateway


async def check_definitions_and_results(host: Client, *, is_modern: bool) -> None:
    tools = {tool.name: tool for tool in (await host.list_tools()).tools}
    shown = tools["show"].model_dump(mode="json", by_alias=True, exclude_none=True)
    expected = dict(rich.TOOL)
    if is_modern:
        del expected["execution"]  # the current protocol has no such member
    assert {name: shown.get(name) for name in expected} == {**expected, "annotations": shown["annotations"]}
    assert shown["annotations"]["title"] == "Show it"
    assert shown["annotations"]["readOnlyHint"] is True
    result = await host.call_tool("show", {}, meta={"com.example/request": {"a": 1}, "traceparent": "00-1"})
    assert rich.RESULT_META.items() <= (result.meta or {}).items()
    block = result.content[0].model_dump(mode="json", by_alias=True, exclude_none=True)
    assert block == rich.BLOCK
    seen = json.loads(result.content[1].text)  # type: ignore[union-attr]
    assert {"com.example/request", "traceparent", "mcp-agent-gateway/idempotency-key"} <= set(seen)


async def test_definitions_results_and_instructions_pass_unchanged(
    gateway: Gateway, server: RichServer, mode: str, modern: bool
) -> None:
    async with connect_host(gateway, mode) as host:
        assert host.instructions == rich.INSTRUCTIONS
        await check_definitions_and_results(host, is_modern=modern or mode == "auto")
        meta = server.metas[-1]
        assert meta["com.example/request"] == {"a": 1}
        info = meta.get("io.modelcontextprotocol/clientInfo", {})
        assert info.get("name", "agent-gateway") == "agent-gateway"  # what belongs to a connection is the gateway's
        prompt = (await host.list_prompts()).prompts[0].model_dump(mode="json", by_alias=True, exclude_none=True)
        assert (prompt["icons"], prompt["_meta"]) == ([rich.ICON], rich.TOOL_META)
        got = await host.get_prompt("p", {}, meta={"com.example/request": 2})  # type: ignore[typeddict-unknown-key]
        assert server.metas[-1]["com.example/request"] == 2
        assert rich.RESULT_META.items() <= (got.meta or {}).items()
        argument, known = {"name": "repo", "value": ""}, {"owner": "ada"}
        await host.complete(PromptReference(name="p"), argument, known)
        await host.complete(PromptReference(name="p"), argument)
        assert server.contexts == [known, None]


async def test_log_objects_and_loggers_reach_the_host_at_the_level_it_wants(
    gateway: Gateway, server: RichServer, mode: str, modern: bool
) -> None:
    received: list[tuple[str, Any, str | None]] = []

    async def on_log(params: LoggingMessageNotificationParams) -> None:
        received.append((params.level, params.data, params.logger))

    async def call(level: str) -> list[tuple[str, Any, str | None]]:
        if mode == "legacy":
            await host.set_logging_level(level)  # type: ignore[arg-type]
            await host.call_tool("log", {})
        else:
            await host.call_tool("log", {}, meta={"io.modelcontextprotocol/logLevel": level})  # type: ignore[arg-type,typeddict-item]
        messages = list(received)
        received.clear()
        return messages

    debug, info, error = (
        ("debug", "detail", "app.db"),
        ("info", rich.LOG_OBJECT, "app.db"),
        ("error", ["a", 1], "app.db"),
    )
    async with connect_host(gateway, mode, logging_callback=on_log) as host:
        assert await call("warning") == [error]
        assert await call("debug") == [debug, info, error]
        assert await call("info") == [info, error]
        assert await call("error") == [error]
        assert server.log_levels == ([] if modern else ["warning", "debug"])


@pytest.mark.parametrize("modern", [False], ids=["legacy-server"], indirect=True)
async def test_visit_of_a_page_keeps_its_id_from_the_question_to_its_end(gateway: Gateway, modern: bool) -> None:
    asked: list[str | None] = []
    ended: list[str] = []

    async def accept(_context: Any, params: ElicitRequestURLParams) -> ElicitResult:
        asked.append(params.elicitation_id)
        return ElicitResult(action="accept")

    async def on_message(message: Any) -> None:
        if isinstance(message, ElicitCompleteNotification):
            ended.append(message.params.elicitation_id)

    async with connect_host(gateway, "legacy", elicitation_callback=accept, message_handler=on_message) as host:
        result = await host.call_tool("visit", {})
        assert result.content[0].text == "accept"  # type: ignore[union-attr]
        await eventually(lambda: ended)
    assert (asked, ended) == ([rich.VISIT_ID], [rich.VISIT_ID])


async def test_instructions_of_several_servers_are_told_apart(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    async with AsyncExitStack() as stack:
        entries: JsonObject = {}
        for name in ("one", "two"):
            url = await stack.enter_async_context(serve_asgi(RichServer().create_app(modern=True)))
            entries[name] = {"url": f"{url}/mcp"}
        gateway = await stack.enter_async_context(serve_entries(database_url, simulator, tmp_path, entries))
        host = await stack.enter_async_context(connect_host(gateway, mode))
        instructions = host.instructions or ""
    assert instructions.count(rich.INSTRUCTIONS) == 2
    first, second = (f"Instructions of the MCP server '{name}':\n{rich.INSTRUCTIONS}" for name in ("one", "two"))
    assert instructions.index(first) < instructions.index(second)


@pytest.mark.faults
async def test_messages_pass_unchanged_from_a_server_over_stdio(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    root = str(Path(__file__).parents[3])
    args = ["-m", "tests.gateway.mcp_client.rich_server"]
    for protocol in ("auto", "legacy"):
        entry = {"command": sys.executable, "args": args, "env": {"PYTHONPATH": root}, "prefix": ""}
        entry |= {"protocol": "legacy"} if protocol == "legacy" else {}
        async with (
            serve_entries(database_url, simulator, tmp_path, {"rich": entry}) as gateway,
            connect_host(gateway, mode) as host,
        ):
            assert host.instructions == rich.INSTRUCTIONS
            await check_definitions_and_results(host, is_modern=mode == "auto" or protocol == "auto")

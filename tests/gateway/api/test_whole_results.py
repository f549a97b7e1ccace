"""Results of servers: whole for hosts, cut for models, and repaired."""

import base64
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.messages import Principal, ToolResult
from gateway.ports.tools import ToolCallRequest
from gateway.simulator import Simulator
from tests.gateway.api.test_private_answers import connect_host
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

JsonObject = dict[str, Any]
ROWS = [{"id": number, "name": f"row {number}"} for number in range(4_000)]
LONG_TEXT = "long text " * 20_000
IMAGE = base64.b64encode(bytes(range(256)) * 1_024).decode()
LARGE = {
    "content": [
        {"type": "text", "text": LONG_TEXT},
        {"type": "image", "data": IMAGE, "mimeType": "image/png"},
        *({"type": "text", "text": f"block {number}"} for number in range(300)),
    ],
    "structuredContent": {"rows": ROWS},
}
ODD: dict[str, tuple[JsonObject, list[str], Any]] = {
    "no-content": ({"structuredContent": {"a": 1}}, [], {"a": 1}),
    "null-content": ({"content": None, "structuredContent": {"a": 1}}, [], {"a": 1}),
    "content-is-text": ({"content": "plain"}, ["plain"], None),
    "content-is-a-block": ({"content": {"type": "text", "text": "alone"}}, ["alone"], None),
    "blocks-are-texts": ({"content": ["one", 2]}, ["one", "2"], None),
    "array": ({"content": [{"type": "text", "text": "rows"}], "structuredContent": [1, 2]}, ["rows"], [1, 2]),
    "number": ({"content": [], "structuredContent": 5}, [], 5),
    "unknown-block": (
        {"content": [{"type": "chart", "points": [1, 2]}, {"type": "note", "text": "hear"}]},
        ['{"type":"chart","points":[1,2]}', "hear"],
        None,
    ),
    "text-is-null": ({"content": [{"type": "text", "text": None}]}, ['{"type":"text","text":null}'], None),
    "odd-annotations": ({"content": [{"type": "text", "text": "t", "annotations": {"priority": "high"}}]}, ["t"], None),
    "odd-members": ({"content": [{"type": "text", "text": "t"}], "_meta": 5, "isError": "false"}, ["t"], None),
    "other-names": ({"output": "42", "isError": False}, ['{"output":"42"}'], None),
    "empty": ({}, [], None),
    "null-result-type": ({"content": [{"type": "text", "text": "t"}], "resultType": None}, ["t"], None),
    "odd-cache-members": ({"content": [{"type": "text", "text": "t"}], "ttlMs": "x", "cacheScope": 1}, ["t"], None),
}


def encode(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def make_server(*, modern: bool) -> RawServer:
    def call(params: JsonObject, _request: Any) -> JsonObject:
        name = params["name"]
        return dict(LARGE) if name == "large" else dict(ODD[name][0])

    names = ("large", *ODD)
    server = RawServer(*(make_raw_tool(name) for name in names), modern=modern, tools__call=call)
    server.hints = {"ttlMs": 0, "cacheScope": "private"}  # no `resultType`
    server.answers["resources/read"] = {"contents": [{"text": "read"}]}
    server.answers["resources/list"] = {"resources": [{"uri": f"r://{modern}", "name": "r"}]}
    server.answers["prompts/list"] = {"prompts": [{"name": "p"}]}
    server.answers["prompts/get"] = {"messages": [{"role": "user", "content": ["odd", {"type": "chart"}]}]}
    return server


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[Gateway]:
    """A gateway with a server of each era, `new` and `old`."""
    servers = {name: (make_server(modern=name == "new"), {}) for name in ("new", "old")}
    async with serve_raw(database_url, simulator, tmp_path, servers) as gateway:
        yield gateway


async def call_for_model(gateway: Gateway, name: str) -> ToolResult:
    spec = gateway.state.toolbox.find_tool(name)
    assert spec is not None
    result = await gateway.state.toolbox.call_tool(ToolCallRequest(spec, {}, Principal("ada")))
    assert isinstance(result, ToolResult)
    return result


async def test_large_results_are_whole_for_hosts_and_cut_for_models(gateway: Gateway) -> None:
    for mode in ("auto", "legacy"):
        async with connect_host(gateway, {}, mode) as host:
            for name in ("new_large", "old_large"):
                result = await host.call_tool(name, {})
                blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
                assert blocks == LARGE["content"]
                assert result.structured_content == LARGE["structuredContent"]
    direct = (await gateway.post("/api/v1/tools/new_large", {})).body
    assert (direct["content"], direct["structured"]) == (LARGE["content"], LARGE["structuredContent"])
    cut = await call_for_model(gateway, "new_large")
    assert cut.structured is None
    assert cut.content[0]["text"].startswith(LONG_TEXT[:32_000] + "\n[cut: 200,000 characters")
    assert cut.content[1]["text"] == "[image of 262,146 bytes left out: too large]"
    assert cut.content[200]["text"] == "[cut: 302 blocks, the first 200 are shown]"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_what_can_be_read_of_an_odd_result_reaches_hosts(gateway: Gateway, mode: str) -> None:
    async with connect_host(gateway, {}, mode) as host:
        for name, (_, texts, structured) in ODD.items():
            expected = (texts, structured)
            if mode == "legacy" and structured is not None and not isinstance(structured, dict):
                expected = ([*texts, encode(structured)], None)  # this protocol permits only objects
            for server in ("new", "old"):
                result = await host.call_tool(f"{server}_{name}", {})
                got = [block.text for block in result.content]  # type: ignore[union-attr]
                case = (name, server)
                assert (case, got, result.structured_content, result.is_error) == (case, *expected, False)


async def test_what_can_be_read_of_an_odd_result_reaches_models(gateway: Gateway) -> None:
    for name, (_, texts, structured) in ODD.items():
        for server in ("new", "old"):
            for_model = await call_for_model(gateway, f"{server}_{name}")
            shown = [encode(structured)] if structured is not None else []
            assert [block["text"] for block in for_model.content] == [*texts, *shown]
            assert (for_model.outcome, for_model.structured) == ("ok", structured)


async def test_result_without_result_type_is_complete_for_every_method(gateway: Gateway) -> None:
    async with connect_host(gateway, {}) as host:
        for uri in ("r://True", "r://False"):
            assert (await host.read_resource(uri)).contents[0].text == "read"  # type: ignore[union-attr]
        for name in ("new_p", "old_p"):
            messages = (await host.get_prompt(name, {})).messages
            assert [message.content.text for message in messages] == ["odd", '{"type":"chart"}']  # type: ignore[union-attr]

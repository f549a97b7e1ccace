"""Questions of servers to MCP hosts of both protocol eras."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    Root,
    TextContent,
)

from gateway.simulator import Simulator
from tests.gateway.mcp_client import dual_era_server
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, serve_asgi, serve_gateway

MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])
SERVERS = ["dual-era-server", "legacy-server"]


@pytest.fixture(params=SERVERS)
async def gateway(request: pytest.FixtureRequest, database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    async with (
        serve_asgi(dual_era_server.create_app(modern=request.param == SERVERS[0])) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as running,
    ):
        yield running


class Host:
    """The callbacks of a host whose user and model answer everything."""

    def __init__(self) -> None:
        self.questions: list[str] = []

    async def elicit(self, _context: Any, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params.message)
        return ElicitResult(action="accept", content={"row": "front"})

    async def sample(self, _context: Any, _params: CreateMessageRequestParams) -> CreateMessageResult:
        return CreateMessageResult(role="assistant", content=TextContent(text="Paris"), model="m")

    async def list_roots(self, _context: Any) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri="file:///home/ada")])  # type: ignore[arg-type]


dual_era_only = pytest.mark.parametrize("gateway", SERVERS[:1], indirect=True)


@dual_era_only
@MODES
async def test_elicitation_of_a_dual_era_server_reaches_a_host_of_either_era(gateway: Gateway, mode: str) -> None:
    host = Host()
    async with connect_host(gateway, mode, elicitation_callback=host.elicit) as client:
        assert get_text(await client.call_tool("reserve", {})) == "reserved in row front"
    assert host.questions == ["Where shall the seat be?"]


async def test_question_during_a_call_reaches_a_legacy_host(gateway: Gateway) -> None:
    host = Host()
    async with connect_host(gateway, "legacy", elicitation_callback=host.elicit) as client:
        assert get_text(await client.call_tool("reserve_inline", {})) == "accept {'row': 'front'}"
    assert host.questions == ["Where shall the seat be?"]


async def test_sampling_during_a_call_reaches_a_legacy_host_that_declared_it(gateway: Gateway) -> None:
    async with connect_host(gateway, "legacy", sampling_callback=Host().sample) as client:
        assert get_text(await client.call_tool("sample_inline", {})) == "the model says Paris"
    async with connect_host(gateway, "legacy", elicitation_callback=Host().elicit) as client:
        with pytest.raises(MCPError):
            await client.call_tool("sample_inline", {})


@dual_era_only
async def test_sampling_and_roots_reach_a_host_of_the_current_protocol_that_declared_them(gateway: Gateway) -> None:
    host = Host()
    async with connect_host(
        gateway, "auto", sampling_callback=host.sample, list_roots_callback=host.list_roots
    ) as client:
        assert get_text(await client.call_tool("collect", {})) == "Paris file:///home/ada"
    async with connect_host(gateway, "auto", sampling_callback=host.sample) as client:
        assert (await client.call_tool("collect", {})).is_error


@dual_era_only
@MODES
async def test_questions_of_prompts_and_resources_reach_a_host_of_either_era(gateway: Gateway, mode: str) -> None:
    host = Host()
    async with connect_host(gateway, mode, elicitation_callback=host.elicit) as client:
        prompt = await client.get_prompt("plan", {})
        assert prompt.messages[0].content.text == "Plan it in row front."  # type: ignore[union-attr]
        assert (await client.read_resource("seat://main/map")).contents[0].text == "map of row front"  # type: ignore[union-attr]
    assert host.questions == ["Which row?", "Which row?"]
    async with connect_host(gateway, mode) as client:
        with pytest.raises(MCPError):
            await client.get_prompt("plan", {})


@dual_era_only
@MODES
async def test_server_sees_the_capabilities_of_each_host(gateway: Gateway, mode: str) -> None:
    host = Host()
    async with (
        connect_host(gateway, mode) as plain,
        connect_host(gateway, mode, elicitation_callback=host.elicit) as asking,
        connect_host(gateway, mode, sampling_callback=host.sample) as sampling,
    ):
        seen = [await client.call_tool("show_capabilities", {}) for client in (plain, asking, sampling)]
    # The gateway itself follows tasks of modern servers, whatever the host can do.
    declared = [set(json.loads(get_text(result))) - {"extensions"} for result in seen]
    assert declared == [set(), {"elicitation"}, {"sampling"}]


async def test_legacy_host_that_did_not_declare_elicitation_is_not_asked(gateway: Gateway) -> None:
    """Speak as a host by hand, to see every message."""
    headers = {"Accept": "application/json, text/event-stream"}
    info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "plain", "version": "1"}}

    async def post(**message: Any) -> tuple[Any, list[Any]]:
        body = {"jsonrpc": "2.0", **message}
        async with gateway.session.post(f"{gateway.base_url}/mcp", json=body, headers=headers) as response:
            lines = (await response.text()).splitlines()
            return response, [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    opened, _ = await post(id=1, method="initialize", params=info)
    headers |= {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
    await post(method="notifications/initialized")
    for tool in ("reserve_inline", "reserve"):
        _, messages = await post(id=2, method="tools/call", params={"name": tool, "arguments": {}})
        assert [message.get("method") for message in messages] == [None]
        assert messages[0]["id"] == 2

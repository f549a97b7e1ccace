"""JSON-RPC errors of servers, which reach hosts as they are."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import PromptReference

from gateway.simulator import Simulator
from tests.gateway.api.test_lossless_messages import connect_host
from tests.gateway.mcp_client.raw_server import RawError, RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway

DATA = {"uri": "x://one", "hints": ["a", {"b": None}]}
LONG = "x" * 2_000


def fail(code: int, message: str = LONG, data: Any = DATA) -> Callable[..., Any]:
    def raise_error(_params: Any, _request: Any) -> Any:
        raise RawError(code, message, data)

    return raise_error


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["modern-server", "legacy-server"])
async def gateway(
    request: pytest.FixtureRequest, database_url: str, simulator: Simulator, tmp_path: Path
) -> AsyncGenerator[Gateway]:
    server = RawServer(
        make_raw_tool("t"),
        modern=request.param,
        tools__call=fail(-32050),
        prompts__list={"prompts": [{"name": "p"}]},
        prompts__get=fail(-32602),
        completion__complete=fail(-32051),
        resources__list={"resources": [{"uri": uri, "name": uri} for uri in ("x://one", "x://gone")]},
        resources__read=lambda params, request: (
            fail(-32002, "gone", None) if params["uri"] == "x://gone" else fail(-32052)
        )(params, request),
    )
    server.capabilities["completions"] = {}
    async with serve_raw(database_url, simulator, tmp_path, {"raw": (server, {"prefix": ""})}) as gateway:
        yield gateway


async def get_error(answer: Awaitable[Any]) -> tuple[int, str, Any]:
    with pytest.raises(MCPError) as caught:
        await answer
    return caught.value.error.code, caught.value.error.message, caught.value.error.data


async def test_errors_of_a_server_reach_hosts_with_code_message_and_data(gateway: Gateway, mode: str) -> None:
    async with connect_host(gateway, mode) as host:
        assert await get_error(host.call_tool("t", {})) == (-32050, LONG, DATA)
        assert await get_error(host.get_prompt("p")) == (-32602, LONG, DATA)
        assert await get_error(host.read_resource("x://one")) == (-32052, LONG, DATA)
        argument = {"name": "a", "value": ""}
        assert await get_error(host.complete(PromptReference(name="p"), argument)) == (-32051, LONG, DATA)
        assert isinstance(host, Client)


async def test_missing_resource_has_the_error_of_the_host_s_protocol(gateway: Gateway, mode: str) -> None:
    code = -32002 if mode == "legacy" else -32602
    async with connect_host(gateway, mode) as host:
        assert await get_error(host.read_resource("x://gone")) == (code, "gone", {"uri": "x://gone"})
        unknown = await get_error(host.read_resource("y://unknown"))
        assert (unknown[0], unknown[2]) == (code, {"uri": "y://unknown"})
    reply = await gateway.get("/api/v1/mcp/resources/read?uri=x://gone")
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")

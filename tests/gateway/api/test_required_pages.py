"""Calls that are refused with -32042 until a page was visited."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from mcp import MCPError
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import UrlElicitationRequiredError
from mcp.types import ElicitRequestParams, ElicitRequestURLParams, ElicitResult

from gateway.simulator import Simulator
from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, serve_asgi, serve_gateway

PAGE = "https://pay.example/order?id=1"


class Shop:
    """A legacy server that demands a payment before the first order."""

    def __init__(self) -> None:
        self.is_paid = False
        self.calls = 0

    def create_app(self) -> Any:
        mcp: MCPServer[Any] = MCPServer("shop", log_level="ERROR")

        @mcp.tool()
        async def order(url: str = PAGE) -> str:
            """Order a book."""
            self.calls += 1
            if not self.is_paid:
                page = ElicitRequestURLParams(message="Pay first.", url=url, elicitation_id="payment-1")
                raise UrlElicitationRequiredError([page])
            return "ordered"

        return hide_modern_protocol(mcp.streamable_http_app())


@pytest.fixture
async def shop() -> Shop:
    return Shop()


@pytest.fixture
async def gateway(shop: Shop, database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    async with (
        serve_asgi(shop.create_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as running,
    ):
        yield running


@pytest.mark.parametrize(
    ("action", "outcome", "calls"), [("accept", "ok", 2), ("decline", "denied", 1), ("cancel", "denied", 1)]
)
async def test_chat_asks_to_visit_the_page_and_calls_again(
    gateway: Gateway, shop: Shop, action: str, outcome: str, calls: int
) -> None:
    async with gateway.stream("call order with {}") as stream:
        question = (await stream.read_until("input.required")).data
        assert (question["kind"], question["url"], question["message"]) == ("url", PAGE, "Pay first.")
        turn_id = stream.response.headers["X-Turn-Id"]
    shop.is_paid = action == "accept"
    body = {"input_id": question["input_id"], "action": action}
    assert (await gateway.post(f"/api/v1/turns/{turn_id}/input", body)).status == 200
    async with gateway.session.get(f"{gateway.base_url}/api/v1/turns/{turn_id}/events") as response:
        events = (await response.text()).replace('": "', '":"')
    assert f'"outcome":"{outcome}"' in events
    assert shop.calls == calls


async def test_page_that_is_no_web_page_is_not_shown(gateway: Gateway) -> None:
    reply = await gateway.chat_stream('call order with {"url": "javascript:alert(1)"}')
    assert reply.get_event_data("input.required") == []
    (result,) = reply.get_event_data("tool.result")
    assert (result["outcome"], reply.is_done) == ("error", True)


async def test_host_of_the_current_protocol_is_asked_to_visit_the_page(gateway: Gateway, shop: Shop) -> None:
    async def pay(_context: Any, params: ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, ElicitRequestURLParams)
        assert params.url == PAGE
        shop.is_paid = True
        return ElicitResult(action="accept")

    async with connect_host(gateway, "auto", elicitation_callback=pay) as client:
        assert get_text(await client.call_tool("order", {})) == "ordered"


async def test_legacy_host_gets_the_error_of_the_server(gateway: Gateway) -> None:
    async with connect_host(gateway, "legacy") as client:
        with pytest.raises(MCPError) as refused:
            await client.call_tool("order", {})
    assert refused.value.code == -32042
    assert refused.value.data["elicitations"][0]["url"] == PAGE

"""An MCP server that counts the calls of its tools."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations
from starlette.requests import Request

from tests.stack import serve_asgi

CALLS = "SELECT arguments->>'order', outcome FROM tool_calls WHERE tool = 'pay'"
_CALL_SECONDS = 0.3


class EffectServer:
    """A server whose tool `pay` does not deduplicate.

    Each call takes effect. Its tool `kill_client`, which may be repeated, passes the port of its client to the function
    of that name.
    """

    def __init__(self, kill_client: Callable[[int], None]) -> None:
        self.url = ""
        self.payments: Counter[str] = Counter()
        self.kills = 0
        self.mcp: MCPServer[Any] = MCPServer("effects", log_level="ERROR")
        self._kill_client = kill_client
        self._register_tools(self.mcp)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def check_payments(self, journaled_calls: Iterable[Iterable[str | None]]) -> Counter[str]:
        """Check that each journaled call happened once.

        One with an unknown outcome happened at most once. Takes the rows of `CALLS`, and returns their outcomes. A call
        without an outcome never started: a takeover has discarded its step.
        """
        outcomes: dict[str, list[str]] = {}
        for order, outcome in journaled_calls:
            assert order is not None
            outcomes.setdefault(order, []).extend([outcome] if outcome else [])
        wrong = {
            order: (found, self.payments[order])
            for order, found in outcomes.items()
            if not (found == ["ok"] and self.payments[order] == 1)
            and not (found == ["unknown"] and self.payments[order] <= 1)
        }
        assert wrong == {}
        assert set(self.payments) <= set(outcomes)
        return Counter(outcome for found in outcomes.values() for outcome in found)

    def _register_tools(self, mcp: MCPServer[Any]) -> None:
        @mcp.tool()
        async def pay(order: str) -> str:
            """Pay an order. Each call takes effect."""
            self.payments[order] += 1
            await asyncio.sleep(_CALL_SECONDS)
            return f"Paid {order}."

        @mcp.tool(annotations=ToolAnnotations(idempotent_hint=True))
        async def kill_client(ctx: Context[Any]) -> str:
            """Kill the process that calls."""
            request = ctx.request_context.request
            assert isinstance(request, Request)
            assert request.client is not None
            self.kills += 1
            await asyncio.to_thread(self._kill_client, request.client.port)
            return "killed"


def make_payment_prompt(turn: int, payments: int = 3) -> str:
    """Make the prompt of a turn that pays orders of its own."""
    calls = " then ".join(f'pay {{"order": "{turn}-{number}"}}' for number in range(payments))
    return f"call {calls}"


@asynccontextmanager
async def serve_effects(kill_client: Callable[[int], None] | None = None) -> AsyncGenerator[EffectServer]:
    """Serve the tools over real HTTP, without sessions."""
    server = EffectServer(kill_client or _refuse_to_kill)
    async with serve_asgi(server.mcp.streamable_http_app(stateless_http=True)) as address:
        server.url = f"{address}/mcp"
        yield server


def _refuse_to_kill(_port: int) -> None:
    raise AssertionError("this test kills no client")

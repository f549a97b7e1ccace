"""The tools of one server, kept current in both protocol eras."""

import asyncio
from collections.abc import Callable

from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.types import CONNECTION_CLOSED, Tool, ToolListChangedNotification

from gateway.common.concurrency import Deadline
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.definition_limits import ListLimit

_LIST_TIMEOUT_SECONDS = 60.0
_UNDECLARED_SECONDS = 5.0
_MIN_EXPECTED_SECONDS = 10.0
_MAX_PAGES, _MAX_TOOLS = 100, 1_000
LISTING_ERRORS = (MCPError, TimeoutError, ValueError, RuntimeError)
"""Raised by the SDK when a list fails.

The last two are raised when the answer breaks the protocol.
"""


class ServerToolList:
    """The tools of a server, listed again after announced changes."""

    def __init__(self, server: str, status: ConnectionStatus, *, on_change: Callable[[], None]) -> None:
        self.tools: tuple[Tool, ...] = ()
        self._server = server
        self._status = status
        self._on_change = on_change
        self._outdated_event = asyncio.Event()
        self._last_seconds = 0.0

    @property
    def expected_seconds(self) -> float:
        """Seconds in which an available server lists its tools.

        They are three times those of the last list.
        """
        return min(max(3 * self._last_seconds, _MIN_EXPECTED_SECONDS), _LIST_TIMEOUT_SECONDS)

    async def refresh_tools(self, client: Client) -> None:
        """List the tools.

        A server that does not declare tools may refuse or ignore the request, and then has none.

        Raises:
            MCPError, TimeoutError, ValueError, RuntimeError: the server does not list them.
        """
        clock = asyncio.get_running_loop().time
        started_at = clock()
        declares_tools = client.server_capabilities.tools is not None
        try:
            async with Deadline.after(_LIST_TIMEOUT_SECONDS if declares_tools else _UNDECLARED_SECONDS).limit():
                tools = await self._list_tools(client)
        except (MCPError, TimeoutError) as error:
            if declares_tools or (isinstance(error, MCPError) and error.code == CONNECTION_CLOSED):
                raise
            tools = ()
        self._last_seconds = clock() - started_at
        self.tools = tools
        self._status.tool_count = len(tools)
        self._on_change()

    async def _list_tools(self, client: Client) -> tuple[Tool, ...]:
        tools: dict[str, Tool] = {}
        limit = ListLimit(self._server)
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
            tools |= {tool.name: tool for tool in page.tools if limit.accepts_tool(tool)}
            cursor = page.next_cursor
            if cursor is None or len(tools) >= _MAX_TOOLS:
                break
        return tuple(sorted(tools.values(), key=lambda tool: tool.name)[:_MAX_TOOLS])

    def find_tool(self, name: str) -> Tool | None:
        """Return the tool of this name, if the server lists it."""
        return next((tool for tool in self.tools if tool.name == name), None)

    async def on_message(self, message: IncomingMessage) -> None:
        """The SDK client's callback for notifications of legacy servers."""
        if isinstance(message, ToolListChangedNotification):
            self._outdated_event.set()

    async def wait_until_outdated(self) -> None:
        """Wait until a legacy server announces a change."""
        await self._outdated_event.wait()
        self._outdated_event.clear()

    def set_outdated(self) -> None:
        """List the tools again."""
        self._outdated_event.set()

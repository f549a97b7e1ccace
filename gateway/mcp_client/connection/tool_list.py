"""The tools of one server, kept current in both protocol eras."""

import asyncio
import math
from collections.abc import Callable

from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.types import CONNECTION_CLOSED, Tool, ToolListChangedNotification

from gateway.common.concurrency import Backoff, Deadline
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.definitions.limits import ListLimit
from gateway.mcp_client.definitions.pages import read_list
from gateway.mcp_client.definitions.problems import DefinitionProblems

_LIST_TIMEOUT_SECONDS = 60.0
_UNDECLARED_SECONDS = 5.0
_MIN_EXPECTED_SECONDS = 10.0
_MIN_REFRESH_SECONDS, _MAX_REFRESH_SECONDS = 0.2, 10.0
LISTING_ERRORS = (MCPError, TimeoutError, ValueError, RuntimeError)
"""Raised by the SDK when a list fails.

The last two are raised when the answer breaks the protocol.
"""


class ServerToolList:
    """The tools of a server, listed again after announced changes."""

    def __init__(
        self, status: ConnectionStatus, problems: DefinitionProblems, *, on_change: Callable[[], None]
    ) -> None:
        self.tools: tuple[Tool, ...] = ()
        self.is_known = False
        """Whether the tools were listed once."""
        self._status = status
        self._problems = problems
        self._pace = RefreshPace()
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
        if tools != self.tools or not self.is_known:
            self.is_known = True
            self.tools = tools
            self._status.tool_count = len(tools)
            self._on_change()

    async def _list_tools(self, client: Client) -> tuple[Tool, ...]:
        limit = ListLimit("tool", self._problems)
        tools = await read_list(
            lambda cursor: client.list_tools(cursor=cursor, cache_mode="refresh"),
            lambda page: ((tool.name, tool) for tool in page.tools),
            limit.accepts_tool,
            "tool",
            self._problems,
        )
        # A definition that is equal keeps its object, and with it all that was made from it.
        earlier_tools = {tool.name: tool for tool in self.tools}
        kept = (earlier_tools[name] if earlier_tools.get(name) == tool else tool for name, tool in tools.items())
        return tuple(sorted(kept, key=lambda tool: tool.name))

    def find_tool(self, name: str) -> Tool | None:
        """Return the tool of this name, if the server lists it."""
        return next((tool for tool in self.tools if tool.name == name), None)

    async def on_message(self, message: IncomingMessage) -> None:
        """The SDK client's callback for notifications of legacy servers."""
        if isinstance(message, ToolListChangedNotification):
            self._outdated_event.set()

    async def wait_for_pace(self) -> None:
        """Wait until the tools may be listed again after an announced change."""
        await self._pace.wait()

    async def wait_until_outdated(self) -> None:
        """Wait for an announced change of a legacy server."""
        await self._outdated_event.wait()
        await self._pace.wait()
        self._outdated_event.clear()

    def set_outdated(self) -> None:
        """List the tools again."""
        self._outdated_event.set()


class RefreshPace:
    """Spaces out refreshes after announced changes.

    Some servers announce a change whenever they list their tools. The pause between refreshes grows from 0.2 to 10
    seconds, until no change is announced for twice as long.
    """

    def __init__(self) -> None:
        self._backoff = Backoff(_MIN_REFRESH_SECONDS, _MAX_REFRESH_SECONDS)
        self._pause_seconds = 0.0
        self._last_refresh = -math.inf

    async def wait(self) -> None:
        """Wait until the next refresh may begin."""
        now = asyncio.get_running_loop().time
        idle_seconds = now() - self._last_refresh
        if idle_seconds > 2 * self._pause_seconds:
            self._backoff.reset()
        await asyncio.sleep(self._pause_seconds - idle_seconds)
        self._pause_seconds, self._last_refresh = self._backoff.next_delay(), now()

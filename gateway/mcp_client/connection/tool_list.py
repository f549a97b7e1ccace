"""The tools of one server, kept current in both protocol eras."""

import asyncio
import random
from collections.abc import Callable
from typing import Never

from mcp import Client, MCPError
from mcp.client import IncomingMessage
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.types import METHOD_NOT_FOUND, Tool, ToolListChangedNotification

from gateway.common.concurrency import Deadline
from gateway.mcp_client.connection.errors import describe_error, is_grant_unavailable
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.definition_limits import ListLimit

_LIST_TIMEOUT_SECONDS = 60.0
_POLL_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 30.0
_GRANT_RETRY_SECONDS = 2.0
_MIN_RELISTEN_SECONDS, _MAX_RELISTEN_SECONDS = 0.2, 0.4
_MAX_PAGES, _MAX_TOOLS = 100, 1_000
_LISTING_ERRORS = (MCPError, TimeoutError, ValueError, RuntimeError)
"""Raised by the SDK when a list fails.

The last two are raised when the answer breaks the protocol.
"""


class ServerToolList:
    """The tools of a server, listed again after announced changes."""

    def __init__(self, server: str, status: ConnectionStatus, *, is_http: bool, on_change: Callable[[], None]) -> None:
        self.tools: tuple[Tool, ...] = ()
        self._server = server
        self._status = status
        self._is_http = is_http
        self._on_change = on_change
        self._outdated_event = asyncio.Event()

    async def refresh_tools(self, client: Client) -> None:
        """List the tools.

        Raises:
            MCPError, TimeoutError, ValueError, RuntimeError: the server does not list them.
        """
        tools: dict[str, Tool] = {}
        limit = ListLimit(self._server)
        cursor: str | None = None
        async with Deadline.after(_LIST_TIMEOUT_SECONDS).limit():
            for _ in range(_MAX_PAGES):
                page = await client.list_tools(cursor=cursor, cache_mode="refresh")
                tools |= {tool.name: tool for tool in page.tools if limit.accepts_tool(tool)}
                cursor = page.next_cursor
                if cursor is None or len(tools) >= _MAX_TOOLS:
                    break
        new_tools = tuple(sorted(tools.values(), key=lambda tool: tool.name)[:_MAX_TOOLS])
        self.tools = new_tools
        self._status.tool_count = len(new_tools)
        self._on_change()

    def find_tool(self, name: str) -> Tool | None:
        """Return the tool of this name, if the server lists it."""
        return next((tool for tool in self.tools if tool.name == name), None)

    async def on_message(self, message: IncomingMessage) -> None:
        """The SDK client's callback for notifications of legacy servers."""
        if isinstance(message, ToolListChangedNotification):
            self._outdated_event.set()

    async def watch_forever(self, client: Client) -> None:
        """Refresh after announced changes, and detect an unavailable server.

        Runs until cancelled.
        """
        while True:
            reason = await self._watch_changes(client)
            if reason is None:
                await asyncio.sleep(_GRANT_RETRY_SECONDS)
                continue
            self._status.set_unavailable(reason)
            if not self._is_http:
                self._status.broken_event.set()  # only a new connection makes it available again
                await asyncio.sleep(_POLL_SECONDS)  # the owner cancels this task when it closes the session
            await asyncio.sleep(random.uniform(_MIN_RELISTEN_SECONDS, _MAX_RELISTEN_SECONDS))  # noqa: S311

    async def _watch_changes(self, client: Client) -> str | None:
        """Refresh after each announced change until the server is unavailable; the reason.

        None if only the gateway's database is unavailable, which says nothing about the server.
        """
        try:
            async with client.listen(tools_list_changed=True) as changes:
                await self.refresh_tools(client)  # changes before this subscription were not announced
                self._status.set_available()
                async for _ in changes:
                    await self.refresh_tools(client)
            return "the server closed its stream of changes"
        except ListenNotSupportedError:
            return await self._watch_notifications(client)
        except (SubscriptionLost, *_LISTING_ERRORS) as error:
            if isinstance(error, MCPError) and error.code == METHOD_NOT_FOUND:
                return await self._poll_tools(client)
            return _describe_unless_grant_unavailable(error)

    async def _poll_tools(self, client: Client) -> str | None:
        """List the tools every 30 seconds until that fails; the reason.

        For servers of the current protocol that announce no changes.
        """
        while True:
            try:
                async with Deadline.after(_POLL_TIMEOUT_SECONDS).limit():
                    await self.refresh_tools(client)
            except _LISTING_ERRORS as error:
                return _describe_unless_grant_unavailable(error)
            self._status.set_available()
            await asyncio.sleep(_POLL_SECONDS)

    async def _watch_notifications(self, client: Client) -> Never:
        """Refresh when a legacy server pushes `tools/list_changed`. The session's owner cancels this."""
        while True:
            await self._outdated_event.wait()
            self._outdated_event.clear()
            try:
                await self.refresh_tools(client)
            except _LISTING_ERRORS as error:
                if _describe_unless_grant_unavailable(error) is None:
                    await asyncio.sleep(_GRANT_RETRY_SECONDS)
                    self._outdated_event.set()
                else:
                    self._status.set_degraded("its tools have changed, and it does not list them")
            else:
                self._status.set_recovered()


def _describe_unless_grant_unavailable(error: Exception) -> str | None:
    """Return the reason why a server is unavailable.

    Return None if it is available, and only its token cannot be read.
    """
    return None if isinstance(error, MCPError) and is_grant_unavailable(error) else describe_error(error)

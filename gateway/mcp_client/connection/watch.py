"""Refreshes the tools of a connected server, and detects its failure."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Never

from mcp import Client, MCPError
from mcp.client.subscriptions import ListenNotSupportedError, Subscription, SubscriptionLost
from mcp.shared.subscriptions import ToolsListChanged
from mcp.types import METHOD_NOT_FOUND, REQUEST_TIMEOUT

from gateway.common.concurrency import Backoff, Deadline
from gateway.mcp_client.connection.errors import describe_error, describe_token_problem, is_grant_unavailable
from gateway.mcp_client.connection.item_changes import ItemChanges
from gateway.mcp_client.connection.ongoing_calls import OngoingCalls
from gateway.mcp_client.connection.status import ConnectionStatus
from gateway.mcp_client.connection.tool_list import LISTING_ERRORS, ServerToolList

_GRANT_RETRY_SECONDS = 2.0
_ACKNOWLEDGEMENT_SECONDS = 10.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.2, 2.0
_MIN_RELISTEN_SECONDS, _MAX_RELISTEN_SECONDS = 0.2, 30.0
_GOOD_LISTEN_SECONDS = 60.0


class ServerWatch:
    """Watches one server while it is connected.

    A server of the current protocol announces changes on a stream. The stream is an extra: whatever happens to it, only
    a failed `tools/list` makes the server unavailable. Without a stream the tools are listed every 30 seconds.
    """

    def __init__(
        self,
        tool_list: ServerToolList,
        status: ConnectionStatus,
        calls: OngoingCalls,
        item_changes: ItemChanges,
        *,
        is_http: Callable[[], bool],
    ) -> None:
        self._tool_list = tool_list
        self._status = status
        self._calls = calls
        self._item_changes = item_changes
        self._is_http = is_http

    async def watch_forever(self, client: Client) -> None:
        """Refresh after announced changes, and detect an unavailable server.

        Runs until cancelled.
        """
        clock = asyncio.get_running_loop().time
        backoff = Backoff(_MIN_RELISTEN_SECONDS, _MAX_RELISTEN_SECONDS)
        while True:
            started_at = clock()
            try:
                is_supported = await self._listen(client)
            except ListenNotSupportedError:
                await self._watch_notifications(client)
            if clock() - started_at >= _GOOD_LISTEN_SECONDS:
                backoff.reset()
            if not await self._wait_until_available(client):
                backoff.reset()  # the server was away, and may have changed: listen again at once
            await asyncio.sleep(backoff.next_delay() if is_supported else _MAX_RELISTEN_SECONDS)

    async def _listen(self, client: Client) -> bool:
        """Refresh after each announced change until the stream ends.

        Returns whether the server knows such streams.

        Raises:
            ListenNotSupportedError: the server speaks the legacy protocol.
        """
        try:
            async with AsyncExitStack() as stack:
                async with Deadline.after(_ACKNOWLEDGEMENT_SECONDS).limit():
                    changes = await stack.enter_async_context(_listen_to_declared(client))
                await self._tool_list.refresh_tools(client)  # earlier changes were not announced
                self._status.set_available()
                async for change in changes:
                    if not isinstance(change, ToolsListChanged):
                        self._item_changes.add(change)
                        continue
                    await self._tool_list.wait_for_pace()
                    await self._tool_list.refresh_tools(client)
        except ListenNotSupportedError:
            raise
        except (SubscriptionLost, *LISTING_ERRORS) as error:
            return not (isinstance(error, MCPError) and error.code == METHOD_NOT_FOUND)
        return True

    async def _wait_until_available(self, client: Client) -> bool:
        """List the tools until the server answers; whether it did at once."""
        was_available, backoff = True, Backoff(_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS)
        while True:
            try:
                async with Deadline.after(self._tool_list.expected_seconds).limit():
                    await self._tool_list.refresh_tools(client)
            except LISTING_ERRORS as error:
                if _lacks_token(error):
                    await asyncio.sleep(_GRANT_RETRY_SECONDS)  # says nothing about the server
                    continue
                if _is_timeout(error) and not self._calls.is_idle:
                    return was_available  # it may do one thing at a time
                was_available = False
                self._status.set_unavailable(describe_error(error))
                if not self._is_http():
                    self._status.broken_event.set()  # only a new connection makes it available again
                    await asyncio.sleep(_MAX_RELISTEN_SECONDS)  # the owner cancels this task when it closes the session
                await asyncio.sleep(backoff.next_delay())
            else:
                self._status.set_available()
                return was_available

    async def _watch_notifications(self, client: Client) -> Never:
        """Refresh when a legacy server pushes `tools/list_changed`. The session's owner cancels this."""
        while True:
            await self._tool_list.wait_until_outdated()
            try:
                await self._tool_list.refresh_tools(client)
            except LISTING_ERRORS as error:
                if _lacks_token(error):
                    await asyncio.sleep(_GRANT_RETRY_SECONDS)
                    self._tool_list.set_outdated()
                else:
                    self._status.set_degraded("its tools have changed, and it does not list them")
            else:
                self._status.set_recovered()


def _listen_to_declared(client: Client) -> AbstractAsyncContextManager[Subscription]:
    """Listen to changes of the tools and of declared other lists."""
    prompts, resources = client.server_capabilities.prompts, client.server_capabilities.resources
    return client.listen(
        tools_list_changed=True,
        prompts_list_changed=bool(prompts and prompts.list_changed),
        resources_list_changed=bool(resources and resources.list_changed),
    )


def _lacks_token(error: Exception) -> bool:
    """Return whether the request was not sent, for lack of a token."""
    if not isinstance(error, MCPError):
        return False
    return is_grant_unavailable(error) or describe_token_problem(error) is not None


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or (isinstance(error, MCPError) and error.code == REQUEST_TIMEOUT)

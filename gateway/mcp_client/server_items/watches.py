"""Watches of single resources, which hosts subscribe to."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Never

from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.subscriptions import ResourceUpdated
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from gateway.common.concurrency import Backoff, Deadline, SupervisedTask, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, McpServerError, NotFound, Overloaded, RateLimited
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import acting_for
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.mcp_client.connection.resource_updates import is_part
from gateway.mcp_client.connection.tool_list import RefreshPace
from gateway.ports.tools import ResourceWatch

log = get_logger(__name__)

MAX_WATCHES, MAX_USER_WATCHES = 1_000, 200
_MAX_PENDING_PARTS = 100
_OPEN_SECONDS = 15.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS, _GOOD_WATCH_SECONDS = 0.2, 30.0, 60.0
_STREAM_ERRORS = (SubscriptionLost, MCPError, TimeoutError, RuntimeError, ValueError)
FindConnection = Callable[[], Awaitable[ServerConnection | None]]
FindHostConnection = Callable[[str, Principal, HostProfile | None], Awaitable[ServerConnection | None]]


class ResourceWatches:
    """The open watches of this worker, bounded in number."""

    def __init__(self, find_connection: FindHostConnection, timeout_seconds: float) -> None:
        self._find_connection = find_connection
        self._timeout = timeout_seconds
        self._endings = TaskSet("mcp resource watch ends")
        self._open: set[ServerResourceWatch] = set()
        self._user_counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Number of open watches."""
        return len(self._open)

    async def open_watch(
        self,
        server: str,
        uri: str,
        principal: Principal,
        on_update: Callable[[str], None],
        host: HostProfile | None,
    ) -> ResourceWatch:
        """See `Toolbox.watch_resource`."""
        user = principal.user
        if self._user_counts[user] >= MAX_USER_WATCHES:
            raise RateLimited(f"You watch {MAX_USER_WATCHES} resources, which is the maximum: unsubscribe from some.")
        if len(self._open) >= MAX_WATCHES:
            raise Overloaded("Too many resources are watched. Try again shortly.")
        find_connection = partial(self._find_connection, server, principal, host)
        watch = ServerResourceWatch(server, uri, principal, find_connection, on_update, self._on_close)
        self._open.add(watch)
        self._user_counts[user] += 1
        try:
            await watch.open(self._timeout)
        except BaseException:
            watch.close()
            raise
        return watch

    def _on_close(self, watch: "ServerResourceWatch") -> None:
        if watch in self._open:
            self._open.discard(watch)
            self._user_counts[watch.user] -= 1
            if not self._user_counts[watch.user]:
                del self._user_counts[watch.user]
            self._endings.spawn(watch.end(self._timeout))

    async def stop(self) -> None:
        """Close all watches."""
        for watch in list(self._open):
            watch.close()
        await self._endings.stop()


class ServerResourceWatch(ResourceWatch):
    """A subscription to one resource for one user.

    It is renewed after a lost connection. Servers of the current protocol announce updates on a stream of the watch,
    legacy ones in their session.
    """

    def __init__(
        self,
        server: str,
        uri: str,
        principal: Principal,
        find_connection: FindConnection,
        on_update: Callable[[str], None],
        on_close: Callable[["ServerResourceWatch"], None],
    ) -> None:
        self._server, self._uri, self._principal = server, uri, principal
        self._find_connection = find_connection
        self._on_close = on_close
        self._updates = PacedUpdates(uri, on_update)
        self._first_outcome: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self._subscribed: ServerConnection | None = None
        """The legacy connection that the server has to be unsubscribed at."""
        self._task = SupervisedTask(f"mcp resource watch {server}", self._run_forever)

    @property
    def user(self) -> str:
        return self._principal.user

    async def open(self, timeout_seconds: float) -> None:
        """Subscribe.

        Raises the errors of `Toolbox.watch_resource`.
        """
        self._task.start()
        try:
            async with Deadline.after(min(timeout_seconds, _OPEN_SECONDS)).limit():
                error = await self._first_outcome
        except TimeoutError:
            error = McpServerError(f"The MCP server {self._server!r} did not answer the subscription in time.")
        if error is not None:
            raise error

    def close(self) -> None:
        """See `ResourceWatch.close`."""
        self._updates.close()
        self._on_close(self)

    async def end(self, timeout_seconds: float) -> None:
        """Stop the task of a closed watch, and unsubscribe."""
        await self._task.stop()
        await self._updates.stop()
        connection = self._subscribed
        if connection is not None and connection.is_available:

            async def send() -> None:
                await connection.send_request(
                    lambda client: client.session.unsubscribe_resource(self._uri),  # pyright: ignore[reportDeprecated]
                    principal=self._principal,
                    timeout=timeout_seconds,
                )

            with contextlib.suppress(ToolCallError):  # the server forgets it with the session
                await connection.resource_updates.unsubscribe_unused(self._uri, send)

    async def _run_forever(self) -> Never:
        clock = asyncio.get_running_loop().time
        backoff = Backoff(_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS)
        with acting_for(self._principal):
            while True:
                started_at = clock()
                try:
                    await self._watch_once()
                except GatewayError as error:
                    self._settle(error)
                except ToolCallError as error:
                    failure = McpServerError(str(error))
                    failure.refusal = error.refusal
                    self._settle(failure)
                except _STREAM_ERRORS as error:
                    log.debug("resource_watch_lost", server=self._server, error=type(error).__name__)
                    self._settle(McpServerError(f"The MCP server {self._server!r} refuses the subscription."))
                if clock() - started_at >= _GOOD_WATCH_SECONDS:
                    backoff.reset()
                await asyncio.sleep(backoff.next_delay())

    def _settle(self, error: GatewayError | None) -> None:
        """Record the outcome of the first attempt; later ones announce an update.

        The server may have announced updates while it was not connected.
        """
        if not self._first_outcome.done():
            self._first_outcome.set_result(error)
        elif error is None:
            self._updates.add(self._uri)

    async def _watch_once(self) -> None:
        connection = await self._find_connection()
        if connection is None:
            raise NotFound(f"There is no MCP server {self._server[:100]!r}.", param="server")
        client = await connection.wait_for_client()
        resources = client.server_capabilities.resources
        if resources is None or not resources.subscribe:
            raise NotFound("The server of this resource does not announce updates.", param="uri")
        if client.session.protocol_version in MODERN_PROTOCOL_VERSIONS:
            await self._listen(client)
        else:
            await self._subscribe(connection, client)

    async def _listen(self, client: Client) -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with Deadline.after(_OPEN_SECONDS).limit():
                changes = await stack.enter_async_context(client.listen(resource_subscriptions=[self._uri]))
            if not changes.honored.resource_subscriptions:
                raise NotFound("The server does not announce updates of this resource.", param="uri")
            self._settle(None)
            async for change in changes:
                if isinstance(change, ResourceUpdated) and is_part(change.uri, self._uri):
                    self._updates.add(change.uri)

    async def _subscribe(self, connection: ServerConnection, client: Client) -> None:
        async def send() -> None:
            await connection.send_request(
                lambda client: client.session.subscribe_resource(self._uri),  # pyright: ignore[reportDeprecated]
                principal=self._principal,
                timeout=_OPEN_SECONDS,
            )

        updates, listener = connection.resource_updates, self._updates.add
        self._subscribed = connection
        try:
            await updates.subscribe(self._uri, listener, send)
            self._settle(None)
            await connection.wait_until_disconnected(client)
        finally:
            updates.remove_listener(self._uri, listener)


class PacedUpdates:
    """Passes on announced updates of a resource at a bounded pace."""

    def __init__(self, uri: str, on_update: Callable[[str], None]) -> None:
        self._uri = uri
        self._on_update = on_update
        self._pending: dict[str, None] = {}
        self._pace = RefreshPace()
        self._tasks = TaskSet("mcp resource updates")
        self._is_closed = False

    def add(self, uri: str) -> None:
        """Announce an update soon.

        Beyond 100 parts, the whole resource is announced.
        """
        if self._is_closed:
            return
        is_scheduled = bool(self._pending)
        self._pending[uri if len(self._pending) < _MAX_PENDING_PARTS else self._uri] = None
        if not is_scheduled:
            self._tasks.spawn(self._forward())

    async def _forward(self) -> None:
        await self._pace.wait()
        uris = list(self._pending)
        self._pending.clear()
        for uri in uris:
            self._on_update(uri)

    def close(self) -> None:
        """Announce nothing more."""
        self._is_closed = True
        self._pending.clear()

    async def stop(self) -> None:
        """Stop what waits for its pace."""
        await self._tasks.stop()

"""Subscriptions of hosts to single resources."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import mcp.types as t
from mcp import MCPError
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    ListenHandler,
    ResourceUpdated,
    ServerEvent,
    SubscriptionBus,
)

from gateway.api.mcp.app_resources import AppResources
from gateway.api.mcp.host import HOST_GONE, Context, get_principal, mcp_errors, read_profile
from gateway.common.concurrency import Deadline, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, RateLimited
from gateway.ports.tools import MAX_OBSERVED_MESSAGES, ResourceWatch, Toolbox

log = get_logger(__name__)

MAX_SESSION_SUBSCRIPTIONS = 100
_MAX_LISTEN_STREAMS, MAX_USER_LISTEN_STREAMS = 1_024, 200
_OPEN_AT_ONCE, _LISTEN_SECONDS = 10, 20.0
_NOTIFY_TIMEOUT_SECONDS = 5.0


class _SessionSubscriptions:
    """The subscriptions of one legacy session."""

    def __init__(self, session: ServerSession) -> None:
        self.session = session
        self.watches: dict[str, ResourceWatch] = {}
        self.lock = asyncio.Lock()
        self.has_ended = False
        self._notifications = TaskSet("notify MCP host")

    def notify(self, uri: str) -> None:
        """Tell the host that a resource has changed.

        The message is dropped if the host does not read.
        """
        if not self.has_ended and len(self._notifications) < MAX_OBSERVED_MESSAGES:
            self._notifications.spawn(self._send_updated(uri))

    async def _send_updated(self, uri: str) -> None:
        try:
            async with Deadline.after(_NOTIFY_TIMEOUT_SECONDS).limit():
                await self.session.send_resource_updated(uri)
        except (TimeoutError, *HOST_GONE) as error:
            log.debug("host_notification_failed", error=type(error).__name__)

    def end(self) -> None:
        self.has_ended = True
        for watch in self.watches.values():
            watch.close()
        self.watches.clear()


class ResourceSubscriptions:
    """Passes updates of resources to the hosts that subscribed to them.

    The subscriptions of a legacy session end with it, those of a listen stream with the stream.
    """

    def __init__(self, toolbox: Toolbox, app_resources: AppResources, bus: SubscriptionBus) -> None:
        self._toolbox = toolbox
        self._app_resources = app_resources
        self._bus = bus
        self._sessions: dict[str, _SessionSubscriptions] = {}
        self._streams: dict[ListenHandler, str] = {}
        """Open listen streams with their users."""

    async def subscribe(self, ctx: Context, session: str, uri: str) -> None:
        """Subscribe a legacy session.

        Raises:
            MCPError: the resource does not announce updates, or the session has too many subscriptions.
        """
        subscriptions = self._sessions.setdefault(session, _SessionSubscriptions(ctx.session))
        async with subscriptions.lock:
            if uri in subscriptions.watches:
                return
            with mcp_errors(ctx, uri):
                if len(subscriptions.watches) >= MAX_SESSION_SUBSCRIPTIONS:
                    message = (
                        f"A session may subscribe to {MAX_SESSION_SUBSCRIPTIONS} resources: unsubscribe from some."
                    )
                    raise RateLimited(message)
                watch = await self._open_watch(ctx, uri, subscriptions.notify)
            if subscriptions.has_ended:
                watch.close()
            else:
                subscriptions.watches[uri] = watch

    async def unsubscribe(self, session: str, uri: str) -> None:
        """End a subscription of a legacy session, if it has it."""
        if (subscriptions := self._sessions.get(session)) is not None:
            async with subscriptions.lock:
                if (watch := subscriptions.watches.pop(uri, None)) is not None:
                    watch.close()

    def end_session(self, session: str) -> None:
        """End all subscriptions of a legacy session."""
        if (subscriptions := self._sessions.pop(session, None)) is not None:
            subscriptions.end()

    async def listen(self, ctx: Context, params: t.SubscriptionsListenRequestParams) -> t.SubscriptionsListenResult:
        """Serve a listen stream with resources.

        Resources whose servers refuse or announce no updates are not acknowledged.
        """
        user = get_principal(ctx).user
        if list(self._streams.values()).count(user) >= MAX_USER_LISTEN_STREAMS:
            message = f"You have {MAX_USER_LISTEN_STREAMS} listen streams with resources: close some of them."
            raise MCPError(t.INTERNAL_ERROR, message)
        if len(self._streams) >= _MAX_LISTEN_STREAMS:
            raise MCPError(t.INTERNAL_ERROR, "Too many listen streams are open.")
        bus = _StreamBus(self._bus)
        handler = ListenHandler(bus)
        self._streams[handler] = user
        try:
            async with self._watch_all(ctx, params.notifications.resource_subscriptions or (), bus) as watched:
                notifications = params.notifications.model_copy(update={"resource_subscriptions": watched})
                return await handler(ctx, params.model_copy(update={"notifications": notifications}))
        finally:
            del self._streams[handler]

    def close(self) -> None:
        """End the open listen streams, each with its final message."""
        for handler in self._streams:
            handler.close()

    @asynccontextmanager
    async def _watch_all(self, ctx: Context, uris: Sequence[str], bus: "_StreamBus") -> AsyncGenerator[list[str]]:
        """Watch resources, and yield the URIs of those that can be watched."""
        watches: dict[str, ResourceWatch] = {}
        slots = asyncio.Semaphore(_OPEN_AT_ONCE)

        async def open_watch(uri: str) -> None:
            async with slots:
                with suppress(GatewayError):
                    # The stream delivers only URIs that it acknowledged, so a part stands for its resource.
                    watches[uri] = await self._open_watch(ctx, uri, lambda _: bus.publish_update(uri))

        wanted = list(dict.fromkeys(uris))[:MAX_SESSION_SUBSCRIPTIONS]
        try:
            with suppress(TimeoutError):
                async with Deadline.after(_LISTEN_SECONDS).limit(), asyncio.TaskGroup() as group:
                    for uri in wanted:
                        group.create_task(open_watch(uri))
            yield [uri for uri in wanted if uri in watches]
        finally:
            for watch in watches.values():
                watch.close()

    async def _open_watch(self, ctx: Context, uri: str, notify: Callable[[str], None]) -> ResourceWatch:
        """Watch the resource of a host's URI; `notify` gets such URIs, too."""
        principal = get_principal(ctx)
        server, own_uri = self._app_resources.find_server(uri, self._toolbox.list_specs(principal))

        def on_update(updated: str) -> None:
            notify(uri + updated.removeprefix(own_uri))

        return await self._toolbox.watch_resource(own_uri, principal, on_update, server, read_profile(ctx))


class _StreamBus(SubscriptionBus):
    """Changes of lists, and of the resources of one stream."""

    def __init__(self, shared: SubscriptionBus) -> None:
        self._shared = shared
        self._listener: Callable[[ServerEvent], None] | None = None
        self._early: dict[str, None] = {}
        """Resources that changed before the stream began."""

    async def publish(self, event: ServerEvent) -> None:
        await self._shared.publish(event)

    def publish_update(self, uri: str) -> None:
        """Announce an update of a resource on this stream."""
        if self._listener is None:
            self._early[uri] = None
        else:
            self._listener(ResourceUpdated(uri))

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        self._listener = listener
        for uri in self._early:
            listener(ResourceUpdated(uri))
        return self._shared.subscribe(listener)

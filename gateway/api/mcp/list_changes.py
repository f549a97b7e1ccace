"""Announces changed lists to the hosts whose users they concern."""

import asyncio
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ResourcesListChanged,
    ServerEvent,
    ToolsListChanged,
)

from gateway.api.mcp.host import HOST_GONE
from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.ports.tools import ChangeKind

log = get_logger(__name__)

_NOTIFY_TIMEOUT_SECONDS = 5.0
_CHANGES: dict[ChangeKind, Callable[[], ServerEvent]] = {
    "tools": ToolsListChanged,
    "resources": ResourcesListChanged,
    "prompts": PromptsListChanged,
}
_listening_user: ContextVar[str] = ContextVar("mcp_listening_user")


class UserChangeBus(InMemorySubscriptionBus):
    """Fan-out of list changes to all listen streams, or to one user's.

    The SDK subscribes a stream inside its request, in the block of `listening_as()`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_user: dict[str, tuple[InMemorySubscriptionBus, set[object]]] = {}

    @contextmanager
    def listening_as(self, user: str) -> Generator[None]:
        """Name the user of the streams that are opened in this block."""
        token = _listening_user.set(user)
        try:
            yield
        finally:
            _listening_user.reset(token)

    async def publish_to_user(self, user: str, event: ServerEvent) -> None:
        """Deliver a change to the streams of one user."""
        if user in self._by_user:
            await self._by_user[user][0].publish(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Subscribe a stream to shared changes and its user's changes."""
        user, stream = _listening_user.get(), object()
        bus, streams = self._by_user.setdefault(user, (InMemorySubscriptionBus(), set()))
        streams.add(stream)
        leave_all, leave_user = super().subscribe(listener), bus.subscribe(listener)

        def unsubscribe() -> None:
            leave_all()
            leave_user()
            streams.discard(stream)
            if not streams and self._by_user.get(user, (None,))[0] is bus:
                del self._by_user[user]

        return unsubscribe


class ListChangeAnnouncer:
    """Tells listen streams and legacy sessions to read lists again.

    A legacy session is told once it has listed something.
    """

    def __init__(self) -> None:
        self.bus = UserChangeBus()
        self._sessions: dict[str, tuple[ServerSession, str]] = {}
        """Legacy sessions with their users."""

    def add_session(self, name: str, session: ServerSession, user: str) -> None:
        """Announce changes to a legacy session from now on."""
        self._sessions[name] = session, user

    def remove_session(self, name: str) -> None:
        """Forget a legacy session that has ended."""
        self._sessions.pop(name, None)

    async def announce(self, kinds: Collection[ChangeKind], user: str | None = None) -> None:
        """Announce changed lists; with a `user`, to that user's hosts only."""
        for kind in sorted(kinds):
            event = _CHANGES[kind]()
            await (self.bus.publish(event) if user is None else self.bus.publish_to_user(user, event))
        sessions = [(name, session) for name, (session, owner) in self._sessions.items() if user in (None, owner)]
        results = await asyncio.gather(*(self._notify_session(*entry, kinds) for entry in sessions))
        if results:
            log.debug("hosts_notified", hosts=sum(results), lost=len(results) - sum(results))

    async def _notify_session(self, name: str, session: ServerSession, kinds: Collection[ChangeKind]) -> bool:
        try:
            async with Deadline.after(_NOTIFY_TIMEOUT_SECONDS).limit():
                if "tools" in kinds:
                    await session.send_tool_list_changed()
                if "resources" in kinds:
                    await session.send_resource_list_changed()
                if "prompts" in kinds:
                    await session.send_prompt_list_changed()
        except (TimeoutError, *HOST_GONE):
            self.remove_session(name)
            return False
        return True

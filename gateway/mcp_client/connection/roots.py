"""Roots for servers, of their entries or of hosts."""

import asyncio
from collections.abc import Awaitable

from mcp.types import ErrorData, ListRootsResult, Root
from pydantic import FileUrl, ValidationError

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.domain.messages import Question
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import CallObserver

log = get_logger(__name__)

_MAX_ROOTS = 100
_MAX_URI_LENGTH, _MAX_NAME_LENGTH = 2_000, 500
HOST_SECONDS = 15.0
"""Time that a host has for its answer."""
_REUSE_SECONDS = 5.0
"""Time for which a host's answer serves further requests of the server."""
_REFUSED_CODE = -1
ROOTS_REQUEST = Question("roots", "host", "", request={"method": "roots/list", "params": {}})


class InvalidRoots(Exception):
    """A host's answer has too many roots, or too large ones."""


def build_roots(config: ServerConfig) -> ListRootsResult:
    """Build the list of the entry's roots."""
    return ListRootsResult(roots=[Root(uri=FileUrl(root)) for root in config.roots or ()])


def check_roots(answer: ListRootsResult) -> ListRootsResult:
    """Return the URIs and names of a host's roots.

    Raises:
        InvalidRoots: the answer exceeds a limit.
    """
    if len(answer.roots) > _MAX_ROOTS:
        raise InvalidRoots(f"it has more than {_MAX_ROOTS} roots")
    if any(len(str(root.uri)) > _MAX_URI_LENGTH for root in answer.roots):
        raise InvalidRoots(f"a URI has more than {_MAX_URI_LENGTH:,} characters")
    if any(len(root.name or "") > _MAX_NAME_LENGTH for root in answer.roots):
        raise InvalidRoots(f"a name has more than {_MAX_NAME_LENGTH} characters")
    return ListRootsResult(roots=[Root(uri=root.uri, name=root.name) for root in answer.roots])


async def read_host_roots(observer: Awaitable[CallObserver], server: str) -> ListRootsResult | ErrorData:
    """Ask a host for its roots; return an error without an answer."""
    try:
        async with Deadline.after(HOST_SECONDS).limit():
            answer = await (await observer).ask_user(ROOTS_REQUEST)
        return check_roots(ListRootsResult.model_validate(answer.content if answer.action == "accept" else None))
    except (TimeoutError, ValidationError, InvalidRoots) as error:
        log.info("host_roots_refused", server=server, error=type(error).__name__)
        return ErrorData(code=_REFUSED_CODE, message="The host did not list its roots.")


class HostRoots:
    """Roots of the host that a session serves.

    Servers ask at the begin of a session, during calls and after changes, so the observer of the host's last request is
    asked. A legacy host's answer is used again for five seconds, however often the server asks. Hosts of the current
    protocol have no session: the first answer stays that of this one, and hosts with other roots get another.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._observer: CallObserver | None = None
        self._has_observer = asyncio.Event()
        self._lock = asyncio.Lock()
        self._expires_at = 0.0
        self.answer: ListRootsResult | ErrorData | None = None
        self.are_fixed = False
        """Whether the answer stays."""

    def set_observer(self, observer: CallObserver) -> None:
        """Remember who forwards requests to the host."""
        self._observer = observer
        self._has_observer.set()

    async def wait_for_observer(self) -> CallObserver:
        """Return who forwards requests, once the host has made a call."""
        await self._has_observer.wait()
        assert self._observer is not None
        return self._observer

    def fix(self, answer: ListRootsResult | ErrorData) -> None:
        """Answer all requests of the session like this."""
        self.are_fixed, self.answer = True, answer

    def forget(self) -> None:
        """Ask the host again, because its roots have changed."""
        self._expires_at = 0.0

    async def read(self) -> ListRootsResult | ErrorData:
        """Return the host's roots, or an error without an answer."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            if self.answer is None or not (self.are_fixed or clock() < self._expires_at):
                self.answer = await read_host_roots(self.wait_for_observer(), self._server)
                self._expires_at = clock() + _REUSE_SECONDS
            return self.answer

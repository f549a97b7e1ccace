"""Finds the call that a question of a legacy server belongs to.

Over stdio and SSE, and on the stream that belongs to no request, a question does not name its call.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from mcp.types import RequestId

from gateway.common.concurrency import Deadline, LruDict, TaskSet, wait_or_poll

_ASKING_METHODS = ("tools/call", "tasks/result", "prompts/get", "resources/read")
_MAX_REQUESTS, _MAX_TOOLS = 10_000, 10_000
_GIVEN_UP_SECONDS = 30.0
"""Maximum time that a server works on an abandoned call."""
_UNCLEAR_SECONDS = 60.0
_MAX_TURN_SECONDS = 10.0
"""Time in which a call may ask while no other runs."""
_POLL_SECONDS = 1.0
CallT = TypeVar("CallT")


class _OpenRequest(Generic[CallT]):
    """A request that the server has not answered."""

    def __init__(self, call: CallT | None) -> None:
        self.call = call
        self.is_waiting = False
        """Whether a person is asked for it now."""
        self.ends_at: float | None = None
        """When a request that was given up counts as ended."""


class QuestionRouter(Generic[CallT]):
    """Requests of a session that the server works on.

    The server's own end of a request counts: a call that was given up may still ask. A question belongs to the only
    request that may ask. Where there are several, it waits until the others have ended.
    """

    def __init__(self) -> None:
        self._requests: LruDict[RequestId, _OpenRequest[CallT]] = LruDict(_MAX_REQUESTS)
        self._changed = asyncio.Event()

    def begin_session(self) -> None:
        """Forget the requests of the last session."""
        self._requests.clear()
        self._changed.set()

    def on_sent(self, request_id: RequestId, method: str, call: CallT | None) -> None:
        """The gateway has sent a request."""
        if method in _ASKING_METHODS:
            self._requests[request_id] = _OpenRequest(call)

    def on_answered(self, request_id: RequestId) -> None:
        """The server has answered a request, maybe one that was given up."""
        if self._requests.pop(request_id, None) is not None:
            self._changed.set()

    def on_cancelled(self, request_id: RequestId) -> None:
        """The gateway has given up a request."""
        if (request := self._requests.get(request_id)) is not None and request.ends_at is None:
            request.ends_at = asyncio.get_running_loop().time() + _GIVEN_UP_SECONDS
            self._changed.set()

    def on_call_ended(self, call: CallT) -> bool:
        """Return whether the server still works on a call.

        The gateway no longer waits for it.
        """
        self._drop_ended()
        given_up = [request_id for request_id in list(self._requests) if self._requests[request_id].call is call]
        for request_id in given_up:
            self.on_cancelled(request_id)
        return bool(given_up)

    async def wait_until_ended(self, call: CallT) -> None:
        """Wait until the server has ended a call, at most 30 seconds."""
        async with Deadline.after(_GIVEN_UP_SECONDS).limit():
            while any(request.call is call for request in self._list_open()):
                await self._wait_for_change()

    async def find_asking_call(self) -> CallT | None:
        """The call that a question which has just arrived belongs to.

        None if it belongs to no call, to one that was given up, or if that stays unclear for a minute.
        """
        deadline = Deadline.after(_UNCLEAR_SECONDS)
        while not deadline.is_over:
            requests = self._list_open()
            candidates = [request for request in requests if not request.is_waiting] or requests
            if len(candidates) <= 1:
                is_alive = bool(candidates) and candidates[0].ends_at is None
                return candidates[0].call if is_alive else None
            await self._wait_for_change()
        return None

    def set_waiting(self, call: CallT, *, is_waiting: bool) -> None:
        """Record whether a person is asked for a call.

        The call asks no other question meanwhile.
        """
        for request in self._list_open():
            if request.call is call:
                request.is_waiting = is_waiting
        self._changed.set()

    def _list_open(self) -> list[_OpenRequest[CallT]]:
        self._drop_ended()
        return [self._requests[request_id] for request_id in list(self._requests)]

    def _drop_ended(self) -> None:
        now = asyncio.get_running_loop().time()
        for request_id in list(self._requests):
            ends_at = self._requests[request_id].ends_at
            if ends_at is not None and ends_at <= now:
                del self._requests[request_id]

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await wait_or_poll(self._changed, _POLL_SECONDS)


class TurnsToAsk(Generic[CallT]):
    """Lets calls that may ask run one by one for some seconds.

    A tool may ask until a call of it has ended without a question. A call does not hold its turn while a person is
    asked, and gets it back before the server gets the answer, so that as a rule only one call can ask. A call that
    keeps its turn for `max_seconds` without a question is overtaken: the next ones run beside it, its tool counts as
    one that does not ask, and the router holds a question back until it is clear whose it is.
    """

    def __init__(self, router: QuestionRouter[CallT], max_seconds: float = _MAX_TURN_SECONDS) -> None:
        self._router = router
        self._max_seconds = max_seconds
        self._lock = asyncio.Lock()
        self._holder: CallT | None = None
        self._holder_tool, self._taken_at = "", 0.0
        self._quiet_tools: LruDict[str, None] = LruDict(_MAX_TOOLS)
        self._endings = TaskSet("mcp calls that were given up")

    def may_ask(self, tool: str) -> bool:
        """Whether a call of the tool needs a turn."""
        return tool not in self._quiet_tools

    def on_call_ended(self, tool: str, *, has_asked: bool) -> None:
        """Learn whether a tool asks."""
        if has_asked:
            self._quiet_tools.pop(tool, None)
        else:
            self._quiet_tools[tool] = None

    async def take(self, call: CallT, tool: str) -> None:
        """Wait for the turn of a call.

        The call runs without a turn if it has to overtake another one.
        """
        now = asyncio.get_running_loop().time
        holder, age = self._holder, now() - self._taken_at
        try:
            async with Deadline.after(self._max_seconds if holder is None else self._max_seconds - age).limit():
                await self._lock.acquire()
        except TimeoutError:
            if self._holder is holder and self._holder_tool:
                self._quiet_tools[self._holder_tool] = None
            return
        self._holder, self._holder_tool, self._taken_at = call, tool, now()

    def give_back(self, call: CallT) -> None:
        """End the turn of a call, if it has one."""
        if self._holder is call:
            self._holder = None
            self._lock.release()

    def give_back_when_ended(self, call: CallT) -> None:
        """End the turn of an abandoned call with the call."""
        if self._holder is call:
            self._endings.spawn(self._wait_and_give_back(call))

    async def _wait_and_give_back(self, call: CallT) -> None:
        try:
            await self._router.wait_until_ended(call)
        except TimeoutError:
            pass
        finally:
            self.give_back(call)

    @asynccontextmanager
    async def asking(self, call: CallT, tool: str) -> AsyncGenerator[None]:
        """Let other calls run while a person is asked."""
        held_turn = self._holder is call
        self._router.set_waiting(call, is_waiting=True)
        self.give_back(call)
        try:
            yield
            if held_turn:
                await self.take(call, tool)
        finally:
            self._router.set_waiting(call, is_waiting=False)

    async def stop(self) -> None:
        """Stop waiting for calls that were given up."""
        await self._endings.stop()

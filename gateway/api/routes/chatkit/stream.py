"""The stream of a ChatKit response, with the turn that it reads."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Self

from chatkit.store import NotFoundError
from fastapi import Response

from gateway.agent.service import TurnListener
from gateway.common.logging import get_logger
from gateway.ports.listener import FrameSource
from gateway.wire.sse import FrameStream

log = get_logger(__name__)
_FAILED = b'data: {"type":"error","code":"stream.error","allow_retry":true}\n\n'


class ThreadStream(FrameSource):
    """Holds the listener of a turn as long as its response.

    ChatKit's generators do not leave it at once when the client does.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._listener: TurnListener | None = None

    @property
    def is_over(self) -> bool:
        return self._listener is not None and self._listener.is_over

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def hold_listener(self, listener: TurnListener) -> TurnListener:
        """Listen to a turn until the response ends."""
        self._listener = await self._stack.enter_async_context(listener)
        return self._listener

    async def build_stream_response(self, frames: AsyncGenerator[bytes]) -> Response:
        """Build the response, whose first frame must be there.

        An error before it is one of HTTP.

        Raises:
            NotFoundError: there is no frame, because ChatKit has not found the message of a retry.
        """
        first = await anext(frames, None)
        if first is None:
            raise NotFoundError("item")
        return FrameStream(_chain_frames(first, frames), headers={}, listener=self)


async def _chain_frames(first: bytes, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(frames):
        yield first
        try:
            async for frame in frames:
                yield frame
        except Exception as error:
            log.error("chatkit_stream_failed", exc_info=error)
            yield _FAILED

"""Turns begin a few at a time, so that the streams under way need not wait for many that begin."""

import asyncio
from collections import deque

EACH_PASS = 4


class Entrance:
    """Lets so many in each time round the event loop, first come first served.

    To begin a turn takes as long as a token of 30 streams. With 500 streams on one core, and as many that begin, tokens
    came 65 ms apart (99th percentile) where all were let in at once, 54 where eight were, 34 with four and 26 with two.
    But with two the first token came after 2.3 seconds instead of 1.4, and each token took a fifth more of the core.
    """

    def __init__(self, each_pass: int = EACH_PASS) -> None:
        self._each_pass = each_pass
        self._let_in = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for one's turn."""
        if self._let_in == self._each_pass:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
            return
        self._let_in += 1
        if self._let_in == 1:
            asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        self._let_in = 0
        while self._waiting and self._let_in < self._each_pass:
            waiter = self._waiting.popleft()
            if not waiter.done():  # its request was given up
                waiter.set_result(None)
                self._let_in += 1
        if self._let_in:
            asyncio.get_running_loop().call_soon(self._next_pass)

"""Admission of new turns a few at a time.

A burst of new turns would otherwise delay running streams.
"""

import asyncio
from collections import deque

ADMITTED_PER_PASS = 8


class AdmissionGate:
    """Admits a limited number of requests per pass of the loop.

    Requests are admitted in order of arrival. The limit balances the pauses of running streams against the wait of new
    turns. See docs/adr/0006.
    """

    def __init__(self, per_pass: int = ADMITTED_PER_PASS) -> None:
        self._per_pass = per_pass
        self._admitted = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def wait_for_admission(self) -> None:
        """Return when the request may start a turn."""
        if self._admitted == self._per_pass:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
            return
        self._admitted += 1
        if self._admitted == 1:
            asyncio.get_running_loop().call_soon(self._admit_next)

    def _admit_next(self) -> None:
        self._admitted = 0
        while self._waiters and self._admitted < self._per_pass:
            waiter = self._waiters.popleft()
            if not waiter.done():  # its request was cancelled
                waiter.set_result(None)
                self._admitted += 1
        if self._admitted:
            asyncio.get_running_loop().call_soon(self._admit_next)

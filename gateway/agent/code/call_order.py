"""The order in which calls of tools may run."""

import asyncio


class CallOrder:
    """Keeps the order of calls where it matters.

    A read-only call waits for earlier changing calls, and a changing call for all earlier calls.
    """

    def __init__(self) -> None:
        self._last_changing: list[asyncio.Task[None]] = []
        self._since_changing: list[asyncio.Task[None]] = []

    def list_earlier(self, *, read_only: bool) -> list[asyncio.Task[None]]:
        """List the calls that the next one must wait for.

        The last changing call ends after all calls before it. A wait for each of them would cost n^2 callbacks.
        """
        return self._last_changing if read_only else self._since_changing

    def add(self, task: asyncio.Task[None], *, read_only: bool) -> None:
        """Add the next call."""
        if read_only:
            self._since_changing.append(task)
        else:
            self._last_changing, self._since_changing = [task], [task]

"""Tool calls that an MCP server runs as tasks."""

import time

import msgspec

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.2, 60.0
_POLL_SHARE = 0.01
"""Least pause between polls, as a share of the task's time."""


class ServerTask(msgspec.Struct, frozen=True):
    """A call that its server runs as a task.

    Times are in seconds since the epoch. The gateway gives the task up at `deadline`. `poll_seconds` is the server's
    own interval, `message` its description of the state.
    """

    server: str
    task_id: str
    started_at: float
    deadline: float
    poll_seconds: float
    message: str = ""

    def choose_poll_pause(self) -> float:
        """Return the seconds until the next poll.

        They grow with the time that the task has taken.
        """
        now = time.time()
        pause = max(self.poll_seconds, (now - self.started_at) * _POLL_SHARE)
        return max(min(pause, MAX_POLL_SECONDS, self.deadline - now), MIN_POLL_SECONDS)

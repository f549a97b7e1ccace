"""State of a turn, wherever it runs."""

from typing import NamedTuple


class TurnProgress(NamedTuple):
    """State of a turn.

    A worker that continues the turn raises its epoch.
    """

    status: str
    epoch: int

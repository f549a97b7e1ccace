"""The check right before each attempt of a model or tool call."""

from collections.abc import Callable

StartCheck = Callable[[], None]
"""Stops a call's turn if other workers may claim it now.

Then it raises `TurnTakenOver`. It needs no query and no await.
"""


def allow_start() -> None:
    """Allow each attempt of a call that belongs to no turn."""

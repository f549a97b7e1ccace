"""Tool calls that run as a turn without a model."""

from typing import Any

import msgspec


class DirectCall(msgspec.Struct, frozen=True):
    """A call of a tool of `server`.

    `tool` is the name in the toolbox. `idempotency_key` is the caller's key for the server; None: that of the turn.
    """

    tool: str
    server: str
    arguments: dict[str, Any]
    idempotency_key: str | None = None

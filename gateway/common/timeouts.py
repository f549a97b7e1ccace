"""Timeouts and intervals that no setting changes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Timeouts and intervals in seconds. Tests pass others."""

    body: float = 60.0
    """Time for a request's body to arrive."""
    budget_wait: float = 30.0
    """Time that a step waits for reserved budget."""
    conversation_busy: float = 120.0
    """Time that a request waits for the earlier turns of its conversation."""
    forwarding: float = 5.0
    """Time until another worker's response to a forwarded MCP request begins."""
    forwarding_silence: float = 45.0
    """Time between two parts of such a response, whose streams have pings."""
    health: float = 1.0
    """Age at which `/health` and `/ready` ask the database again."""
    journal: float = 5.0
    """Time for a turn's start to be committed."""
    key_cache: float = 5.0
    """Age at which a cached API key is looked up again."""
    key_poll: float = 15.0
    """Interval between checks of open requests for expired API keys."""
    model_health: float = 10.0
    """Age at which `/ready` asks the model's server again."""
    mcp_connect: float = 1.0
    """Time that the start waits for MCP servers to connect."""

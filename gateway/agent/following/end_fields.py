"""The fields of a turn's end in the log."""

from gateway.domain.messages import TurnOutcome


def list_end_fields(turn_id: str, model: str, outcome: TurnOutcome) -> dict[str, object]:
    """Return the fields of a turn's end, for any log line."""
    return {
        "turn": outcome.status,
        "turn_id": turn_id,
        "model": model,
        "steps": outcome.steps,
        "tokens": outcome.usage.total_tokens,
        "first_token_ms": outcome.first_token_ms,
        "turn_ms": outcome.duration_ms,
        "code": outcome.error.code if outcome.error else None,
    }

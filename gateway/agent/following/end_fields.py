"""The fields of a turn's end in the log."""

from gateway.domain.messages import TurnOutcome, TurnRecord


def list_end_fields(record: TurnRecord, outcome: TurnOutcome) -> dict[str, object]:
    """Return the fields of a turn's end, for any log line."""
    return {
        "turn": outcome.status,
        "turn_id": str(record.id),
        "model": record.model,
        "steps": outcome.steps,
        "tokens": outcome.usage.total_tokens,
        "first_token_ms": outcome.first_token_ms,
        "turn_ms": outcome.duration_ms,
        "code": outcome.error.code if outcome.error else None,
    }

"""Reasons why a turn stops before its end."""

from typing import Literal

HandOverReason = Literal["server_stopping", "storage_unavailable"]
CancelReason = Literal["client_disconnected", "cancelled", "handed_over", "storage_refused"] | HandOverReason
CANCEL_MESSAGES: dict[CancelReason, str] = {
    "client_disconnected": "The client disconnected, and the request did not ask to continue without it.",
    "cancelled": "The turn was cancelled.",
    "handed_over": "Another worker continues the turn.",
    "server_stopping": "The worker stopped, and this turn was not stored, so it cannot be resumed.",
    "storage_unavailable": "The worker lost the database, and this turn was not stored, so it cannot be resumed.",
}
